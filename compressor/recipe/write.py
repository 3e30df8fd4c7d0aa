"""Write a recipe as the YAML that reads back as the same recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from compressor.recipe.schema import Recipe
from compressor.storage import write_atomically
from compressor.tasks import get_task
from targets.discovery import Component

__all__ = ["recipe_yaml", "write_recipe"]


def recipe_yaml(recipe: Recipe, comment: str = "") -> str:
    """A recipe as YAML, without what is as by default.

    Args:
        recipe: What to write; paths are written as they are.
        comment: Lines for the top.
    """
    document = recipe.model_dump(
        mode="json", exclude_defaults=True, exclude={"passes", "variants", "targets"}
    )
    if get_task(recipe.task).preprocessing_type.unit is not None:
        # What is by default follows from the task: a length that is given may be that of another.
        length = recipe.benchmark.sequence_length
        document.setdefault("benchmark", {})["sequence_length"] = length
    document["passes"] = [_entry(each, "pass") for each in recipe.passes]
    document["variants"] = {
        name: [_entry(each, "pass") for each in tail] for name, tail in recipe.variants.items()
    }
    document["targets"] = [_entry(each, "target") for each in recipe.targets]
    above = "".join(f"# {line}\n" for line in comment.splitlines())
    return above + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def write_recipe(recipe: Recipe, path: Path, comment: str = "") -> None:
    """Write a recipe to a file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, recipe_yaml(recipe, comment).rstrip("\n"))


def _entry(component: Component, key: str) -> dict[str, Any]:
    settings = component.model_dump(mode="json", exclude_defaults=True)
    return {key: component.name, **settings}
