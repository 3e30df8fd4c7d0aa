"""What is lost at every speed: the shape that ``auto`` finds for each latency, side by side.

Speeds are multiples of the untouched model's on ONNX Runtime in fp32. For each, the search of
``compressor auto --max-ms`` finds and trains a shape for OpenVINO in int8, for some epochs in int8
where that loses too much otherwise; then one run measures them all in turn, and reads the test data
once. Latencies are predicted from a table before a shape is trained: the speeds that were measured
stand beside those that were asked for. A second measurement runs texts of the lengths of the test
data, from their tokens and from the text. The recipes are left beside the bundles.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.checkpoints import MAX_LENGTH, MODEL, TASKS, fetch, fine_tune
from benchmarks.compare import publish
from compressor.cli.progress import ConsoleProgress
from compressor.data import DataSpec
from compressor.errors import BudgetError
from compressor.gate.budget import Budget
from compressor.passes import Pass
from compressor.passes.export import Export
from compressor.passes.quantize import Quantize
from compressor.pipeline import run
from compressor.progress import Progress
from compressor.recipe import Recipe, load_recipe
from compressor.recipe.write import write_recipe
from compressor.report.schema import Report, Row
from compressor.report.wording import drop_interval, points
from compressor.search.auto import AutoSettings, search
from compressor.search.found import found_recipe, int8_variants
from compressor.store import RunStore, default_store
from compressor.training.teacher import TeacherMemory
from targets.bench import BenchReport, Sweep, bench
from targets.benchmark import BenchmarkSettings, Shape
from targets.bundle import Bundle
from targets.environment import Environment
from targets.measurement import Measurement, speedup
from targets.provenance import checkpoint_hashes
from targets.registry import get

EPOCHS: Mapping[float, int] = {
    4.0: 6, 6.0: 10, 8.0: 24, 10.0: 24, 15.0: 24, 20.0: 24, 22.0: 24, 25.0: 24, 30.0: 24,
}  # fmt: skip
"""Speed that is asked for -> epochs of training: where little goes, few make up for it, and they
take long. 22 times ONNX Runtime is about 30 times eager PyTorch."""
PACKED_FROM = 15.0
"""Speeds from which on the embeddings are most of the size: 4 bits are measured too."""
SHORT_EPOCHS = 2
"""Of the trainings that choose between numbers of layers, where there are few epochs."""
MAX_DROP = 1.0
"""Points of accuracy; int8 that loses more is trained for."""
ATTEMPTS = 4
"""How often the untouched model is measured at most, while the machine is noisy."""
BASE, TARGET = "onnxruntime", "openvino"
THREADS = 2
EAGER = "pytorch"
WHOLE: Mapping[str, tuple[Pass, ...]] = {
    "fp32": (Export(),),
    "int8-dynamic": (Export(), Quantize(method="dynamic", weight_bits=7)),
    "int8": (Export(), *int8_variants()["int8"]),
}
"""The untouched model without training: the slow end of the curve."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Find a shape for every speed, and measure them."""
    parser = argparse.ArgumentParser(prog="scripts/pareto", description=__doc__)
    parser.add_argument("task", nargs="?", choices=TASKS, default=TASKS[0])
    parser.add_argument(
        "--checkpoint", type=Path, help="one fine-tuned on the task, instead of doing it again"
    )
    parser.add_argument("--output", type=Path, default=Path("demo-output/pareto"))
    parser.add_argument(
        "--results", type=Path, help="where figures to publish go; by default the output folder"
    )
    parser.add_argument("--store", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speeds", type=float, nargs="+", choices=list(EPOCHS))
    parser.add_argument(
        "--time-limit",
        type=float,
        nargs="+",
        default=[60.0],
        help="minutes for each speed: one for all, or one for each of --speeds",
    )
    parser.add_argument(
        "--found",
        type=Path,
        nargs="+",
        default=[],
        metavar="SPEEDx.yaml",
        help="recipes that an earlier search wrote, to measure beside --speeds, or alone",
    )
    parser.add_argument(
        "--smaller",
        type=float,
        metavar="TIMES",
        help="how much smaller than the untouched model each shape has to be as well",
    )
    parser.add_argument("--unlabeled", type=Path, help="more texts, one a line")
    parser.add_argument("--measure-again", action="store_true")
    options = parser.parse_args(arguments)
    if options.speeds is None:
        options.speeds = [] if options.found else list(EPOCHS)
    if len(options.time_limit) == 1:
        options.time_limit *= len(options.speeds)
    if len(options.time_limit) != len(options.speeds):
        parser.error(f"--time-limit: {len(options.time_limit)} for {len(options.speeds)} speeds")
    store = RunStore(options.store or default_store())
    assets = fetch(MODEL, options.task)
    output = (options.output / options.task).absolute()
    checkpoint = options.checkpoint or fine_tune(options.task, assets, output / "checkpoint")
    data = assets / options.task
    base = Recipe(
        name=f"{options.task}, every speed",
        model=checkpoint.absolute(),
        task="text-classification",
        data=DataSpec(
            train=data / "train.csv",
            validation=data / "validation.csv",
            test=data / "test.csv",
            max_length=MAX_LENGTH,
        ),
        targets=(get(TARGET), get(BASE)),
        budget=Budget(require="any"),
        benchmark=BenchmarkSettings(threads=THREADS, sequence_length=128, batch_sizes=(1, 8)),
        seed=options.seed,
        output=output,
    )
    memory = TeacherMemory()  # the untouched model labels all rows once for all speeds
    with ConsoleProgress() as progress, contextlib.closing(memory):
        searched = _found(base, options, store, progress, memory)
        found = {**WHOLE, **_read(options.found), **searched}
        every = base.model_copy(update={"variants": found})
        report = run(
            every,
            store=store,
            progress=progress,
            measure_again=options.measure_again,
            teacher_memory=memory,
        )
        progress.start("measure texts of real lengths")
        real = _real_texts(report, base, progress)
        progress.finish("", cached=False)
    name = f"{options.task.replace('-', '_')}_seed{options.seed}.json"
    results = options.results or options.output
    publish(report, results / f"pareto_{name}")
    path = results / f"real_texts_{name}"
    path.write_text(real.model_dump_json() + "\n", encoding="utf-8")
    print("\n".join((*table(report), "", *real_table(real))))
    return 0


def _found(
    base: Recipe,
    options: argparse.Namespace,
    store: RunStore,
    progress: Progress,
    memory: TeacherMemory,
) -> dict[str, tuple[Pass, ...]]:
    """A variant for each speed that some shape reaches."""
    variants: dict[str, tuple[Pass, ...]] = {}
    if not options.speeds:
        return variants
    fp32_ms, fp32_mb = _fp32(base, store, progress)
    for speed, minutes in zip(options.speeds, options.time_limit, strict=True):
        epochs = EPOCHS[speed]
        settings = AutoSettings(
            time_limit_s=60 * minutes,
            unlabeled=options.unlabeled and options.unlabeled.absolute(),
        )
        if epochs < settings.epochs:
            few = {"epochs": epochs, "short_epochs": SHORT_EPOCHS}
            settings = settings.model_copy(update=few)
        budget = Budget(
            require="any",
            max_latency_ms=fp32_ms / speed,
            max_accuracy_drop=MAX_DROP,
            max_size_mb=options.smaller and fp32_mb / options.smaller,
        )
        recipe = base.model_copy(update={"budget": budget, "variants": {}})
        try:
            found = search(recipe, settings, store=store, progress=progress, memory=memory)
        except BudgetError as error:
            progress.warn(f"{speed:g}x: {error.what}")
            continue
        if found.best is None:
            progress.warn(f"{speed:g}x: no training ended within {minutes:g} min")
            continue
        chosen = found_recipe(recipe, found)
        write_recipe(chosen, recipe.output / "recipes" / f"{speed:g}x.yaml")
        variants |= _chains(speed, chosen, found.table.variant)
    return variants


def _read(paths: Sequence[Path]) -> dict[str, tuple[Pass, ...]]:
    """The variants of recipes that an earlier search wrote."""
    variants: dict[str, tuple[Pass, ...]] = {}
    for path in paths:
        variants |= _chains(float(path.stem.removesuffix("x")), load_recipe(path), "int8")
    return variants


def _chains(speed: float, recipe: Recipe, name: str) -> dict[str, tuple[Pass, ...]]:
    """What is measured of a recipe that was found for a speed, in the precision of its table."""
    into_int8 = recipe.variants.get(f"{name}-aware", recipe.variants[name])
    *chain, quantize = (*recipe.passes, *into_int8)
    found: dict[str, tuple[Pass, ...]] = {f"{speed:g}x": (*chain, quantize)}
    if name.startswith("int8") and speed >= PACKED_FROM and isinstance(quantize, Quantize):
        packed = quantize.model_copy(update={"table_bits": 4})
        if packed != quantize:  # a size has asked for it
            found[f"{speed:g}x, 4-bit embeddings"] = (*chain, packed)
    return found


def _real_texts(report: Report, base: Recipe, progress: Progress) -> BenchReport:
    """Every bundle on texts of the lengths of the test data, in one run."""
    shown = [row for row in report.rows if row.status == "measured" and _is_shown(row)]
    bundles = {
        _title(row): Bundle.open(base.output / row.bundle)
        for row in shown
        if row.bundle is not None
    }
    sweep = Sweep(threads=(THREADS,), batch_sizes=(1, 8), sequence_lengths=(), real_texts=True)
    return bench(bundles, sweep, base.benchmark, on_progress=progress.update)


def _fp32(base: Recipe, store: RunStore, progress: Progress) -> tuple[float, float]:
    """What speeds and sizes are multiples of, in ms and MB.

    The latency is that of a quiet machine, else of a few runs the fastest. Both are kept in a file,
    with what they were measured of: another latency would ask for other shapes, and train them.
    """
    whole = base.model_copy(update={"variants": dict(WHOLE)})
    kept = base.output / "fp32.json"
    measured_of = {
        "machine": Environment.here().machine,
        "checkpoint": checkpoint_hashes(whole.model),
        "benchmark": whole.benchmark.of_latency(),
    }
    if kept.is_file():
        earlier = json.loads(kept.read_text(encoding="utf-8"))
        if isinstance(earlier, dict) and earlier.get("measured_of") == measured_of:
            return float(earlier["latency_ms"]), float(earlier["size_mb"])
    found: list[Measurement] = []
    size_mb = 0.0
    while len(found) < ATTEMPTS and not (found and found[-1].noise.verdict == "quiet"):
        report = run(whole, store=store, progress=progress, measure_again=bool(found))
        row = _untouched(report)
        found.append(_at(row, report))
        size_mb = (row.size_bytes or 0) / 1e6
    latency = min(each.median_ms for each in found)
    content = {"latency_ms": latency, "size_mb": size_mb, "measured_of": measured_of}
    kept.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return latency, size_mb


def _untouched(report: Report) -> Row:
    return report.row(kind="baseline", target=BASE, precision="fp32")


def _at(row: Row, report: Report) -> Measurement:
    return row.latency[report.primary_shape]


def _is_shown(row: Row) -> bool:
    """Whether it is of the untouched model, or on the target that its shape was found for."""
    return row.kind == "candidate" and (row.target == TARGET or row.variant in WHOLE)


def _title(row: Row) -> str:
    return f"untouched, {row.variant} on {row.target}" if row.variant in WHOLE else str(row.variant)


def table(report: Report) -> Iterator[str]:
    """Every shape on the target it was found for, in Markdown."""
    reference_row = _untouched(report)
    reference = _at(reference_row, report)
    eager = _at(report.row(kind="reference", target=EAGER), report)
    *_, several = reference_row.latency
    size = reference_row.latency[several].batch_size
    yield (
        "| asked for | measured (95%) | against eager PyTorch | latency, ms "
        f"| texts/s at batch {size} | accuracy | lost, points (95%) | size, MB |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in report.rows:
        if row.status != "measured" or not _is_shown(row):
            continue
        measured, batch = _at(row, report), row.latency[several]
        assert row.test is not None
        assert row.size_bytes is not None
        assert row.test_comparison is not None
        drop = row.test_comparison
        mark = "~" if measured.noise.verdict == "noisy" else ""
        yield (
            f"| {_title(row)} | {speedup(reference, measured)} "
            f"| {speedup(eager, measured)} "
            f"| {measured.median_ms:.2f}{mark} | {1000 * size / batch.median_ms:.0f} "
            f"| {100 * row.test.value:.1f}% | {points(drop.drop_points)} ({drop_interval(drop)}) "
            f"| {row.size_bytes / 1e6:.1f} |"
        )


def real_table(report: BenchReport) -> Iterator[str]:
    """Texts as long as the test data against the untouched model, in Markdown."""
    yield (
        "| texts of real lengths | one, ms | times as fast (95%) | eight, texts/s "
        "| times as fast (95%) | one from the text, ms |"
    )
    yield "|---|---|---|---|---|---|"
    one, from_text, eight = Shape(1, None), Shape(1, None, True), Shape(8, None)
    results = {entry.bundle: entry.result for entry in report.entries}

    def at(name: str, shape: Shape) -> Measurement:
        found = results[name].at(shape)
        assert isinstance(found, Measurement)
        return found

    base = f"untouched, fp32 on {BASE}"
    for name in results:
        mark = "~" if at(name, one).noise.verdict == "noisy" else ""
        yield (
            f"| {name} | {at(name, one).median_ms:.2f}{mark} "
            f"| {speedup(at(base, one), at(name, one))} "
            f"| {8000 / at(name, eight).median_ms:.0f} "
            f"| {speedup(at(base, eight), at(name, eight))} "
            f"| {at(name, from_text).median_ms:.2f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
