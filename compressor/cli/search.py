"""The command `search`: a recipe and a space in, the best recipe and its bundles out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.options import (
    ColumnOption,
    DataOption,
    LabelOption,
    ModelOption,
    OutputOption,
    RecipeArgument,
    SetOption,
    StoreOption,
    open_store,
    read_recipe,
)

if TYPE_CHECKING:
    from rich.table import Table

    from compressor.search.trials import Trials

__all__ = ["add_commands"]

RECIPE = "recipe.yaml"
STUDY = "study.journal"


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(search)


def search(
    recipe: RecipeArgument,
    space: Annotated[Path, typer.Option(help="YAML file that maps recipe settings to values.")],
    trials: Annotated[int, typer.Option(min=1, help="Total number of trials in the study.")] = 20,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of trials to run in parallel, through Ray.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster, such as host:6379.")
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="File of the study. [default: study.journal in --output]")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=0, help="Minutes after which no new trial is started.")
    ] = None,
    model: ModelOption = None,
    data: DataOption = None,
    output: OutputOption = None,
    column: ColumnOption = None,
    label: LabelOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
) -> None:
    """Find the best settings of a recipe within its budget, and run it with them.

    The same command resumes an interrupted search; a higher --trials adds trials to the study.
    """
    from compressor import distributed
    from compressor.cli.progress import ConsoleProgress, console, show_report
    from compressor.pipeline import run as run_recipe
    from compressor.recipe.write import write_recipe
    from compressor.search.space import read_space
    from compressor.search.trials import search_settings

    if ray_address is not None and workers is None:
        raise typer.BadParameter("--ray-address needs --workers, the number of parallel trials")
    if distributed.size() > 1:
        raise typer.BadParameter("start it without a launcher: --workers runs trials in parallel")
    loaded = read_recipe(recipe, model, data, output, set_, column, label)
    opened = open_store(store)
    choices = read_space(space, loaded)
    with ConsoleProgress() as progress:
        found = search_settings(
            loaded,
            choices,
            num_trials=trials,
            study=(study or loaded.output / STUDY).absolute(),
            store=opened,
            progress=progress,
            workers=workers,
            ray_address=ray_address,
            time_limit_s=None if time_limit is None else 60 * time_limit,
        )
        if found.stopped is not None:
            progress.warn(f"the search ended early: {found.stopped}")
    console().print(_table(found))
    best = found.recipe(loaded)
    write_recipe(best, loaded.output / RECIPE, "Found by `compressor search`.")
    with ConsoleProgress() as progress:
        report = run_recipe(best, store=opened, progress=progress)
    show_report(
        report,
        f"trials: {loaded.output / 'trials.json'}",
        f"recipe: {loaded.output / RECIPE}",
        f"report: {loaded.output / 'report.html'}",
    )
    raise typer.Exit(report.verdict.exit_code)


def _table(found: Trials) -> Table:
    """The trials, with the best of them marked."""
    from rich import box
    from rich.table import Table

    from compressor.search.trials import short

    names = list(dict.fromkeys(name for each in found.trials for name in each.settings))
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("trial", *names, "state", "faster", "drop"):
        table.add_column(title, justify="left" if title == "state" else "right")
    best = found.best
    for each in found.trials:
        shown = [short(each.settings.get(name, "")) for name in names]
        end = [each.state, "", ""]
        if each.value is not None:
            keeps = "within the budget" if each.value.shortfall == 0 else "misses the budget"
            end = [keeps, f"{each.value.speedup:.2f}x", f"{each.value.drop_points:.1f}"]
        is_best = best is not None and each.number == best.number
        number = f"best {each.number}" if is_best else str(each.number)
        table.add_row(number, *shown, *end, style="bold" if is_best else None)
    return table
