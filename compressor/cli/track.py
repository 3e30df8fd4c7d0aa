"""``compressor track``: hand a report to a tracking server, for a release step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(track)


def track(
    report: Annotated[Path, typer.Argument(help="report.json, or the folder that holds it.")],
    to: Annotated[str, typer.Option(metavar="TRACKER", help="mlflow, or json for a file.")],
    uri: Annotated[
        str | None,
        typer.Option(
            help="Address of the MLflow server, or the file to write. "
            "[default: MLFLOW_TRACKING_URI; record.json beside the report]"
        ),
    ] = None,
    experiment: Annotated[
        str, typer.Option(help="The group of runs that this one belongs to.")
    ] = "compressor",
    gate: Annotated[
        Path | None, typer.Option(help="The `compressor gate --output` file for this report.")
    ] = None,
    register: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Register bundles to ship as versions of this model."),
    ] = None,
    even_if_missed: Annotated[
        bool,
        typer.Option("--even-if-missed", help="Register even if the verdict is not a pass."),
    ] = False,
) -> None:
    """Record a run on a tracking server: parameters, metrics, curves, files and models.

    Tracking the same report twice leaves one record. Exits with 10 if it cannot be recorded;
    nothing is lost, and the same command can be run again. Sign bundles before tracking them: a
    signature that is added later makes a new version.
    """
    from compressor.errors import choices
    from compressor.tracking import available_trackers
    from compressor.tracking.record import make_record

    trackers = available_trackers()
    if to not in trackers:
        raise typer.BadParameter(f"there is no tracker {to!r}: {choices(to, trackers)}")
    record = make_record(
        report,
        experiment=experiment,
        gate=gate,
        register=register,
        even_if_missed=even_if_missed,
    )
    tracked = trackers[to](uri=uri).track(record)
    typer.echo(f"{'tracked' if tracked.is_new else 'was tracked before'}: {tracked.place}")
    for line in tracked.models:
        typer.echo(line)
