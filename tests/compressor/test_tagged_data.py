"""Data with a label for each word: how it is read, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from compressor.data import DataSpec, Splits, data_fingerprint, read_splits
from compressor.errors import DataError

ROWS = [
    {"tokens": ["Birds", "sing"], "tags": ["NOUN", "VERB"], "source": "web"},
    {"tokens": ["New York", "sings", "."], "tags": ["NOUN", "VERB", "."], "source": "mail"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> DataSpec:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSpec(train=path, validation=path, test=path)


def read(spec: DataSpec, names: tuple[str, ...] | None = None, seed: int = 0) -> Splits:
    return read_splits(spec, label_names=names, labels="tags", seed=seed)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_words_become_texts_with_an_array_of_labels_each(suffix: str, tmp_path: Path) -> None:
    splits = read(write(tmp_path / f"data{suffix}", ROWS))
    assert splits.label_names == (".", "NOUN", "VERB")
    assert splits.test.inputs == ("Birds sing", "New\u00a0York sings .")
    assert [each.tolist() for each in splits.test.labels] == [[1, 2], [1, 2, 0]]
    taken = splits.test.take([1])
    assert (taken.inputs, len(taken)) == (("New\u00a0York sings .",), 1)
    assert [each.tolist() for each in taken.labels] == [[1, 2, 0]]


def test_columns_of_other_names_and_indices_of_classes(tmp_path: Path) -> None:
    rows = [{"words": ["a", "b"], "ner_tags": [0, 2]}]
    spec = write(tmp_path / "data.jsonl", rows).model_copy(
        update={"tokens": "words", "tags": "ner_tags"}
    )
    [labels] = read(spec, ("O", "B-PER", "I-PER")).test.labels
    assert labels.tolist() == [0, 2]


def test_slices_stay_with_their_rows(tmp_path: Path) -> None:
    spec = write(tmp_path / "data.jsonl", ROWS).model_copy(update={"slices": ("source",)})
    assert read(spec).test.slices == {"source": ("web", "mail")}


def test_a_tenth_of_the_rows_is_set_apart(tmp_path: Path) -> None:
    rows = [{"tokens": [f"w{n}"], "tags": ["X" if n % 2 else "Y"]} for n in range(50)]
    spec = write(tmp_path / "data.jsonl", rows).model_copy(update={"validation": None})
    splits = read(spec)
    assert (len(splits.train), len(splits.validation)) == (45, 5)
    assert not {*splits.train.inputs} & {*splits.validation.inputs}
    assert read(spec).validation.inputs == splits.validation.inputs
    assert read(spec, seed=1).validation.inputs != splits.validation.inputs


def test_the_columns_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    spec = write(tmp_path / "data.jsonl", ROWS)
    before = data_fingerprint(spec, labels="tags")
    other = spec.model_copy(update={"tags": "ner_tags"})
    assert data_fingerprint(other, labels="tags") != before
    assert data_fingerprint(spec.model_copy(update={"label": "other"}), labels="tags") == before


@pytest.mark.parametrize(
    ("row", "message", "given"),
    [
        (
            {"tokens": ["a", "b"], "tags": ["X"]},
            "different numbers of labels and words",
            "2 in 'tokens', 1 in 'tags'",
        ),
        ({"tokens": "a b", "tags": ["X", "Y"]}, "no list in the column 'tokens'", "str 'a b'"),
        ({"tokens": ["a"], "tags": "X"}, "no list in the column 'tags'", "str 'X'"),
        ({"tokens": ["a", " "], "tags": ["X", "Y"]}, "a word is not a string", "str ' '"),
        ({"tokens": ["a", "b"], "tags": ["X", None]}, "a word has no label", "None in 'tags'"),
        ({"tokens": ["a\ud83d"], "tags": ["X"]}, "half of a character", "'\\ud83d'"),
        ({"tokens": [], "tags": []}, "a list of words is empty", "[]"),
    ],
)
def test_rows_that_cannot_be_used(
    row: dict[str, Any], message: str, given: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    with pytest.raises(DataError, match=message) as caught:
        read(write(path, [ROWS[0], row]))
    assert (caught.value.where or "").startswith(f"{path}, row 2")
    assert caught.value.given == given
    assert caught.value.fix


def test_tags_that_the_model_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with pytest.raises(DataError, match="labels that the model does not know") as caught:
        read(write(path, ROWS), ("NOUN", "VERB", "ADJ"))
    assert caught.value.where == f"{path}, column 'tags'"
    assert caught.value.given == "'.' (1 word)"


def test_a_missing_column_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the tags column 'tags' is missing") as caught:
        read(write(tmp_path / "data.jsonl", [{"tokens": ["a"], "ner_tags": ["X"]}]))
    assert "--set data.tags=COLUMN" in (caught.value.fix or "")
    assert "did you mean 'ner_tags'?" in (caught.value.fix or "")


@pytest.mark.parametrize("name", ["data.csv", "folder"])
def test_lists_do_not_stand_in_every_kind_of_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix:
        path.write_text("tokens,tags\na b,X Y\n")
    else:
        path.mkdir()
    with pytest.raises(DataError, match="lists of words and of their labels cannot") as caught:
        read(DataSpec(train=path, test=path))
    assert caught.value.where == str(path)
    assert '"tokens": ["Birds", "sing"]' in (caught.value.fix or "")
