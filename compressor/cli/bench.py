"""What ``compressor bench`` prints and writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from compressor.cli.files import check_file, write_text
from compressor.cli.options import benchmark_settings
from compressor.cli.progress import ConsoleProgress, console
from compressor.report.wording import NONE, milliseconds, significant
from targets.bench import BenchEntry, BenchReport, Sweep, bench
from targets.benchmark import Failure
from targets.bundle import Bundle
from targets.feeds import usual_length
from targets.measurement import LEAST_ROUNDS, Interval, Measurement
from targets.wording import plural
from targets.workloads import read_texts

__all__ = ["bench_bundles", "show_bench"]


def bench_bundles(
    bundles: Sequence[Path],
    sweep: Sweep,
    *,
    rounds: int,
    texts: Path | None,
    output: Path | None,
) -> bool:
    """Measure bundles, print a table, and write the raw times where asked for.

    Returns:
        Whether every bundle was measured.
    """
    check_file(output)
    opened = {str(bundle): Bundle.open(bundle) for bundle in bundles}
    every = list(opened.values())
    lengths = tuple(usual_length(every, each) for each in sweep.sequence_lengths)
    lengths = tuple(dict.fromkeys(lengths)) or (usual_length(every),)
    sweep = sweep.model_copy(update={"sequence_lengths": lengths})
    settings = benchmark_settings(
        threads=sweep.threads[0],
        sequence_length=lengths[0],
        batch_sizes=sweep.batch_sizes,
        rounds=rounds,
    )
    read = None if texts is None else read_texts(texts)
    with ConsoleProgress() as progress:
        progress.start(f"measure {plural(len(bundles), 'bundle')}")
        report = bench(opened, sweep, settings, texts=read, on_progress=progress.update)
        progress.finish("", cached=False)
    if output is not None:
        write_text(output, report.model_dump_json(indent=1) + "\n")
    show_bench(report)
    if output is not None:
        console().print(f"raw times: {output}", soft_wrap=True)
    return report.complete


def show_bench(report: BenchReport) -> None:
    """Print a report in a form that fits a narrow terminal: bundles by number, failures below."""
    names = list(dict.fromkeys(entry.bundle for entry in report.entries))
    for number, name in enumerate(names, start=1):
        console().print(f"{number}  {name}", soft_wrap=True)
    console().print(_latencies(report, names))
    for entry in report.entries:
        for line in _more(entry, names.index(entry.bundle) + 1):
            console().print(line, soft_wrap=True)
    for line in _slowed(report):
        console().print(line, soft_wrap=True, style="yellow")
    for line in _failures(report, names):
        console().print(line, soft_wrap=True, style="red")
    environment = report.environment
    console().print(
        f"{environment.cpu}, {environment.num_cpus} CPUs, load {environment.load_average:.2f}"
    )


def _latencies(report: BenchReport, names: Sequence[str]) -> Table:
    has_energy = any(
        found.energy_mj is not None
        for entry in report.entries
        for found in entry.result.measurements
    )
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption_justify="left",
        caption="; ".join(_legend(report, has_energy)) or None,
    )
    titles = ["#", "threads", "batch x\nlength", "ms", "95% interval", "p90", "inputs\nper s"]
    for title in (*titles, *(["mJ"] if has_energy else []), "noise"):
        table.add_column(title, justify="right", no_wrap=True)
    for entry in report.entries:
        number = str(names.index(entry.bundle) + 1)
        for shape in report.sweep.shapes:
            found = entry.result.at(shape)
            cells = _cells(found, has_energy) if isinstance(found, Measurement) else ("failed",)
            table.add_row(number, str(entry.threads), str(shape), *cells)
    return table


def _legend(report: BenchReport, has_energy: bool) -> list[str]:
    lines = []
    if report.sweep.real_texts:
        lines.append("real: texts as long as the test data")
        lines.append("raw text: tokenization included")
    fewest = [len(found.rounds) for entry in report.entries for found in entry.result.measurements]
    if min(fewest, default=LEAST_ROUNDS) < LEAST_ROUNDS:
        lines.append(f"with fewer than {LEAST_ROUNDS} rounds the interval is their range")
    if has_energy:
        lines.append("mJ: energy per input, all processors")
    return lines


def _cells(found: Measurement, has_energy: bool) -> tuple[str, ...]:
    energy = "" if found.energy_mj is None else significant(found.energy_mj)
    return (
        milliseconds(found.median_ms),
        NONE
        if len(found.rounds) < 2
        else f"{milliseconds(found.interval.low)}-{milliseconds(found.interval.high)}",
        milliseconds(found.p90_ms),
        f"{found.throughput:.0f}",
        *((energy,) if has_energy else ()),
        found.noise.verdict,
    )


def _more(entry: BenchEntry, number: int) -> list[str]:
    title = f"{number} with {plural(entry.threads, 'thread')}"
    lines = []
    start = entry.cold_start
    if start is not None:
        low, high = start.interval
        lines.append(
            f"{title}: cold start {start.median_ms:.0f} ms ({low:.0f}-{high:.0f}) to the first "
            f"answer, {len(start.starts)} starts"
            + (", files out of the page cache" if start.evicted else ", files in the page cache")
        )
    for each in entry.writing:
        reads = ""
        if each.unit == "tokens":
            read = significant(each.read_per_s)
            reads = f"reads {read} tokens/s ({_ends(each.read_interval)}), "
        lines.append(
            f"{title}, {each.prompt_tokens} {each.unit}: first token after "
            f"{milliseconds(each.first_token_ms)} ms ({_ends(each.first_token_interval)}), {reads}"
            f"writes {significant(each.written_per_s)} tokens/s ({_ends(each.written_interval)})"
        )
    run = entry.sustained
    if run is not None:
        lines.append(
            f"{title}: {run.verdict} over {run.duration_s:.0f} s, {run.throughput:.1f} inputs/s; "
            f"the last third takes {run.slowdown:.2f}x the time of the first"
        )
    return lines


def _ends(interval: Interval) -> str:
    return f"{significant(interval.low)}-{significant(interval.high)}"


def _slowed(report: BenchReport) -> Iterator[str]:
    """A warning where times do not compare with those of an earlier run."""
    measured = [each for entry in report.entries for each in entry.result.measurements]
    worst = max(measured, key=_slowest, default=None)
    if worst is not None and worst.is_slowed:
        yield (
            f"the machine is slower than it has been: {' and '.join(worst.slowed_by)}. "
            "Compare bundles within this run, not with an earlier one"
        )


def _slowest(measured: Measurement) -> tuple[int, float]:
    slower = (measured.slowdown or 1.0) * (measured.wakeup_slowdown or 1.0)
    return len(measured.slowed_by), slower


def _failures(report: BenchReport, names: Sequence[str]) -> list[str]:
    lines = []
    for entry in report.entries:
        number = names.index(entry.bundle) + 1
        for shape in report.sweep.shapes:
            found = entry.result.at(shape)
            if isinstance(found, Failure):
                title = f"{number} with {plural(entry.threads, 'thread')} at {shape}"
                lines.append(f"{title} failed: {found.error}")
        for what, error in entry.failures.items():
            lines.append(f"{number} with {plural(entry.threads, 'thread')}: {what} failed: {error}")
    return list(dict.fromkeys(lines))
