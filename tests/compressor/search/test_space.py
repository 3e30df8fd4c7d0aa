"""Search spaces: what they may say, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compressor.errors import SpaceError
from compressor.passes.distill import Distill
from compressor.recipe import Recipe, load_recipe
from compressor.search.space import Choices, Range, read_space, with_settings


@pytest.fixture
def recipe(home: Path) -> Recipe:
    return load_recipe(home / "recipe.yaml", overrides=["targets=[onnxruntime]"])


def read(folder: Path, recipe: Recipe, text: str) -> Any:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return read_space(path, recipe)


def test_ranges_and_choices(recipe: Recipe, tmp_path: Path) -> None:
    space = read(
        tmp_path,
        recipe,
        """
        passes.1.ratio: {low: 0.25, high: 0.75, step: 0.25}
        passes.2.epochs: {low: 1, high: 4}
        passes.2.learning_rate: {low: 1e-5, high: 1e-3, log: true}
        passes.2.schedule: {choices: [linear, cosine]}
        """,
    )
    between = space["passes.2.learning_rate"].extremes[1]
    assert 1e-5 < between < 1e-3
    assert {name: each.extremes for name, each in space.items()} == {
        "passes.1.ratio": (0.25, 0.5, 0.75),
        "passes.2.epochs": (1, 4),
        "passes.2.learning_rate": (1e-5, between, 1e-3),
        "passes.2.schedule": ("linear", "cosine"),
    }
    kinds = [type(each.distribution()).__name__ for each in space.values()]
    assert kinds == [
        "FloatDistribution", "IntDistribution", "FloatDistribution", "CategoricalDistribution"
    ]  # fmt: skip
    assert space["passes.2.learning_rate"].distribution().log


@pytest.mark.parametrize("name", ["embeddings", "image"])
def test_settings_that_nobody_set_are_not_asked_for(name: str) -> None:
    """Of embeddings there are no labels to learn from, and convolutions have no layers."""
    _, distill, *_ = with_settings(load_recipe(name), {"passes.0.ratio": 0.3}).passes
    assert isinstance(distill, Distill)
    assert distill.asked("labels_weight", "relation_weight") == []
    plain = with_settings(load_recipe(name), {"passes.1": {"pass": "distill"}}).passes[1]
    assert isinstance(plain, Distill)
    plain.check_labels(has_labels=False)
    plain.check_compared(0)


def test_settings_make_another_recipe_and_nothing_else_changes(recipe: Recipe) -> None:
    assert with_settings(recipe, {}) == recipe
    changed = with_settings(recipe, {"passes.1.ratio": 0.3, "variants.int8.0.num_samples": 8})
    assert changed.passes[1].settings()["ratio"] == 0.3
    assert changed.variants["int8"][0].settings()["num_samples"] == 8
    assert changed != recipe
    assert with_settings(
        changed, {"passes.1.ratio": 0.5, "variants.int8.0.num_samples": 32}
    ) == recipe  # fmt: skip


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        ("passes.1.ratio: {lo: 0.2, high: 0.5}", ["no setting 'lo'", "did you mean 'low'?"]),
        ("passes.1.ratio: {low: 0.2}", ["passes.1.ratio.high", "a required setting is missing"]),
        ("passes.1.ratio: {low: 0.5, high: 0.2}", ["low has to be less than high"]),
        ("passes.1.ratio: {low: true, high: 2}", ["should be a number"]),
        ("passes.1.ratio: {low: much, high: 2}", ["should be a number", "'much'"]),
        ("passes.1.ratio: {low: .nan, high: 0.5}", ["finite number"]),
        ("passes.1.ratio: {low: 0, high: 1, log: true}", ["more than 0 where log is true"]),
        ("passes.2.epochs: {low: 1, high: 8, log: true, step: 1}", ["log and step exclude"]),
        ("passes.2.epochs: {low: 1, high: 8, step: 2}", ["low plus a multiple of step"]),
        ("passes.2.epochs: {low: 1e0, high: 1e1}", ["passes.2.epochs", "integer"]),
        ("passes.2.epochs: {choices: [1]}", ["at least 2 items"]),
        ("passes.2.epochs: {choices: [2, 2]}", ["a value appears twice"]),
        ("passes.2.epochs: {choices: [2, 3], low: 1}", ["there is no setting 'low'"]),
        ("passes.2.epochs: 3", ["neither a range nor choices", "given: 3"]),
        ("budget.max_accuracy_drop: {low: 1, high: 2}", ["changes passes and variants only"]),
        ("passes.9.ratio: {low: 0.2, high: 0.5}", ["an element that is not there", "passes.9"]),
        ("passes.1.raito: {low: 0.2, high: 0.5}", ["'raito'", "did you mean 'ratio'?"]),
        ("passes.1.ratio: {low: 0.2, high: 1.5}", ["passes.1.ratio", "less than 1"]),
        ("passes.2.schedule: {choices: [linear, square]}", ["passes.2.schedule", "'square'"]),
        ("passes.2.num_layers: {low: 1, high: 5}", ["more layers", "5 of 2"]),
        ("", ["a mapping from paths of the recipe"]),
        ("[1, 2]", ["a mapping from paths of the recipe"]),
        ("{a", ["not valid YAML"]),
    ],
)
def test_what_does_not_hold_is_refused(
    line: str, messages: list[str], recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(SpaceError) as error:
        read(tmp_path, recipe, line)
    for message in messages:
        assert message in str(error.value)
    assert "space.yaml" in str(error.value)


def test_all_problems_are_told_at_once(recipe: Recipe, tmp_path: Path) -> None:
    text = "passes.1.ratio: {low: 0.5, high: 0.2}\npasses.2.epoch: {low: 1, high: 2}\nseed: 3\n"
    with pytest.raises(SpaceError) as error:
        read(tmp_path, recipe, text)
    assert {each.where for each in error.value.problems} == {
        "passes.1.ratio", "passes.2.epoch", "seed"
    }  # fmt: skip
    assert "the search space has 3 problems" in str(error.value)


def test_a_space_that_is_not_there(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="the file does not exist"):
        read_space(tmp_path / "none.yaml", recipe)


def test_whole_numbers_stay_whole() -> None:
    assert Range(low=1, high=9, step=2).distribution().to_internal_repr(3) == 3
    assert Range(low=1, high=9).extremes == (1, 9)
    assert Choices(choices=(None, True, 1, "a")).extremes == (None, True, 1, "a")


def test_what_yaml_takes_for_text_is_a_number() -> None:
    assert Choices.model_validate({"choices": ["3e-3", "1E2", "e3"]}).extremes == (
        3e-3,
        100.0,
        "e3",
    )
    assert Range.model_validate({"low": "1e-4", "high": 1}).low == 1e-4
