"""The command `inspect`: what a checkpoint is, and what can be done with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(inspect)


def inspect(
    model: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    task: Annotated[
        str | None,
        typer.Option(help="Task of the model.", show_default="inferred from the checkpoint"),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Input length for which the computation is counted."),
    ] = None,
) -> None:
    """Show the family and task of a checkpoint, where its weights and computation are, and what
    each pass can do with it."""
    from rich import box
    from rich.table import Table

    from compressor.cli.progress import console
    from compressor.inspection import inspect_checkpoint
    from compressor.passes import available_passes

    found = inspect_checkpoint(model, task=task, length=length)
    weights = sum(part.num_parameters for part in found.parts)
    work = sum(part.flops for part in found.parts)
    head = "" if found.has_head else " (no head for it yet: compressor finetune gives it one)"
    console().print(f"family:  {found.architecture.family}", soft_wrap=True)
    console().print(f"task:    {found.task}{head}", soft_wrap=True)
    console().print(f"shape:   {found.architecture.describe()}", soft_wrap=True)
    console().print(
        f"size:    {weights / 1e6:.2f}M parameters, {4 * weights / 1e6:.1f} MB in fp32; "
        f"{work / 1e9:.3g} GFLOP for {found.input}",
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("part")
    for title in ("parameters", "share", "MFLOP", "share"):
        table.add_column(title, justify="right")
    for part in found.parts:
        table.add_row(
            part.name,
            f"{part.num_parameters:,}",
            f"{part.num_parameters / weights:.1%}",
            f"{part.flops / 1e6:,.1f}",
            f"{part.flops / work:.1%}" if work else "",
        )
    console().print(table)
    summaries = {name: cls.summary() for name, cls in available_passes().items()}
    width = max(map(len, summaries))
    for name, reason in found.passes.items():
        told = summaries[name] if reason is None else f"cannot be used: {reason}"
        console().print(f"{name:<{width}}  {told}", soft_wrap=True)
