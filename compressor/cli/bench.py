"""What ``compressor bench`` prints and writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from compressor.cli.progress import ConsoleProgress, console
from targets.benchmark import BenchmarkCase, BenchmarkSettings, CaseResult, Failure, benchmark
from targets.bundle import Bundle
from targets.environment import Environment
from targets.errors import InputError

__all__ = ["bench_bundles"]


def bench_bundles(
    bundles: Sequence[Path],
    *,
    threads: int,
    sequence_length: int,
    batch_sizes: tuple[int, ...],
    rounds: int,
    output: Path | None,
) -> bool:
    """Measure bundles, print a table, and write the raw times where asked for.

    Returns:
        Whether every bundle was measured.
    """
    settings = BenchmarkSettings(
        threads=threads, sequence_length=sequence_length, batch_sizes=batch_sizes, rounds=rounds
    )
    opened = {str(bundle): Bundle.open(bundle) for bundle in bundles}
    _check_length(opened, sequence_length)
    with ConsoleProgress() as progress:
        progress.start(f"measure {len(bundles)} bundles")
        results = benchmark(
            {name: BenchmarkCase(bundle.folder) for name, bundle in opened.items()},
            settings,
            lambda done, total, line: progress.update(done / total, line),
        )
        progress.finish("", cached=False)
    environment = Environment.here()
    _show(results, settings)
    console().print(
        f"{environment.cpu}, {environment.num_cpus} CPUs, {threads} threads, "
        f"load {environment.load_average:.2f}"
    )
    if output is not None:
        document = {
            "environment": environment.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
            "bundles": {name: each.model_dump(mode="json") for name, each in results.items()},
        }
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return not any(result.failures for result in results.values())


def _check_length(bundles: Mapping[str, Bundle], sequence_length: int) -> None:
    for name, bundle in bundles.items():
        longest = bundle.manifest.preprocessing.max_length
        if sequence_length > longest:
            raise InputError(
                "the model takes no text of this length",
                where=name,
                given=f"--sequence-length {sequence_length}",
                fix=f"use at most {longest}",
            )


def _show(results: Mapping[str, CaseResult], settings: BenchmarkSettings) -> None:
    """A table that fits a narrow terminal: bundles by number, and failures below it."""
    table = Table()
    for title in ("#", "batch x tokens", "median ms", "95% interval", "p90", "texts/s", "noise"):
        table.add_column(title, justify="right", no_wrap=True)
    failures = []
    for number, (name, result) in enumerate(results.items(), start=1):
        console().print(f" {number}  {name}", soft_wrap=True)
        for shape in settings.shapes:
            found = result.at(shape)
            if found is None or isinstance(found, Failure):
                table.add_row(str(number), str(shape), "failed")
                if found is not None:
                    failures.append(f"{number} at {shape} failed: {found.error}")
                continue
            table.add_row(
                str(number),
                str(shape),
                f"{found.median_ms:.3f}",
                f"{found.interval.low:.3f}-{found.interval.high:.3f}",
                f"{found.p90_ms:.3f}",
                f"{found.throughput:.0f}",
                found.noise.verdict,
            )
    console().print(table)
    for line in failures:
        console().print(line, soft_wrap=True, style="red")
