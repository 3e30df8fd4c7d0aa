"""The command `auto`: a budget in, a recipe and its bundles out."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.options import (
    ColumnOption,
    LabelOption,
    StoreOption,
    find_splits,
    open_store,
)

if TYPE_CHECKING:
    from compressor.errors import BudgetError
    from compressor.recipe.schema import Recipe
    from compressor.report.schema import Report
    from compressor.search.auto import AutoSettings
    from compressor.search.found import Search
    from compressor.store import RunStore

__all__ = ["add_commands"]

RECIPE = "recipe.yaml"
SEARCH = "search.json"
COMMENT = "Found by `compressor auto`."
_FOUND = "leave it out: auto finds them; to choose them yourself, use `compressor run`"
OWN = {
    "passes": _FOUND,
    "variants": _FOUND,
    "model": "use --model",
    "output": "use --output",
    "budget": "use --max-drop, --max-ms and --max-mb",
}
"""Settings of a recipe that are no matter of --set -> what to do instead."""


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(auto)


def auto(
    model: Annotated[Path, typer.Option("--model", "-m", help="The fine-tuned checkpoint folder.")],
    data: Annotated[
        Path, typer.Option("--data", "-d", help="Folder with train, validation and test files.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the recipe, report and bundles.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(help="Where to run; the search uses the first that can run here. Repeatable."),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, help="Points of accuracy that may be lost.")
    ] = 1.0,
    max_ms: Annotated[
        float | None, typer.Option(min=0.001, help="Longest median time of a run, in ms.")
    ] = None,
    max_mb: Annotated[float | None, typer.Option(min=0.001, help="Largest bundle, in MB.")] = None,
    unlabeled: Annotated[
        Path | None,
        typer.Option(help="File with more training inputs, one per line; the model labels them."),
    ] = None,
    column: ColumnOption = None,
    label: LabelOption = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Longest input in tokens, or samples of a recording.",
            show_default="the model's limit",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads of a run.")] = 1,
    sequence_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length of a timed input.",
            show_default="128 tokens, 384 of a question, 16000 samples of sound",
        ),
    ] = None,
    time_limit: Annotated[
        float,
        typer.Option(min=1, help="Minutes to search; the best of what is trained by then is used."),
    ] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Any other setting of the recipe, such as task=text-embedding or "
            "data.image=photo. Repeatable.",
        ),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Find the fastest shape of a model within a budget, train it, and run it as a recipe.

    Also writes the recipe that it found, for you to change and run again.
    """
    from compressor.recipe.load import recipe_of
    from compressor.search.auto import AutoSettings

    for each in set_ or ():
        _check_own(each)
    task = _task(model, set_ or ())
    columns = {**_columns(task, column, label), "max_length": max_length}
    limits = {"max_accuracy_drop": max_drop, "max_latency_ms": max_ms, "max_size_mb": max_mb}
    recipe = recipe_of(
        {
            "name": output.name or "auto",
            "model": str(model.absolute()),
            "task": task,  # so that it is not looked for again
            "data": {**find_splits(data), **_given(columns)},
            "targets": list(dict.fromkeys(target or ["onnxruntime", "openvino"])),
            "budget": {"require": "any", **_given(limits)},
            "benchmark": {"threads": threads, **_given({"sequence_length": sequence_length})},
            "seed": seed,
            "output": str(output.absolute()),
        },
        overrides=set_ or (),
    )
    settings = AutoSettings(
        time_limit_s=60 * time_limit,
        unlabeled=None if unlabeled is None else unlabeled.absolute(),
    )
    report = _search_and_run(recipe, settings, open_store(store), output)
    raise typer.Exit(report.verdict.exit_code)


def _search_and_run(
    recipe: Recipe, settings: AutoSettings, store: RunStore, output: Path
) -> Report:
    """Search, write the recipe that was found, run it, and show what came out.

    Raises:
        BudgetError: No shape keeps the accuracy.
    """
    from compressor.cli.progress import ConsoleProgress, show_report
    from compressor.pipeline import run as run_recipe
    from compressor.recipe.write import write_recipe
    from compressor.report.wording import cost_text
    from compressor.search.auto import search
    from compressor.search.found import found_recipe, variants
    from compressor.training.teacher import TeacherMemory

    begun = time.monotonic()
    memory = TeacherMemory()
    with ConsoleProgress() as progress, contextlib.closing(memory):
        found = search(recipe, settings, store=store, progress=progress, memory=memory)
        _write(found, [], output)
        if found.stopped is not None:
            progress.warn(f"the search ended early: {found.stopped}")
        if found.best is None:
            raise _none_holds(found)
        chosen = found_recipe(recipe, found)
        write_recipe(chosen, output / RECIPE, COMMENT)
        mending = chosen.variants.keys() - variants(recipe.targets).keys()
        report = run_recipe(
            chosen, store=store, progress=progress, teacher_memory=memory, may_fail=mending
        )
        left = report.recipe["variants"].keys()
        if left != chosen.variants.keys():
            kept = {name: each for name, each in chosen.variants.items() if name in left}
            write_recipe(chosen.model_copy(update={"variants": kept}), output / RECIPE, COMMENT)
    measured = _measured(found, report)
    _write(found, [data for data, _ in measured], output)
    show_report(
        report,
        *(text for _, text in measured),
        f"took: {cost_text(time.monotonic() - begun, report.peak_memory_bytes)}",
        f"recipe: {output / RECIPE}",
        f"report: {output / 'report.html'}",
    )
    return report


def _write(found: Search, measured: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Keep what was searched, and what was measured of it, beside the report."""
    from compressor.search.found import describe

    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**describe(found), "measured": list(measured)}, indent=2)
    (output / SEARCH).write_text(text + "\n", encoding="utf-8")


def _none_holds(found: Search) -> BudgetError:
    from compressor.errors import BudgetError

    nearest = min(found.trials, key=lambda each: each.drop_points, default=None)
    if nearest is None:
        return BudgetError(
            "no training ended within --time-limit",
            where=found.table.target,
            given=found.stopped or "nothing was trained",
            fix="allow more time: the same command goes on from what was measured and trained",
        )
    speed = f"{nearest.solution.latency_ms:.3g} ms"
    return BudgetError(
        "none of the trained shapes keeps the accuracy within --max-drop",
        where=found.table.target,
        given=f"the nearest loses {nearest.drop_points:.1f} points at {speed}",
        fix="allow a larger --max-drop, or more time with --time-limit",
    )


def _check_own(override: str) -> None:
    """Refuse to set what auto finds, or what has an option of its own.

    Raises:
        RecipeError: It is one of those.
    """
    from compressor.errors import Problem, RecipeError

    path = override.partition("=")[0].strip()
    fix = OWN.get(path.partition(".")[0])
    if path in ("benchmark", "data"):
        fix = "set individual values, such as benchmark.rounds=9 or data.image=photo"
    if fix is not None:
        what = "auto does not accept this setting through --set"
        problem = Problem(what, given=f"--set {override}", fix=fix)
        raise RecipeError([problem], where="the command line")


def _task(model: Path, overrides: Sequence[str]) -> str:
    """The task that is named, or that of the checkpoint."""
    from compressor.tasks import infer_task

    named = (each.partition("=") for each in reversed(overrides))
    given = next((value.strip() for path, _, value in named if path.strip() == "task"), None)
    return given or infer_task(model, labelled=True)


def _columns(task: str, column: str | None, label: str | None) -> dict[str, str]:
    """Field of the data -> its column, of those that are named."""
    from compressor.tasks import TASKS, get_task

    if task not in TASKS:  # told with all that is wrong
        return {}
    return get_task(task).named_columns(column, label)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _measured(found: Search, report: Report) -> list[tuple[dict[str, Any], str]]:
    """What was measured of the shape beside what the latency table said, as data and in words."""
    assert found.best is not None
    predicted = found.best.solution.latency_ms
    lines = []
    for row in report.rows:
        measured = row.latency.get(report.primary_shape)
        same = (row.target, row.variant) == (found.table.target, found.table.variant)
        if same and row.kind == "candidate" and measured is not None:
            off = predicted / measured.median_ms - 1
            interval = measured.interval
            data = {
                "variant": row.variant,
                "target": row.target,
                "predicted_ms": predicted,
                "median_ms": measured.median_ms,
                "low_ms": interval.low,
                "high_ms": interval.high,
                "is_noisy": measured.noise.verdict == "noisy",
            }
            text = (
                f"latency: {predicted:.3g} ms predicted, {measured.median_ms:.3g} ms measured "
                f"({off:+.0%}) for {row.variant} on {row.target}"
            )
            lines.append((data, text))
    return lines
