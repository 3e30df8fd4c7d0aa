"""``compressor report``: the page of a run anew, or several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(report)


def report(
    reports: Annotated[
        list[Path],
        typer.Argument(
            metavar="REPORT...", help="Each a report.json, or the folder that holds it."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The HTML file to write. [default: beside a single report; comparison.html for "
            "several]",
        ),
    ] = None,
) -> None:
    """Write the HTML page of a report anew, or one page that compares several.

    The page of several shows the runs side by side: what each ships, all measured rows with
    filters, accuracy against latency, the history, and what cannot be compared.
    """
    from compressor.report.files import read_report, report_file, write_files
    from compressor.report.html import render_comparison, render_html

    files = [report_file(path) for path in reports]
    found = [read_report(path) for path in files]
    if output is None:
        output = files[0].with_suffix(".html") if len(files) == 1 else Path("comparison.html")
    if output.name in ("", ".."):
        raise typer.BadParameter(f"--output {output} is a folder; pass a file, such as page.html")
    if any(output.resolve() == path.resolve() for path in files):
        raise typer.BadParameter(f"--output {output} is one of the reports; pass another file")
    page = render_html(found[0]) if len(found) == 1 else render_comparison(found, files)
    write_files(output.parent, {output.name: page.encode()})
    typer.echo(f"written: {output}")
