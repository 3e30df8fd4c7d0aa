"""A recipe that was written reads back as the same recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.recipe import Recipe, builtin_recipes, load_recipe
from compressor.recipe.write import recipe_yaml, write_recipe


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_a_recipe_reads_back_as_it_was(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, values={"model": "/model", "output": str(tmp_path)})
    write_recipe(recipe, tmp_path / "new" / "recipe.yaml", "Found.\nBy a search.")
    text = (tmp_path / "new" / "recipe.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Found.\n# By a search.\nname: ")
    assert load_recipe(tmp_path / "new" / "recipe.yaml") == recipe


def test_what_is_as_by_default_is_left_out() -> None:
    recipe = load_recipe("fast", values={"model": "/model"})
    text = recipe_yaml(recipe)
    assert "pass: trim_vocabulary\n" in text
    assert "keep_first" not in text
    assert "seed" not in text


def test_a_length_that_is_usual_elsewhere_reads_back(tmp_path: Path) -> None:
    values = {"model": "/model", "task": "question-answering", "benchmark.sequence_length": 128}
    recipe = load_recipe("int8", values=values)
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml").benchmark.sequence_length == 128


def test_a_shape_reads_back(tmp_path: Path) -> None:
    shape = [{"layer": 1, "heads": 3, "ffn": 24}]
    document = {"pass": "prune", "shape": shape}
    recipe = load_recipe("fast", values={"model": "/model", "passes": [document, "export"]})
    write_recipe(recipe, tmp_path / "recipe.yaml")
    read: Recipe = load_recipe(tmp_path / "recipe.yaml")
    assert read.passes == recipe.passes
    assert read.passes[0].settings()["shape"] == shape
