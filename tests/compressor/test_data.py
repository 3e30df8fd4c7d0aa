"""Labelled text from local files: what is read, what is refused, and how it is split."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.data import DataSpec, Split, Splits, data_fingerprint, read_splits, split_hashes
from compressor.errors import DataError

ROWS = [("a cat", "animal"), ("a car", "thing"), ("a dog", "animal"), ("a cup", "thing")]


def write_csv(path: Path, rows: list[tuple[Any, Any]], delimiter: str = ",") -> None:
    lines = [delimiter.join(("text", "label")), *(delimiter.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_parquet(path: Path, rows: list[tuple[Any, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    texts, labels = zip(*rows, strict=True)
    parquet.write_table(pa.table({"text": list(texts), "label": list(labels)}), path)


WRITERS: dict[str, Callable[[Path, list[tuple[Any, Any]]], object]] = {
    "data.csv": write_csv,
    "data.TSV": lambda path, rows: write_csv(path, rows, "\t"),
    "data.jsonl": lambda path, rows: path.write_text(
        "\n\n".join(json.dumps({"text": text, "label": label}) for text, label in rows)
    ),
    "list.json": lambda path, rows: path.write_text(
        " \n" + json.dumps([{"text": text, "label": label} for text, label in rows], indent=1)
    ),
    "LIST.JSON": lambda path, rows: path.write_text(
        json.dumps([{"text": text, "label": label} for text, label in rows])
    ),
    "lines.json": lambda path, rows: path.write_text(
        "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    ),
    "data.parquet": write_parquet,
}


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., DataSpec]:
    """Make a spec whose splits are all read from one file with the given content."""

    def make(content: str | bytes, name: str = "data.csv", **settings: Any) -> DataSpec:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return DataSpec(train=path, test=path, validation=path, **settings)

    return make


def refusal(spec: DataSpec, names: tuple[str, ...] | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        read_splits(spec, label_names=names)
    assert caught.value.exit_code == 3
    assert str(caught.value.where).startswith(str(spec.test))
    return caught.value


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, ROWS)
    spec = DataSpec(train=path, test=path, validation=path)
    splits = read_splits(spec, label_names=("thing", "animal"))
    assert splits.label_names == ("thing", "animal")
    for split in (splits.train, splits.validation, splits.test):
        assert split.inputs == ("a cat", "a car", "a dog", "a cup")
        assert split.labels.tolist() == [1, 0, 1, 0]
        assert split.labels.dtype == np.int64


@pytest.mark.parametrize("name", WRITERS)
def test_texts_that_look_like_other_things_stay_text(tmp_path: Path, name: str) -> None:
    texts = ["NA", "null", "1", "2024-01-01 00:00:00", "true", "NaN", "1e5", "007"]
    path = tmp_path / name
    WRITERS[name](path, [(text, index % 2) for index, text in enumerate(texts)])
    splits = read_splits(DataSpec(train=path, test=path, validation=path), label_names=("a", "b"))
    assert splits.test.inputs == tuple(texts)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("text", ["1", "NA", "2024-01-01"])
def test_a_text_column_of_one_kind_stays_text(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, [(text, "x"), (text, "y")])
    splits = read_splits(DataSpec(train=path, test=path, validation=path), label_names=None)
    assert splits.test.inputs == (text, text)


def test_quoted_csv_texts_keep_commas_quotes_and_line_breaks(spec: Callable[..., DataSpec]) -> None:
    found = spec('text,label\r\n"one, ""two""\nthree",a\r\n\r\n5" wide,b\r\n')
    assert read_splits(found, label_names=None).test.inputs == ('one, "two"\nthree', '5" wide')


def test_a_byte_order_mark_belongs_to_no_column(spec: Callable[..., DataSpec]) -> None:
    for name, text in (
        ("a.csv", "text,label\nx,1\ny,2\n"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y", "label": 2}\n'),
        ("a.json", '[{"text": "x", "label": 1}, {"text": "y", "label": 2}]'),
    ):
        assert len(read_splits(spec("\ufeff" + text, name), label_names=None).test) == 2


def test_json_columns_may_begin_after_the_first_row(spec: Callable[..., DataSpec]) -> None:
    rows = [{"label": 0, "text": "x"}, {"more": 1, "text": "y", "label": 1}]
    found = spec(json.dumps(rows), "a.json")
    assert read_splits(found, label_names=None).test.inputs == ("x", "y")
    error = refusal(spec(json.dumps([{"label": 0}, *rows]), "a.json"))
    assert "row 1" in str(error)
    assert "text=None" in str(error)


# Labels


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (["b", "a"], ("a", "b"), [1, 0]),
        ([0, 1], ("a", "b"), [0, 1]),
        (["1", "0"], ("a", "b"), [1, 0]),
        ([2, 1], ("1", "2"), [1, 0]),
        (["1", "2"], ("2", "1"), [1, 0]),
        ([1.0, 0.0], ("a", "b"), [1, 0]),
        ([5.0, 3.0], ("3", "5"), [1, 0]),
        ([True, False], ("False", "True"), [1, 0]),
        (["LABEL_1", "LABEL_0"], ("LABEL_0", "LABEL_1"), [1, 0]),
    ],
)
def test_labels_are_class_names_or_else_indices(
    tmp_path: Path, labels: list[Any], names: tuple[str, ...], indices: list[int]
) -> None:
    path = tmp_path / "a.jsonl"
    WRITERS["data.jsonl"](path, [("text", label) for label in labels])
    splits = read_splits(DataSpec(train=path, test=path, validation=path), label_names=names)
    assert splits.test.labels.tolist() == indices


def test_numbers_in_csv_mean_what_they_mean_in_json(spec: Callable[..., DataSpec]) -> None:
    found = spec("text,label\nx,1\ny,0\n")
    assert read_splits(found, label_names=("a", "b")).test.labels.tolist() == [1, 0]
    found = spec("text,label\nx,1\ny,2\n")
    assert read_splits(found, label_names=("1", "2")).test.labels.tolist() == [0, 1]


def test_whether_labels_are_indices_is_decided_for_all_files_together(tmp_path: Path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    write_csv(train, [("x", 3), ("y", 4)] * 5)
    write_csv(test, [("x", 0), ("y", 1)])
    error = refusal(DataSpec(train=train, test=test), ("3", "4"))
    assert "'0' (1 row), '1' (1 row)" in str(error)


def test_class_names_come_from_the_training_file_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, [("x", "10"), ("y", "9"), ("z", "2")])
    spec = DataSpec(train=path, test=path, validation=path)
    assert read_splits(spec, label_names=None).label_names == ("2", "9", "10")
    write_csv(path, [("x", "pear"), ("y", "apple"), ("z", "10")])
    assert read_splits(spec, label_names=None).label_names == ("10", "apple", "pear")


def test_unknown_labels_are_named_and_counted(spec: Callable[..., DataSpec]) -> None:
    rows = "".join(f"t,{label}\n" for label in ["a", "c", "c", "d", "e", "f", "g", "h"])
    error = refusal(spec("text,label\n" + rows), ("a", "b"))
    assert error.what == "the data has labels that the model does not know"
    assert error.given == (
        "'c' (2 rows), 'd' (1 row), 'e' (1 row), 'f' (1 row), 'g' (1 row) and 1 more"
    )
    assert "the model knows 'a', 'b'; correct the labels" in str(error.fix)
    assert "column 'label'" in str(error.where)


def test_names_for_a_model_whose_classes_have_none(spec: Callable[..., DataSpec]) -> None:
    error = refusal(spec("text,label\nx,food\ny,sport\n"), ("LABEL_0", "LABEL_1"))
    assert "the model knows 'LABEL_0', 'LABEL_1'; its classes have no names" in str(error.fix)
    assert "id2label" in str(error.fix)
    assert "the numbers 0 to 1 into the data" in str(error.fix)


def test_an_index_beyond_the_classes_is_unknown(spec: Callable[..., DataSpec]) -> None:
    assert "'2' (1 row)" in str(refusal(spec("text,label\nx,0\ny,2\n"), ("a", "b")))
    assert "'-1' (1 row)" in str(refusal(spec("text,label\nx,0\ny,-1\n"), ("a", "b")))


def test_a_model_with_many_classes_names_twenty(spec: Callable[..., DataSpec]) -> None:
    names = tuple(f"n{index}" for index in range(23))
    error = refusal(spec("text,label\nx,n0\ny,q\n"), names)
    assert "'n19' and 3 more; " in str(error.fix)
    assert "n20" not in str(error.fix)


def test_two_classes_of_one_name_are_refused(spec: Callable[..., DataSpec]) -> None:
    with pytest.raises(DataError, match="two classes with the same name") as caught:
        read_splits(spec("text,label\nx,a\ny,b\n"), label_names=("a", "a", "b"))
    assert "'a', 'a', 'b'" in str(caught.value)


def test_names_do_not_matter_where_the_data_has_numbers(spec: Callable[..., DataSpec]) -> None:
    found = read_splits(spec("text,label\nx,0\ny,2\n"), label_names=("a", "a", "b"))
    assert found.test.labels.tolist() == [0, 2]


def test_a_lone_quote_of_a_tsv_does_not_take_rows_along(spec: Callable[..., DataSpec]) -> None:
    text = 'text\tlabel\n"I was there.\t1\nHe left."\t0\nShe stayed.\t1\n'
    error = refusal(spec(text, "data.tsv"))
    assert error.what == "a quoted text holds a tab"
    assert str(error.where).endswith("data.tsv, up to line 3")
    assert error.given == "I was there.\t1\nHe left."


def test_a_folder_in_the_place_of_a_table_is_refused_before_it_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    spec = DataSpec(train=tmp_path / "train", test=tmp_path / "train")
    with pytest.raises(DataError, match="the data is a folder, but texts are read from a table"):
        split_hashes(spec)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    spec = DataSpec(train=tmp_path / "a.csv", test=tmp_path / "a.csv")
    with pytest.raises(DataError, match="a file of the data cannot be read") as caught:
        split_hashes(spec)
    assert caught.value.where == str(tmp_path / "a.csv")


def test_one_class_is_refused(spec: Callable[..., DataSpec]) -> None:
    error = refusal(spec("text,label\nx,a\ny,a\n"), ("a", "b"))
    assert error.what == "the data has one class only"
    assert error.given == "2 rows, all 'a'"


# What is refused


@pytest.mark.parametrize(
    ("text", "name", "what", "detail"),
    [
        ("", "a.csv", "the file is empty", "labelled rows"),
        ("", "a.parquet", "the file is empty", "labelled rows"),
        ("text,label\n", "a.csv", "the file has no rows", "labelled rows"),
        ("[]", "a.json", "the text column 'text' and the label column", "(none)"),
        ("x", "a.xlsx", "unknown format", ".csv, .tsv, .json, .jsonl, .parquet"),
        ("x", "a", "unknown format", "no suffix"),
        ("text,label\nx\n", "a.csv", "the same number of fields", "line 2"),
        ("text,label\nx,y,z\n", "a.csv", "the same number of fields", "3 fields, the header has 2"),
        ('text,label\n"x,1\ny,2\n', "a.csv", "not well-formed CSV", "line 3"),
        ('text,label\n"x,1\ny,2\n"z",3\n', "a.csv", "not well-formed CSV", "line 4"),
        ("text,label\nx,1\n" + "y" * 140_000 + ",2\n", "a.csv", "not well-formed CSV", ".jsonl"),
        ("text,label,text\nx,1,y\n", "a.csv", "the column 'text' appears twice", "rename"),
        (b"text,label\ncaf\xe9,1\n", "a.csv", "not UTF-8", "iconv -f latin1 -t utf-8 a.csv"),
        (b'{"text": "caf\xe9", "label": 1}\n', "a.jsonl", "not UTF-8", "iconv"),
        ('{"text": "x"', "a.jsonl", "not well-formed JSON", "line 1"),
        ('{"text": "x", "label": 1}\n{', "a.jsonl", "not well-formed JSON", "line 2"),
        ('[{"text": "x"', "a.json", "not well-formed JSON", "one list of objects"),
        ("[" * 5_000, "a.json", "not well-formed JSON", "recursion"),
        ("[1]", "a.json", "a row is not a JSON object", "int"),
        ("PAR1 and no more", "a.parquet", "not a complete Parquet file", "copy or write it again"),
    ],
)
def test_what_is_no_table_is_refused(
    spec: Callable[..., DataSpec], text: str | bytes, name: str, what: str, detail: str
) -> None:
    error = refusal(spec(text, name))
    assert what in error.what
    assert detail in str(error)


@pytest.mark.parametrize(
    "row",
    [
        {"text": None, "label": "a"},
        {"text": "", "label": "a"},
        {"text": " \t", "label": "a"},
        {"text": 3, "label": "a"},
        {"text": "x", "label": None},
        {"text": "x", "label": ""},
        {"text": "x", "label": 0.5},
        {"text": "x", "label": float("nan")},
        {"text": "x", "label": ["a"]},
        {"text": "x"},
    ],
)
def test_a_row_without_text_or_label_is_named(
    spec: Callable[..., DataSpec], row: dict[str, object]
) -> None:
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}, row]
    error = refusal(spec("\n".join(map(json.dumps, rows)), "a.jsonl"))
    assert error.what == "a row has no text or no label"
    assert str(error.where).endswith("row 3")
    assert f"label={row.get('label')!r}" in str(error.given)


def test_half_of_a_character_is_named(spec: Callable[..., DataSpec]) -> None:
    error = refusal(
        spec('{"text": "x", "label": 1}\n{"text": "a \\ud83d", "label": 2}\n', "a.jsonl")
    )
    assert error.what == "a text contains half of a character, a lone surrogate"
    assert str(error.where).endswith("row 2, character 3")


def test_an_empty_csv_field_is_no_label(spec: Callable[..., DataSpec]) -> None:
    assert "row 2" in str(refusal(spec("text,label\nx,a\ny,\n")))


def test_a_missing_column_names_the_nearest(spec: Callable[..., DataSpec]) -> None:
    error = refusal(spec("sentense,Label\nx,a\ny,b\n", text="sentence"))
    assert error.what == "the text column 'sentence' and the label column 'label' are missing"
    assert error.given == "columns sentense, Label"
    assert error.fix == (
        "name them: --input COLUMN --label COLUMN, or in a recipe with --set data.text=COLUMN "
        "--set data.label=COLUMN; did you mean 'sentense' and 'Label'?"
    )
    error = refusal(spec("sentence,Label\nx,a\ny,b\n", text="sentence"))
    assert error.what == "the label column 'label' is missing"
    assert error.fix == (
        "name it: --label COLUMN, or in a recipe with --set data.label=COLUMN"
        "; did you mean 'Label'?"
    )
    error = refusal(spec("q,label\nx,a\ny,b\n"))
    assert error.fix == "name it: --input COLUMN, or in a recipe with --set data.text=COLUMN"


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        read_splits(DataSpec(train=tmp_path / "a.csv", test=tmp_path / "b.csv"), label_names=None)
    assert str(tmp_path / "a.csv") in str(caught.value)


def test_parquet_without_pyarrow_names_the_extra(
    spec: Callable[..., DataSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    from targets.errors import MissingLibraryError

    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingLibraryError, match=re.escape("needs the library pyarrow")):
        read_splits(spec("PAR1", "a.parquet"), label_names=None)


# The validation part


def set_apart(tmp_path: Path, sizes: list[int], seed: int = 0) -> Splits:
    path = tmp_path / "train.csv"
    rows = [(f"{label} {row}", label) for label, n in enumerate(sizes) for row in range(n)]
    write_csv(path, rows)
    return read_splits(DataSpec(train=path, test=path), label_names=None, seed=seed)


def test_a_tenth_of_each_class_is_set_apart(tmp_path: Path) -> None:
    splits = set_apart(tmp_path, [100, 40, 20])
    assert Counter(splits.validation.labels.tolist()) == {0: 10, 1: 4, 2: 2}
    assert Counter(splits.train.labels.tolist()) == {0: 90, 1: 36, 2: 18}


def test_the_validation_part_is_disjoint_and_keeps_every_row_and_label(tmp_path: Path) -> None:
    splits = set_apart(tmp_path, [30, 7])
    assert not set(splits.train.inputs) & set(splits.validation.inputs)
    assert sorted(splits.train.inputs + splits.validation.inputs) == sorted(splits.test.inputs)
    for split in (splits.train, splits.validation):
        pairs = zip(split.inputs, split.labels.tolist(), strict=True)
        assert all(text.startswith(f"{label} ") for text, label in pairs)


def test_small_classes_are_in_both_parts(tmp_path: Path) -> None:
    splits = set_apart(tmp_path, [2, 3, 4, 1])
    assert Counter(splits.validation.labels.tolist()) == {0: 1, 1: 1, 2: 1}
    assert set(splits.train.labels.tolist()) == {0, 1, 2, 3}


def test_the_validation_part_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (set_apart(tmp_path, [50, 50], seed) for seed in (1, 1, 2))
    assert first.validation.inputs == again.validation.inputs
    assert first.validation.inputs != other.validation.inputs


def test_too_little_data_to_set_apart_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too small to set part of it aside") as caught:
        set_apart(tmp_path, [1, 1])
    assert "set data.validation" in str(caught.value)


def test_a_validation_file_leaves_the_training_data_whole(tmp_path: Path) -> None:
    train, validation = tmp_path / "train.csv", tmp_path / "validation.csv"
    write_csv(train, ROWS)
    write_csv(validation, ROWS[:2])
    spec = DataSpec(train=train, validation=validation, test=train)
    splits = read_splits(spec, label_names=None)
    assert (len(splits.train), len(splits.validation)) == (4, 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=0, max_size=20))
def test_take_picks_rows_in_order(indices: list[int]) -> None:
    split = Split(tuple("abcdef"), np.arange(6, dtype=np.int64))
    taken = split.take(indices)
    assert taken.inputs == tuple("abcdef"[index] for index in indices)
    assert taken.labels.tolist() == indices


def test_another_separator_is_told(spec: Callable[..., DataSpec]) -> None:
    error = refusal(spec("text;label\na cat;animal\na car;thing\n"))
    assert (
        error.fix == "the columns are separated by semicolons: write commas, or tabs in a .tsv file"
    )
    assert "separated by tabs" in str(refusal(spec("text\tlabel\na\tb\n")).fix)


# Slices


def test_slices_are_read_beside_the_rows_and_follow_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,source,year\na,x,web,2020\nb,y,,2021\nc,x,mail,2021\n")
    spec = DataSpec(train=path, test=path, validation=path, slices=("source", "year"))
    test = read_splits(spec, label_names=None).test
    assert test.slices == {"source": ("web", "(empty)", "mail"), "year": ("2020", "2021", "2021")}
    assert test.take([2, 0]).slices["source"] == ("mail", "web")


def test_only_the_test_file_needs_the_columns_of_the_slices(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    (tmp_path / "test.csv").write_text("text,label,source\na,animal,web\nb,thing,mail\n")
    spec = DataSpec(train=tmp_path / "train.csv", test=tmp_path / "test.csv", slices=("source",))
    splits = read_splits(spec, label_names=None)
    assert splits.test.slices == {"source": ("web", "mail")}
    assert splits.train.slices == splits.validation.slices == {}


def test_a_missing_slice_column_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,source\na,x,web\nb,y,mail\n")
    spec = DataSpec(train=path, test=path, validation=path, slices=("sorce",))
    error = refusal(spec)
    assert "the column 'sorce' of data.slices is missing" in error.what
    assert error.given == "columns text, label, source"
    assert "did you mean 'source'?" in str(error.fix)


# The fingerprint


def test_the_fingerprint_follows_content_and_columns_not_paths(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    specs = []
    for folder in folders:
        folder.mkdir()
        write_csv(folder / "a.csv", ROWS)
        write_csv(folder / "b.csv", ROWS[:2])
        specs.append(DataSpec(train=folder / "a.csv", test=folder / "b.csv"))
    one, two = specs
    assert data_fingerprint(one) == data_fingerprint(two)
    swapped = DataSpec(train=one.test, test=one.train)
    assert data_fingerprint(swapped) != data_fingerprint(one)
    for change in ({"text": "label"}, {"label": "text"}, {"max_length": 8}, {"slices": ("text",)}):
        assert data_fingerprint(one.model_copy(update=change)) != data_fingerprint(one)
    with two.test.open("a") as stream:
        stream.write("x,thing\n")
    assert data_fingerprint(one) != data_fingerprint(two)


def test_the_fingerprint_depends_on_the_seed_where_the_split_does(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, ROWS)
    spec = DataSpec(train=path, test=path)
    assert data_fingerprint(spec, seed=1) != data_fingerprint(spec, seed=2)
    given = DataSpec(train=path, test=path, validation=path)
    assert data_fingerprint(given, seed=1) == data_fingerprint(given, seed=2)
    assert data_fingerprint(spec) != data_fingerprint(given)
