"""What ``compressor bench`` prints and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from compressor.cli.progress import ConsoleProgress, console
from targets.benchmark import BenchmarkCase, BenchmarkSettings, CaseResult, Failure, benchmark
from targets.bundle import Bundle
from targets.environment import Environment

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
    with ConsoleProgress() as progress:
        progress.start(f"measure {len(bundles)} bundles")
        results = benchmark(
            {name: BenchmarkCase(bundle.folder) for name, bundle in opened.items()},
            settings,
            lambda done, total, line: progress.update(done / total, line),
        )
        progress.finish("", cached=False)
    environment = Environment.here()
    console().print(_table(results, settings))
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


def _table(results: dict[str, CaseResult], settings: BenchmarkSettings) -> Table:
    table = Table()
    table.add_column("bundle", overflow="fold")
    for title in ("batch x tokens", "median ms", "95% interval", "p90", "p99", "texts/s", "noise"):
        table.add_column(title, justify="right")
    for name, result in results.items():
        for shape in settings.shapes:
            found = result.at(shape)
            if found is None or isinstance(found, Failure):
                reason = "" if found is None else found.error.what
                table.add_row(name, str(shape), "failed", reason)
                continue
            table.add_row(
                name,
                str(shape),
                f"{found.median_ms:.3f}",
                f"{found.interval.low:.3f}-{found.interval.high:.3f}",
                f"{found.p90_ms:.3f}",
                f"{found.p99_ms:.3f}",
                f"{found.throughput:.0f}",
                found.noise.verdict,
            )
    return table
