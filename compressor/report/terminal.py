"""The results as a table and a verdict for the terminal, from 60 columns on and without colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from compressor.report.schema import Report
from compressor.report.summary import (
    RowText,
    absent_groups,
    accuracy_split,
    device_table,
    measure_of,
    noise_reasons,
    row_texts,
)
from compressor.report.wording import NONE, one_line, shape_words

__all__ = ["results_table", "verdict_panel"]

MIN_NAME_WIDTH = 8
MAX_VARIANT_WIDTH = 24

HEADERS = {
    "latency": "ms",
    "p90": "p90 ms",
    "speedup": "faster",
    "speedup_eager": "vs eager",
    "accuracy": "accuracy",
    "drop": "drop",
    "perplexity": "perplexity",
    "written": "tokens/s",
    "writing_speedup": "faster",
    "size": "size",
    "size_ratio": "smaller",
}

# From the fullest to the leanest; the first that fits is shown. "+": with its interval.
COLUMNS: tuple[tuple[str, ...], ...] = (
    ("latency+", "p90", "speedup+", "speedup_eager", "accuracy+", "drop+", "size", "size_ratio"),
    ("latency+", "speedup+", "speedup_eager", "accuracy", "drop+", "size", "size_ratio"),
    ("latency", "speedup+", "speedup_eager", "accuracy", "drop+", "size", "size_ratio"),
    ("latency", "speedup", "speedup_eager", "accuracy", "drop+", "size"),
    ("latency", "speedup", "speedup_eager", "accuracy", "drop", "size"),
    ("latency", "speedup", "accuracy", "drop", "size"),
)

# Where none of those fits: the first that does with its names folded.
LEAN_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("latency", "speedup", "accuracy", "drop", "size"),
    ("latency", "speedup", "drop", "size"),
    ("latency", "speedup", "drop"),
    ("latency", "drop"),
)

MAX_NOISE_LINES = 3

MARKS = {"chosen": "►", "nearest": "▷", "met": "✓", "missed": "✗", "": " "}
ASCII_MARKS = {"chosen": ">", "nearest": "o", "met": "+", "missed": "x", "": " "}
ASCII_HEAD = box.Box(str(box.SIMPLE_HEAD).replace("─", "-"), ascii=True)
STYLES = {"chosen": "bold green", "nearest": "yellow", "met": "", "missed": "dim", "": ""}


def results_table(report: Report) -> RenderableType:
    """Every row of a report: a table of the measured ones, then why the others were not."""
    return _Results(report)


def verdict_panel(report: Report) -> RenderableType:
    """Whether the budget was met, and a warning where the machine was noisy."""
    verdict = report.verdict
    parts: list[RenderableType] = [Text(one_line(line)) for line in verdict.lines]
    if verdict.noisy:
        reasons = noise_reasons(report)
        parts.append(
            Text(
                "NOISY MACHINE: other work disturbed these latencies; do not trust them. Measure "
                "again on an idle machine.",
                style="bold yellow",
            )
        )
        parts += [Padding(Text(one_line(r)), (0, 0, 0, 2)) for r in reasons[:MAX_NOISE_LINES]]
        if len(reasons) > MAX_NOISE_LINES:
            parts.append(
                Text(f"  and {len(reasons) - MAX_NOISE_LINES} more disturbed measurements")
            )
    title = "BUDGET MET" if verdict.met else "BUDGET NOT MET"
    return Panel(
        Group(*parts),
        title=Text(f" {title} ", style="bold"),
        title_align="left",
        border_style="green" if verdict.met else "red",
        padding=(0, 1),
    )


@dataclass(frozen=True)
class _Results:
    """Picks its columns when it learns how wide the terminal is."""

    report: Report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = ASCII_MARKS if options.ascii_only else MARKS
        measured = [text for text in row_texts(self.report) if text.row.status == "measured"]
        if measured:
            yield self._widest_table(console, options, measured, marks)
            yield from _legend(self.report, measured, marks)
        misses = [text for text in measured if text.mark in ("nearest", "missed")]
        if misses:
            yield Text("\nMissed the budget", style="bold")
            yield _list([([text], "; ".join(text.row.unmet)) for text in misses])
        yield from _devices(self.report)
        absent = _absent_lines(self.report)
        if absent:
            yield Text("\nNot measured here", style="bold")
            yield _list([(group, line) for line, group in absent.items()])

    def _widest_table(
        self,
        console: Console,
        options: ConsoleOptions,
        texts: Sequence[RowText],
        marks: dict[str, str],
    ) -> Table:
        wide = options.update(max_width=1000)
        for columns in map(_judged_by(texts), COLUMNS):
            table = _table(texts, marks, columns)
            if Measurement.get(console, wide, table).maximum <= options.max_width:
                return table
        for columns in map(_judged_by(texts), LEAN_COLUMNS):
            folded = _table(texts, marks, columns, max_name_width=MIN_NAME_WIDTH)
            if Measurement.get(console, wide, folded).maximum <= options.max_width:
                break
        return _table(texts, marks, columns)


def _judged_by(texts: Sequence[RowText]) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """What takes the columns of a table.

    Of language models the perplexity is what counts, and of those that write the tokens a second.
    """
    instead: dict[str, tuple[str, ...]] = {}
    if any(text.perplexity != NONE for text in texts):
        instead |= {"accuracy": (), "drop": ("perplexity",)}
    if any(text.written != NONE for text in texts):
        instead |= {"p90": (), "speedup": ("written", "writing_speedup"), "speedup_eager": ()}

    def replaced(columns: tuple[str, ...]) -> tuple[str, ...]:
        found: list[str] = []
        for column in columns:
            name, plus, _ = column.partition("+")
            own = instead.get(name, (name,))
            found += [each if each == "perplexity" else each + plus for each in own]
        return tuple(found)

    return replaced


def _table(
    texts: Sequence[RowText],
    marks: dict[str, str],
    columns: tuple[str, ...],
    *,
    max_name_width: int | None = None,
) -> Table:
    table = Table(
        box=ASCII_HEAD if marks is ASCII_MARKS else box.SIMPLE_HEAD, padding=0, pad_edge=False
    )
    table.add_column("", no_wrap=True)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column(
        "variant",
        overflow="fold",
        min_width=MIN_NAME_WIDTH,
        max_width=max_name_width or MAX_VARIANT_WIDTH,
    )
    table.add_column("target", overflow="fold", min_width=MIN_NAME_WIDTH, max_width=max_name_width)
    table.add_column("precision", no_wrap=True)
    for name in columns:
        table.add_column(HEADERS[name.partition("+")[0]], justify="right", no_wrap=True)
    previous: str | None = None
    for text in texts:
        repeated, previous = text.row.variant == previous, text.row.variant
        table.add_row(
            marks[text.mark],
            str(text.number),
            Text("" if repeated else one_line(text.row.variant)),
            Text(text.target),
            text.row.precision,
            *(Text(_cell(text, name)) for name in columns),
            style=STYLES[text.mark],
        )
    return table


def _cell(text: RowText, column: str) -> str:
    name, with_interval, _ = column.partition("+")
    value: str = getattr(text, name)
    if name == "latency" and text.noisy:
        value += "~"
    interval: str = getattr(text, f"{name}_interval") if with_interval else ""
    return f"{value} ({interval})" if interval else value


def _legend(report: Report, texts: Sequence[RowText], marks: dict[str, str]) -> RenderResult:
    present = {text.mark for text in texts}
    meanings = {
        "chosen": "the one to ship on its target: the fastest that met the budget",
        "nearest": "the nearest to the budget on its target, which misses it",
        "met": "meets the budget",
        "missed": "misses the budget",
    }
    for mark, meaning in meanings.items():
        if mark in present:
            yield Text(f"{marks[mark]} {meaning}")
    if any(text.noisy or text.written.endswith("~") for text in texts):
        yield Text("~ noisy: the machine was busy, do not trust this time")
    split, measure = accuracy_split(report), measure_of(report)
    own = "" if measure == "accuracy" else f"the {measure} "
    yield Text(
        f"ms: median latency at {shape_words(report.primary_shape)}; "
        + (
            "tokens/s: written after the first; "
            if any(text.written != NONE for text in texts)
            else ""
        )
        + "faster: than the fastest uncompressed model on the same target"
        + (
            f"; accuracy: {own}on the {split} data; drop: accuracy lost, in points" if split else ""
        ),
        style="dim",
    )


def _devices(report: Report) -> RenderResult:
    """One column a remote device, and why there is none."""
    found = device_table(report)
    if found is None:
        return
    yield Text("\nOn the devices, ms", style="bold")
    if found.rows:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("#", justify="right", no_wrap=True)
        for title in ("variant", "target"):
            table.add_column(title, overflow="fold")
        for name in found.names:
            table.add_column(Text(name), justify="right")
        for text, cells in found.rows:
            told = (f"{value} ({more})" if more else value for value, more in cells)
            name = f"{one_line(text.row.variant)} {text.row.precision}"
            table.add_row(str(text.number), Text(name), Text(text.target), *map(Text, told))
        yield table
    for name, reason in found.absent:
        yield Text(f"{name}: {reason}", style="red")


def _absent_lines(report: Report) -> dict[str, list[RowText]]:
    """First line of why rows were not measured -> these rows; the report has the whole text."""
    lines: dict[str, list[RowText]] = {}
    for group in absent_groups(report):
        for text in group:
            reason = one_line((text.row.reason or text.reason).strip().splitlines()[0])
            lines.setdefault(f"{text.state}: {reason}", []).append(text)
    return lines


def _list(entries: Sequence[tuple[Sequence[RowText], str]]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for texts, line in entries:
        names = ", ".join(
            f"{one_line(text.row.variant)} ({text.target}, {text.row.precision})" for text in texts
        )
        numbers = ",".join(str(text.number) for text in texts)
        grid.add_row(f" {numbers}", Text(f"{names}: {line}"))
    return grid
