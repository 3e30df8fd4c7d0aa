"""The command `profile`: where the time of a run of a bundle goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.files import check_file, write_text

if TYPE_CHECKING:
    from targets.profiling import Profile

__all__ = ["add_commands"]

MOST = 12
"""Lines of the table that are shown by default."""


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(profile)


def profile(
    bundle: Annotated[Path, typer.Argument(help="A bundle: a folder, .tar.zst or .zip.")],
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs per run.")] = 1,
    sequence_length: Annotated[
        int | None,
        typer.Option(min=1, help="Length of each input. [default: 128 tokens, 1 s of sound]"),
    ] = None,
    nodes: Annotated[bool, typer.Option(help="Every node, not every type of node.")] = False,
    output: Annotated[Path | None, typer.Option("--json", help="Write the profile here.")] = None,
) -> None:
    """Show where a bundle spends its time in a run, using the profiler of its runtime."""
    from targets.bundle import Bundle
    from targets.feeds import usual_length
    from targets.profiling import profile as run

    check_file(output)
    opened = Bundle.open(bundle)
    length = usual_length([opened], sequence_length)
    found = run(opened, batch_size=batch_size, length=length, threads=threads)
    _show(found, every=nodes)
    if output is not None:
        write_text(output, found.model_dump_json(indent=1) + "\n")


def _show(found: Profile, *, every: bool) -> None:
    from rich import box
    from rich.table import Table

    from compressor.cli.progress import console
    from compressor.report.wording import milliseconds

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for title in ("ms", "share", "nodes"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("name" if every else "type")
    table.add_column("kernel")
    whole = found.nodes_ms or 1.0
    if every:
        ordered = sorted(found.nodes, key=lambda each: -each.ms)
        rows = [(each.ms, 1, each.name, each.kernel) for each in ordered]
    else:
        rows = [(each.ms, each.count, each.op, each.kernel) for each in found.by_op()]
    shown = rows if every else rows[:MOST]
    for ms, count, name, kernel in shown:
        table.add_row(milliseconds(ms), f"{ms / whole:.0%}", str(count), name, kernel)
    rest = rows[len(shown) :]
    if rest:
        ms, count = sum(each[0] for each in rest), sum(each[1] for each in rest)
        table.add_row(milliseconds(ms), f"{ms / whole:.0%}", str(count), "all others", "")
    console().print(table)
    console().print(
        f"a run takes {milliseconds(found.run_ms)} ms without the profiler; with it, its "
        f"{len(found.nodes)} nodes take {milliseconds(found.nodes_ms)} ms"
    )
