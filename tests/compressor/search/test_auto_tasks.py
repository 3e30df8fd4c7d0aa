"""`compressor auto` on models of other kinds than classifiers of texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.cli.auto import _columns, _task
from compressor.errors import DataError
from compressor.passes.distill import Distill
from compressor.recipe import load_recipe
from compressor.tasks import get_task
from tests.compressor.conftest import Outcome
from tests.compressor.homes import HOMES

QUICK = tuple(
    part
    for setting in ("rounds=1", "min_round_s=0.001", "pause_s=0", "batch_sizes=[1]")
    for part in ("--set", f"benchmark.{setting}")
)
LIMITS = ("--target", "onnxruntime", "--max-drop", "100", "--max-ms", "1000")
TRIMS = {"words"}
SEARCHED = ["words", "embeddings", "vit"]
REFUSED = {
    "resnet": "it has no layers of a known transformer",
    "generation": "it writes texts, and is judged by its perplexity",
    "speech": "it has an encoder and a decoder",
}


def searched(
    name: str,
    make_home: Callable[[str], Path],
    compressor: Callable[..., Outcome],
    tmp_path: Path,
) -> Outcome:
    """What the command says of a user's model."""
    folder = make_home(name)
    return compressor(
        "auto", "--model", folder / "model", "--data", folder, "--output", tmp_path / "out",
        "--store", tmp_path / "store", *LIMITS, *QUICK, *HOMES[name].run,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHED)
def test_a_shape_is_found_and_the_recipe_repeats_it(
    name: str,
    make_home: Callable[[str], Path],
    compressor: Callable[..., Outcome],
    tmp_path: Path,
) -> None:
    home, output = HOMES[name], tmp_path / "out"
    found = searched(name, make_home, compressor, tmp_path)
    assert found.code == 0, found.err + found.out
    assert "ms predicted" in found.out
    recipe = load_recipe(output / "recipe.yaml")
    assert recipe.task == home.task
    trims = ["trim_vocabulary"] if name in TRIMS else []
    assert [each.name for each in recipe.passes] == [*trims, "prune", "distill", "export"]
    distill = recipe.passes[-2]
    assert isinstance(distill, Distill)
    for setting, value in get_task(home.task).distillation.items():
        assert getattr(distill, setting) == value
    again = compressor("run", output / "recipe.yaml", "--store", tmp_path / "store")
    assert again.code == 0, again.err
    assert [
        line for line in again.out.splitlines() if re.search(r"^  \S.* \d+\.\d s  ", line)
    ] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_models_of_other_kinds_are_refused_with_a_recipe_for_them(
    name: str,
    make_home: Callable[[str], Path],
    compressor: Callable[..., Outcome],
    tmp_path: Path,
) -> None:
    found = searched(name, make_home, compressor, tmp_path)
    assert found.code != 0
    assert "this model is of another kind" in " ".join(found.err.split())
    assert REFUSED[name] in " ".join(found.err.split())
    assert "compressor recipes" in found.err


@pytest.mark.parametrize(
    ("setting", "fix"),
    [
        ("passes=[]", "auto finds them"),
        ("passes.0.ratio=0.5", "auto finds them"),
        ("variants.fp32=[]", "auto finds them"),
        ("output=elsewhere", "use --output"),
        ("budget.min_speedup=4", "use --max-drop, --max-ms and --max-mb"),
        ("benchmark={rounds: 3}", "set individual values"),
    ],
)
def test_what_auto_takes_in_another_way_is_not_set(
    setting: str, fix: str, compressor: Callable[..., Outcome], tmp_path: Path
) -> None:
    found = compressor(
        "auto", "--model", tmp_path, "--data", tmp_path, "--output", tmp_path / "out",
        "--set", setting,
    )  # fmt: skip
    assert found.code == 3
    assert "auto does not accept this setting through --set" in found.err
    assert f"--set {setting}" in found.err
    assert fix in " ".join(found.err.split())


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("text-classification", {"text": "a", "label": "b"}),
        ("token-classification", {"tokens": "a", "tags": "b"}),
        ("image-classification", {"image": "a", "label": "b"}),
        ("question-answering", {"question": "a", "answers": "b"}),
        ("semantic-segmentation", {"image": "a", "mask": "b"}),
        ("text-generation", {"text": "b"}),  # one column is both
    ],
)
def test_columns_are_those_of_the_task(task: str, columns: dict[str, str]) -> None:
    assert _columns(task, "a", "b") == columns
    assert _columns(task, None, None) == {}


def test_one_column_of_a_language_model_is_named_by_either_name() -> None:
    assert _columns("text-generation", "a", None) == {"text": "a"}
    assert _columns("text-generation", None, "b") == {"text": "b"}


def test_where_there_are_no_labels_no_column_is_named() -> None:
    assert _columns("text-embedding", "a", None) == {"text": "a"}
    with pytest.raises(DataError) as caught:
        _columns("text-embedding", None, "b")
    assert caught.value.what == "the data of the task text-embedding has no column with labels"
    assert caught.value.given == "b"


@pytest.mark.parametrize("names", [("a", None), (None, "b")])
def test_boxes_stand_in_no_columns(names: tuple[str | None, str | None]) -> None:
    assert _columns("object-detection", None, None) == {}
    with pytest.raises(DataError, match="images with boxes are read from COCO files"):
        _columns("object-detection", *names)


def test_the_task_is_named_or_that_of_the_checkpoint(home: Path) -> None:
    assert _task(home / "model", []) == "text-classification"
    assert _task(home / "model", ["seed=1", "task=text-embedding"]) == "text-embedding"


def test_a_wrong_setting_names_the_command_line(
    home: Path, compressor: Callable[..., Outcome], tmp_path: Path
) -> None:
    found = compressor(
        "auto", "--model", home / "model", "--data", home, "--output", tmp_path / "out",
        "--set", "data.txt=review",
    )  # fmt: skip
    assert found.code == 3
    assert "data.txt, from --set data.txt=review" in found.err
    assert "the command line" in found.err
