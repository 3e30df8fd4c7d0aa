"""Commands on the run store: list, show, remove, prune."""

from __future__ import annotations

from typing import Annotated

import typer

from compressor.cli.options import StoreOption, open_store

__all__ = ["app"]

app = typer.Typer(
    help="List, show and remove what earlier runs left in the store.", no_args_is_help=True
)


@app.command("list")
def list_runs(store: StoreOption = None) -> None:
    """List the runs, the newest first."""
    for run in open_store(store).runs():
        typer.echo(f"{run.run}  {run.name:<20} {len(run.steps):>3} steps  {run.status}")


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="The run, or the beginning of its name.")],
    store: StoreOption = None,
) -> None:
    """Show the steps of a run."""
    from compressor.errors import StoreError

    opened = open_store(store)
    found = [each for each in opened.runs() if each.run.startswith(run)]
    if len(found) != 1:
        raise StoreError(
            "there is no such run" if not found else "several runs begin like this",
            where=opened.root,
            given=run,
            fix="pass a name from `compressor runs list`, long enough to be unique",
        )
    typer.echo(f"{found[0].run}  {found[0].name}  {found[0].status}\noutput: {found[0].output}")
    records = {record.key: record for record in opened.steps()}
    for key in found[0].steps:
        record = records.get(key)
        if record is None:
            typer.echo(f"  {key[:12]}  (unfinished, removed or damaged)")
            continue
        size = sum(each.size_bytes for each in record.files.values()) / 1e6
        typer.echo(f"  {key[:12]}  {record.kind:<24} {record.duration_s:>8.1f} s  {size:>8.1f} MB")


@app.command()
def remove(
    key: Annotated[str, typer.Argument(help="The step, or the beginning of its key.")],
    store: StoreOption = None,
) -> None:
    """Remove a finished step, so that the next run repeats it."""
    from compressor.errors import StoreError

    opened = open_store(store)
    removed = opened.remove(key)
    if not removed:
        raise StoreError(
            "there is no such step",
            where=opened.root,
            given=key,
            fix="pass a key that `compressor runs show RUN` lists",
        )
    for each in removed:
        typer.echo(f"removed {each}")


@app.command()
def prune(
    keep: Annotated[int, typer.Option(min=0, help="Number of newest runs to keep.")] = 3,
    store: StoreOption = None,
) -> None:
    """Forget all but the newest runs, with every step that only older ones used."""
    count, size = open_store(store).prune(keep)
    typer.echo(f"removed {count} steps, {size / 1e6:.1f} MB")
