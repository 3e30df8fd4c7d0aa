from __future__ import annotations

from pathlib import Path

import pytest

from compressor.cli.options import read_recipe

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
