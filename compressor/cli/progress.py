"""Draws the progress of a run: live on a terminal, one line a step elsewhere."""

from __future__ import annotations

import functools
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

if TYPE_CHECKING:
    from compressor.report.schema import Report

__all__ = ["ConsoleProgress", "console", "show_report"]

LOG_EVERY_S = 20.0
"""Seconds between two lines on one step where no terminal shows it live, as in a log file."""


@functools.cache
def console() -> Console:
    """The console for results, on standard output."""
    # What is printed has paths, names and messages of libraries in it: brackets are brackets.
    return Console(highlight=False, markup=False, emoji=False)


def show_report(report: Report, *lines: str) -> None:
    """Print what a run found and its verdict, then some lines that are never cut."""
    from compressor.report.terminal import results_table, verdict_panel

    console().print(results_table(report))
    console().print(verdict_panel(report))
    for line in lines:
        console().print(line, soft_wrap=True)


class ConsoleProgress:
    """A progress that prints a line for each finished step and shows the one that runs."""

    def __init__(self) -> None:
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[line]}", style="dim", markup=False),
            console=console(),
            transient=True,
            disable=not console().is_terminal,
        )
        self._task: TaskID | None = None
        self._title = ""
        self._started = 0.0
        self._told = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def warn(self, line: str) -> None:
        """See `compressor.progress.Progress`."""
        console().print(Text.assemble(("warning:", "yellow"), " ", line), soft_wrap=True)

    def start(self, title: str) -> None:
        """See `compressor.progress.Progress`."""
        self._drop_task()
        self._title, self._started = title, time.monotonic()
        self._told = self._started
        self._task = self._live.add_task(title, total=1.0, line="")

    def update(self, fraction: float, line: str) -> None:
        """See `compressor.progress.Progress`."""
        if self._task is not None:
            self._live.update(self._task, completed=fraction, line=line)
        now = time.monotonic()
        if not console().is_terminal and now - self._told >= LOG_EVERY_S:
            self._told = now
            text = f"  {self._title}: {fraction:.0%} after {now - self._started:.0f} s  {line}"
            console().print(text, soft_wrap=True)

    def finish(self, line: str, *, cached: bool) -> None:
        """See `compressor.progress.Progress`."""
        self._drop_task()
        took = "cached" if cached else f"{time.monotonic() - self._started:.1f} s"
        text = Text.assemble(
            "  ", (f"{self._title:<44}", "bold"), " ", (f"{took:>8}", "cyan"), "  ", line
        )
        if console().is_terminal:
            console().print(text, no_wrap=True, overflow="ellipsis")
        else:
            console().print(text, soft_wrap=True)

    def _drop_task(self) -> None:
        if self._task is not None:
            self._live.remove_task(self._task)
            self._task = None
