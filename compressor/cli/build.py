"""Commands of the build half: validate, plan, run, finetune."""

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
    SettingOption,
    StoreOption,
    find_splits,
    open_store,
    read_recipe,
)

if TYPE_CHECKING:
    from compressor.planning import Plan
    from targets.discovery import Component

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (run, validate, plan, finetune):
        app.command()(command)


def run(
    recipe: RecipeArgument,
    model: ModelOption = None,
    data: DataOption = None,
    output: OutputOption = None,
    column: ColumnOption = None,
    label: LabelOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    measure_again: Annotated[
        bool,
        typer.Option("--measure-again", help="Measure latencies again, as after a noisy run."),
    ] = False,
) -> None:
    """Compress a model, lower it to every target, measure it, and judge it against the budget."""
    from compressor.cli.progress import ConsoleProgress, show_report
    from compressor.pipeline import run as run_recipe

    loaded = read_recipe(recipe, model, data, output, set_, column, label)
    with ConsoleProgress() as progress:
        report = run_recipe(
            loaded, store=open_store(store), progress=progress, measure_again=measure_again
        )
    again = ["to measure again on an idle machine, add --measure-again"]
    show_report(
        report,
        *(again if report.verdict.noisy else []),
        f"report: {loaded.output / 'report.html'}",
    )
    raise typer.Exit(report.verdict.exit_code)


def validate(
    recipe: RecipeArgument,
    model: ModelOption = None,
    data: DataOption = None,
    output: OutputOption = None,
    column: ColumnOption = None,
    label: LabelOption = None,
    set_: SetOption = None,
) -> None:
    """Check a recipe, its files, columns, passes, targets and libraries; trains nothing."""
    from compressor.planning import validate_recipe

    loaded = read_recipe(recipe, model, data, output, set_, column, label)
    planned = validate_recipe(loaded)
    _echo_warnings(planned)
    typer.echo(f"{loaded.name}: valid, task {loaded.task}")


def plan(
    recipe: RecipeArgument,
    model: ModelOption = None,
    data: DataOption = None,
    output: OutputOption = None,
    column: ColumnOption = None,
    label: LabelOption = None,
    set_: SetOption = None,
) -> None:
    """Print what a run would do: every pass, the shapes it leaves, and the targets."""
    from compressor.planning import validate_recipe
    from compressor.report.wording import shape_words

    loaded = read_recipe(recipe, model, data, output, set_, column, label)
    planned = validate_recipe(loaded)
    typer.echo(f"task: {loaded.task}\noriginal: {planned.original.describe()}")
    for variant, steps in planned.chains.items():
        typer.echo(f"\n{variant}:")
        for number, step in enumerate(steps, 1):
            typer.echo(f"  {number}. {step.step.name}{_given(step.step)}")
            typer.echo(f"     {step.outcome.describe()}")
    targets = [each.label + _given(each, exclude={"device"}) for each in loaded.targets]
    typer.echo(f"\ntargets: {', '.join(targets)}")
    limits = loaded.budget.model_dump(exclude_none=True)
    listed = [f"{name} {value}" for name, value in limits.items() if value != {}]
    typer.echo(f"budget: {', '.join(listed)}")
    shapes = ", ".join(map(str, loaded.benchmark.shapes))
    typer.echo(
        f"latency: {shape_words(shapes)}, {loaded.benchmark.threads} threads, "
        f"{loaded.benchmark.rounds} rounds"
    )
    typer.echo(f"output: {loaded.output}")
    _echo_warnings(planned)


def _given(component: Component, exclude: set[str] | None = None) -> str:
    """The settings that a recipe gives, in brackets; empty where it gives none."""
    values = component.model_dump(mode="json", exclude_unset=True, exclude=exclude)
    settings = ", ".join(f"{name}={value}" for name, value in values.items())
    return f" ({settings})" if settings else ""


def finetune(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder to start from.")],
    data: Annotated[Path, typer.Argument(help="Folder with train, validation and test files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the result.")],
    task: Annotated[
        str | None,
        typer.Option(help="Task of the model.", show_default="inferred from the checkpoint"),
    ] = None,
    column: ColumnOption = None,
    label: LabelOption = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Longest input: tokens of a text, samples of a recording.",
            show_default="the model's limit",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, help="Side of the images in pixels.", show_default="the model's"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    set_: SettingOption = None,
    store: StoreOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that holds something else.")
    ] = False,
) -> None:
    """Fine-tune a checkpoint on local data, as a starting point for compression.

    --set takes the settings of the pass `finetune`, such as epochs=4 or learning_rate=2e-4.
    """
    from compressor.cli.progress import ConsoleProgress
    from compressor.finetuning import finetune_checkpoint

    with ConsoleProgress() as progress:
        accuracies = finetune_checkpoint(
            model,
            find_splits(data),
            output,
            task=task,
            column=column,
            label=label,
            max_length=max_length,
            image_size=image_size,
            seed=seed,
            overrides=set_ or (),
            store=open_store(store),
            progress=progress,
            overwrite=overwrite,
        )
    for split, accuracy in accuracies.items():
        typer.echo(f"{split} {accuracy.measure}: {accuracy}")
    typer.echo(f"checkpoint: {output}")


def _echo_warnings(planned: Plan) -> None:
    for warning in planned.warnings:
        typer.echo(f"warning: {warning}")
