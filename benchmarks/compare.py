"""Compare the toolkit with what a user would pick instead, on three tasks, side by side.

For each task MiniLM-L6 is fine-tuned, and one run of the recipe ``balanced``, or of one that
``compressor auto`` found, measures its bundles in turn with the untouched model and with the tools
of :mod:`rivals`. Needs what ``scripts/compare`` installs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import MAX_LENGTH, MODEL, TASKS, fetch, fine_tune, run_compressor
from compressor.recipe import load_recipe
from compressor.report.files import read_report
from compressor.report.schema import Report, Row
from compressor.report.wording import drop_interval, points
from targets.measurement import Measurement, Speedup, speedup

OURS = ("onnxruntime", "openvino")
BATCH_SIZES = (1, 8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(prog="scripts/compare", description=__doc__)
    parser.add_argument("tasks", nargs="*", default=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument(
        "--checkpoint", type=Path, help="one fine-tuned on the one task, instead of doing it again"
    )
    parser.add_argument(
        "--found", type=Path, help="take passes and variants of this recipe instead of balanced"
    )
    parser.add_argument("--olive", type=Path, help="the command olive of another environment")
    parser.add_argument("--output", type=Path, default=Path("comparison"))
    parser.add_argument(
        "--results", type=Path, help="where figures to publish go; by default the output folder"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-again", action="store_true")
    parser.add_argument("--check", action="store_true", help="look at the arguments, do nothing")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.tasks) - set(TASKS))
    if unknown:
        parser.error(f"there is no task {unknown[0]!r}: use {', '.join(TASKS)}")
    if options.checkpoint is not None and len(options.tasks) > 1:
        parser.error("--checkpoint belongs to one task: name that task")
    shipped = load_recipe(options.found or "balanced").model_dump(mode="json")
    if options.check:
        return 0
    assets = fetch(MODEL, *options.tasks)
    for task in options.tasks:
        folder = (options.output / task).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = options.checkpoint or fine_tune(task, assets, folder / "checkpoint")
        recipe = folder / "recipe.json"  # JSON is YAML as well
        document = _recipe(shipped, assets / task, checkpoint.absolute(), options)
        recipe.write_text(json.dumps(document, indent=1), encoding="utf-8")
        again = ["--measure-again"] if options.measure_again else []
        run_compressor("run", recipe, "--output", folder / "compressed", *again)
        report = read_report(folder / "compressed" / "report.json")
        name = f"compare_{task.replace('-', '_')}_seed{options.seed}.json"
        publish(report, (options.results or options.output) / name)
        print("\n".join(table(report)))
    return 0


def _recipe(
    shipped: dict[str, Any], data: Path, checkpoint: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """A recipe as shipped or found, on our two CPU targets, with the rivals as further targets."""
    untouched = {"checkpoint": str(checkpoint)}
    rivals: list[dict[str, Any]] = [
        {"target": name, **untouched}
        for name in (
            "ort_optimizer", "ort_dynamic_int8", "torch_compile", "torch_dynamic_int8",
            "torchao_int8",
        )
    ]  # fmt: skip
    rivals.append({"target": "nncf_int8", "data": str(data / "train.csv"), **untouched})
    if options.olive is not None:
        rivals.append({"target": "olive_int8", "olive": str(options.olive.absolute()), **untouched})
    return {
        "name": f"{data.name}, with rivals",
        "model": str(checkpoint),
        "data": {
            "max_length": MAX_LENGTH,
            **{split: str(data / f"{split}.csv") for split in ("train", "validation", "test")},
        },
        "passes": shipped["passes"],
        "variants": shipped["variants"],
        "targets": [*OURS, *rivals],
        "budget": {"require": "any", "max_accuracy_drop": 1.0},
        "benchmark": {"threads": 2, "batch_sizes": BATCH_SIZES, "rounds": options.rounds},
        "seed": options.seed,
    }


def publish(report: Report, path: Path) -> None:
    """Write a report without the folders of this machine and without what was never measured."""
    document = report.model_dump(mode="json")
    recipe = document["recipe"]
    recipe |= {"model": "checkpoint", "output": "compressed"}
    for key in ("train", "validation", "test"):
        recipe["data"][key] = f"{key}.csv"
    recipe["targets"] = [{"target": each["target"]} for each in recipe["targets"]]
    document["recipe"] = _without_folders(recipe)
    document["predictions"] = None
    document["rows"] = [row for row in document["rows"] if row["status"] == "measured"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")


def _without_folders(value: Any) -> Any:
    """The same with the names of files instead of their paths, however deep they are."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def table(report: Report) -> Iterator[str]:
    """Every measured row against the untouched model in fp32 on ONNX Runtime, in Markdown."""
    rows = [row for row in report.rows if row.status == "measured"]
    baseline = _at(report.row(kind="baseline", target="onnxruntime", precision="fp32"), 0)
    yield f"### {report.name}, seed {report.seed}"
    yield ""
    yield (
        "| what | latency, ms | against ORT fp32 (95%) | texts/s at batch 8 | accuracy "
        "| lost, points (95%) | size, MB |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        one, batch = _at(row, 0), _at(row, 1)
        drop = row.test_comparison
        lost = f"{points(drop.drop_points)} ({drop_interval(drop)})" if drop else ""
        mark = "~" if one.noise.verdict == "noisy" else ""
        assert row.test is not None
        assert row.size_bytes is not None
        yield (
            f"| {_what(row)} | {one.median_ms:.2f}{mark} "
            f"| {speedup(baseline, one)} | {1e3 * batch.batch_size / batch.median_ms:.0f} "
            f"| {100 * row.test.value:.1f}% "
            f"| {lost} | {row.size_bytes / 1e6:.1f} |"
        )
    if any(_is_rival(row) for row in rows):
        ours, rival, gain = against_best_rival(report)
        yield ""
        yield f"{ours.variant} on {ours.target} against {rival.target}, the fastest rival: {gain}"


def _what(row: Row) -> str:
    if row.kind == "candidate":
        name = f"{row.variant} on {row.target}"
        return f"**{name}**" if row.chosen else name
    own = row.target in OURS or row.kind == "reference"
    return f"untouched on {row.target}, {row.precision}" if own else row.target


def against_best_rival(report: Report) -> tuple[Row, Row, Speedup]:
    """What was chosen, the fastest rival, and how many times faster the first is."""
    rows = [row for row in report.rows if row.status == "measured"]
    ours = min((row for row in rows if row.chosen and row.target in OURS), key=_latency)
    rival = min((row for row in rows if _is_rival(row)), key=_latency)
    return ours, rival, speedup(_at(rival, 0), _at(ours, 0))


def _is_rival(row: Row) -> bool:
    return row.kind == "baseline" and row.target not in OURS


def _latency(row: Row) -> float:
    return _at(row, 0).median_ms


def _at(row: Row, index: int) -> Measurement:
    return row.latency[f"{BATCH_SIZES[index]}x128"]


if __name__ == "__main__":
    sys.exit(main())
