"""Commands that explain what there is: schema, recipes, passes, targets."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (schema, recipes, passes, targets):
        app.command()(command)


def schema() -> None:
    """Print the JSON Schema of a recipe, for editors that check YAML as you type."""
    from compressor.recipe import recipe_json_schema

    typer.echo(json.dumps(recipe_json_schema(), indent=2))


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this built-in recipe.")] = None,
) -> None:
    """List the built-in recipes, or print one as a starting point for your own."""
    from compressor.errors import Problem, RecipeError, choices
    from compressor.recipe import builtin_recipes

    known = builtin_recipes()
    if name is None:
        for each, path in known.items():
            first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            typer.echo(f"{each:<12} {first}")
        return
    if name not in known:
        problem = Problem(
            "there is no such built-in recipe",
            given=name,
            fix=choices(name, known),
        )
        raise RecipeError([problem], where=name)
    typer.echo(known[name].read_text(encoding="utf-8"), nl=False)


def passes() -> None:
    """List the passes, with the publication that describes each."""
    from compressor.passes import available_passes

    for name, cls in available_passes().items():
        typer.echo(
            f"{name:<16} {cls.summary()}\n{'':<16} {cls.consumes} -> {cls.produces}; {cls.paper}"
        )


def targets() -> None:
    """List the targets, and whether each can build and run here."""
    from targets.registry import available

    for name, cls in available().items():
        needed = [field for field, info in cls.model_fields.items() if info.is_required()]
        if needed:  # of another distribution
            typer.echo(f"{name:<14} depends on its settings: {', '.join(needed)}")
            continue
        target = cls()
        build, run = target.cannot_lower(), target.cannot_run()
        typer.echo(f"{name:<14} build: {build or 'yes'}\n{'':<14} run:   {run or 'yes'}")
