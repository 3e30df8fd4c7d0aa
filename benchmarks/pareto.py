"""What is lost at every speed: the shape that ``auto`` finds for each latency, side by side.

Speeds are multiples of the untouched model's on ONNX Runtime in fp32. For each, the search of
``compressor auto --max-ms`` finds and trains a shape for OpenVINO in int8; then one run measures
them all in turn, and reads the test data once. Latencies are predicted from a table before a shape
is trained: the speeds that were measured stand beside those that were asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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
from compressor.recipe import Recipe
from compressor.report.schema import Report, Row
from compressor.report.wording import drop_interval, points
from compressor.search.auto import AutoSettings, search
from compressor.search.found import int8_variants
from compressor.store import RunStore, default_store
from targets.benchmark import BenchmarkSettings
from targets.measurement import Measurement, speedup
from targets.registry import get

HERE = Path(__file__).parent
EPOCHS: Mapping[float, int] = {4.0: 6, 6.0: 10, 8.0: 24, 10.0: 24, 15.0: 24, 20.0: 24}
"""Speed that is asked for -> epochs of training: where little goes, few make up for it, and they
take long."""
SHORT_EPOCHS = 2
"""Of the trainings that choose between numbers of layers, where there are few epochs."""
BASE, TARGET = "onnxruntime", "openvino"
WHOLE: Mapping[str, tuple[Pass, ...]] = {
    "fp32": (Export(),),
    "int8-dynamic": (Export(), Quantize(method="dynamic", weight_bits=7)),
    "int8": (Export(), *int8_variants()["int8"]),
}
"""The untouched model without training: the slow end of the curve."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Find a shape for every speed, and measure them."""
    parser = argparse.ArgumentParser(prog="scripts/pareto", description=__doc__)
    parser.add_argument("task", help="name of the data among the assets, such as trec-6")
    parser.add_argument("--checkpoint", type=Path, required=True, help="fine-tuned on the data")
    parser.add_argument("--data", type=Path, required=True, help="what fetch_assets brought")
    parser.add_argument("--output", type=Path, default=Path("pareto"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--measure-again", action="store_true")
    options = parser.parse_args(arguments)
    store = RunStore(options.store or default_store())
    base = Recipe(
        name=f"{options.task}, every speed",
        model=options.checkpoint.absolute(),
        data=DataSpec(
            train=options.data / "train.csv",
            validation=options.data / "validation.csv",
            test=options.data / "test.csv",
            max_length=options.max_length,
        ),
        targets=(get(TARGET), get(BASE)),
        budget=Budget(require="any"),
        benchmark=BenchmarkSettings(threads=2, sequence_length=128),
        seed=options.seed,
        output=(options.output / options.task).absolute(),
    )
    with ConsoleProgress() as progress:
        whole = base.model_copy(update={"variants": dict(WHOLE)})
        latency = _fp32(run(whole, store=store, progress=progress))
        found = {**WHOLE, **_found(base, latency, store, progress)}
        every = base.model_copy(update={"variants": found})
        report = run(every, store=store, progress=progress, measure_again=options.measure_again)
    name = f"pareto_{options.task.replace('-', '_')}_seed{options.seed}.json"
    publish(report, options.results / name)
    print("\n".join(table(report)))
    return 0


def _found(
    base: Recipe, fp32_ms: float, store: RunStore, progress: Progress
) -> dict[str, tuple[Pass, ...]]:
    """A variant for each speed that some shape reaches."""
    variants: dict[str, tuple[Pass, ...]] = {}
    for speed, epochs in EPOCHS.items():
        few = AutoSettings(epochs=epochs, short_epochs=SHORT_EPOCHS)
        settings = few if epochs < AutoSettings().epochs else AutoSettings()
        budget = Budget(require="any", max_latency_ms=fp32_ms / speed)
        recipe = base.model_copy(update={"budget": budget, "variants": {}})
        try:
            best = search(recipe, settings, store=store, progress=progress).best
        except BudgetError as error:
            progress.warn(f"{speed:g}x: {error.what}")
            continue
        assert best is not None
        variants[f"{speed:g}x"] = (*best.passes, Export(), *int8_variants()["int8"])
    return variants


def _fp32(report: Report) -> float:
    return _at(_untouched(report), report).median_ms


def _untouched(report: Report) -> Row:
    return next(
        row
        for row in report.rows
        if row.kind == "baseline" and row.target == BASE and row.precision == "fp32"
    )


def _at(row: Row, report: Report) -> Measurement:
    return row.latency[report.primary_shape]


def table(report: Report) -> Iterator[str]:
    """Every shape on the target it was found for, in Markdown."""
    reference = _at(_untouched(report), report)
    rows = [row for row in report.rows if row.status == "measured" and row.kind == "candidate"]
    yield "| asked for | measured (95%) | latency, ms | accuracy | lost, points (95%) | size, MB |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        if row.target != TARGET and row.variant not in WHOLE:
            continue
        measured = _at(row, report)
        assert row.test is not None
        assert row.test_comparison is not None
        assert row.size_bytes is not None
        drop = row.test_comparison
        mark = "~" if measured.noise.verdict == "noisy" else ""
        on = f" on {row.target}" if row.variant in WHOLE else ""
        what = f"untouched, {row.variant}{on}" if row.variant in WHOLE else row.variant
        yield (
            f"| {what} | {speedup(reference, measured)} | {measured.median_ms:.2f}{mark} "
            f"| {100 * row.test.value:.1f}% | {points(drop.drop_points)} ({drop_interval(drop)}) "
            f"| {row.size_bytes / 1e6:.1f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
