"""The command that hands a bundle over to a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

__all__ = ["add_commands"]


class _WithFormats(TyperCommand):
    """Names the formats below the help, and finds them only when it is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # click's, which typer brings
        self.epilog = _described()
        super().format_help(ctx, formatter)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(cls=_WithFormats)(package)


def package(
    bundle: Annotated[Path, typer.Argument(help="A bundle: a folder, .tar.zst or .zip.")],
    for_: Annotated[str, typer.Option("--for", metavar="FORMAT", help="The server: see below.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="An option: max_batch_size=16. Repeatable."),
    ] = None,
) -> None:
    """Convert a bundle into what a model server accepts; the bundle itself is not changed."""
    from compressor.errors import PackageError, choices
    from compressor.recipe.settings import read_settings
    from compressor.serving import available_formats
    from targets.bundle import Bundle

    formats = available_formats()
    if for_ not in formats:
        raise PackageError(
            "there is no such format",
            where="--for",
            given=for_,
            fix=choices(for_, formats),
        )
    settings = read_settings(formats[for_], set_ or (), f"the options of {for_}")
    packaged = settings.package(Bundle.open(bundle), output)
    for each in packaged.files:
        typer.echo(output / each)
    for note in packaged.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"start: {packaged.command}")


def _described() -> str:
    from compressor.serving import available_formats

    parts = [
        f"{name}: {cls.summary()} Options: {', '.join(cls.model_fields)}."
        for name, cls in available_formats().items()
    ]
    return "\n\n".join(("Formats:", *parts))
