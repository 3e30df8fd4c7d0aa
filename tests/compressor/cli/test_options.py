from __future__ import annotations

from pathlib import Path

import pytest

from compressor.cli.options import read_recipe
from compressor.errors import DataError

RECIPE = """
task: text-classification
model: model
data: {train: old/train.csv, validation: old/validation.csv, test: old/test.csv, text: review}
passes: [{pass: export}]
targets: [onnxruntime]
"""


@pytest.mark.parametrize("has_validation", [True, False])
def test_data_on_the_command_line_stands_for_all_of_that_in_the_recipe(
    tmp_path: Path, has_validation: bool
) -> None:
    """Or models would be chosen by rows that have nothing to do with the others."""
    (tmp_path / "mine.yaml").write_text(RECIPE)
    splits = ["train", "test", *(["validation"] if has_validation else [])]
    folder = tmp_path / "new"
    folder.mkdir()
    for split in splits:
        (folder / f"{split}.csv").write_text("review,label\nfine,good\n")
    recipe = read_recipe(
        str(tmp_path / "mine.yaml"), model=None, data=folder, output=None, overrides=None
    )
    assert recipe.data is not None
    assert recipe.data.train == folder / "train.csv"
    assert recipe.data.validation == (folder / "validation.csv" if has_validation else None)
    assert recipe.data.text == "review"


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("text-classification", {"text": "comment", "label": "mood"}),
        ("token-classification", {"tokens": "comment", "tags": "mood"}),
    ],
)
def test_columns_on_the_command_line_stand_for_those_of_the_task(
    tmp_path: Path, task: str, fields: dict[str, str]
) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("text-classification", task))
    recipe = read_recipe(
        str(tmp_path / "mine.yaml"),
        model=None,
        data=None,
        output=None,
        overrides=None,
        column="comment",
        label="mood",
    )
    assert recipe.data.train == tmp_path / "old/train.csv"
    for field, column in fields.items():
        assert getattr(recipe.data, field) == column


def test_a_column_that_the_data_of_a_task_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("text-classification", "text-embedding"))
    with pytest.raises(DataError, match="has no column with labels"):
        read_recipe(
            str(tmp_path / "mine.yaml"),
            model=None,
            data=None,
            output=None,
            overrides=None,
            label="mood",
        )
