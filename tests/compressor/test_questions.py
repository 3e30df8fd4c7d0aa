"""Questions out of files: as SQuAD has them, as rows, and what of them cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compressor.data import DataSpec, Splits, data_fingerprint, read_splits
from compressor.errors import DataError
from targets.preprocessing import Question
from tests.compressor.questions import SQUAD

CONTEXT = "Birds sing at dawn."
ANSWER = {"text": ["at dawn", "dawn"], "answer_start": [11, 14]}
ROW = {"question": "When do birds sing?", "context": CONTEXT, "answers": ANSWER, "kind": "when"}


def read(train: Path, test: Path | None = None, **more: Any) -> Splits:
    spec = DataSpec(train=train, test=test or train, **more)
    return read_splits(spec, label_names=None, kind="question", labels="answers")


def write(path: Path, value: object) -> Path:
    lines = value if isinstance(value, list) and path.suffix == ".jsonl" else [value]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


def squad(*asked: dict[str, Any], context: object = CONTEXT) -> dict[str, Any]:
    return {"data": [{"title": "Birds", "paragraphs": [{"context": context, "qas": [*asked]}]}]}


def test_a_file_of_squad_is_read(tmp_path: Path) -> None:
    found = read(SQUAD, slices=("title",))
    with pytest.raises(DataError, match=r"'titel' of data\.slices is missing") as raised:
        read(SQUAD, slices=("titel",))
    assert raised.value.given == "columns title, id"
    assert "did you mean 'title'?" in str(raised.value.fix)
    assert (len(found.train), len(found.validation), len(found.test)) == (12, 1, 13)
    assert found.label_names == ("start", "end")
    first, ends = found.test.inputs[0], found.test.labels[0]
    assert first.question == "When was the lighthouse built?"
    assert [first.context[slice(*each)] for each in ends] == ["1868", "in 1868"]
    assert set(found.test.slices["title"]) == {"Lighthouse", "Bread"}


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_rows_are_read(tmp_path: Path, suffix: str) -> None:
    other = {
        "q": "Who sings?",
        "context": CONTEXT,
        "answers": {"text": ["Birds"] * 3, "answer_start": [0] * 3},
    }
    rows = [{"q": ROW["question"], **ROW}, other, other]
    path = write(tmp_path / f"rows{suffix}", rows)
    found = read(path, question="q", slices=("kind",)).test
    assert found.inputs[0] == Question("When do birds sing?", CONTEXT)
    assert found.labels[0] == ((11, 18), (14, 18))
    assert found.labels[1] == ((0, 5),)
    assert found.slices == {"kind": ("when", "(empty)", "(empty)")}


def changed(**more: Any) -> dict[str, Any]:
    return {**ROW, **more}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (changed(question=" "), ("a row has no question", "row 1", "write a text")),
        (changed(context=7), ("a row has no context", "row 1", "given: 7")),
        (changed(answers=["dawn"]), ("not two lists of the same length", "answers=['dawn']")),
        (changed(answers={"text": ["dawn"], "answer_start": [1, 2]}), ("not two lists",)),
        (changed(answers={"text": [], "answer_start": []}),
         ("no answer in its context", "leave such questions out")),
        (changed(answers={"text": ["dawn"], "answer_start": ["14"]}),
         ("not a text and the position", "answer_start '14'")),
        (changed(answers={"text": ["dawn"], "answer_start": [13]}),
         ("not at the position that answer_start", "'dawn' at 13", "' daw'", "it is at 14")),
        (changed(answers={"text": ["dusk"], "answer_start": [14]}),
         ("not at the position", "which the context lacks")),
        (changed(answers={"text": ["."], "answer_start": [-1]}), ("'.' at -1",)),
        (changed(answers={"text": list(CONTEXT[:5]) + [CONTEXT[:end] for end in range(2, 15)],
                          "answer_start": [*range(5), *[0] * 13]}),
         ("too many different answers", "given: 18", "keep 16")),
        ({"question": "Who?", "context": CONTEXT}, ("the answers column 'answers' is missing",)),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named(
    tmp_path: Path, value: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as raised:
        read(write(tmp_path / "rows.jsonl", [value]), SQUAD)
    for each in ("rows.jsonl", *words):
        assert each in str(raised.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"data": 1}, ("there is no list 'data'", "int 1", '"paragraphs"')),
        ({"data": []}, ("the file has no questions",)),
        ({"data": ["a"]}, ("a part of the file is not a JSON object", "article 1", "str 'a'")),
        ({"data": [{}]}, ("there is no list 'paragraphs'", "article 1")),
        ({"data": [{"paragraphs": [{}]}]}, ("there is no list 'qas'", "paragraph 1")),
        (squad({"question": "Who?"}), ("there is no list 'answers'", "question 1")),
        (squad({"question": "Who?", "answers": ["dawn"]}), ("an answer is not a JSON object",)),
        (squad({"question": "Who?", "answers": [], "is_impossible": True}),
         ("no answer in its context", "paragraph 1, question 1")),
        (squad({"question": "Who?", "answers": [{"text": "dawn", "answer_start": 1}]}),
         ("not at the position that answer_start", "question 1", "it is at 14")),
        (squad({"answers": [{"text": "dawn", "answer_start": 14}]}), ("a row has no question",)),
    ],
)  # fmt: skip
def test_files_of_squad_that_cannot_be_used_are_named(
    tmp_path: Path, value: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as raised:
        read(write(tmp_path / "bad.json", value), SQUAD)
    for each in ("bad.json", *words):
        assert each in str(raised.value)


def test_files_that_hold_no_objects_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,context,answers\na,b,c\n")
    with pytest.raises(DataError, match="cannot be read from the cells of this type") as raised:
        read(tmp_path / "rows.csv", SQUAD)
    assert "in SQuAD format" in str(raised.value)
    with pytest.raises(DataError, match="cannot be read from a folder of files"):
        read(tmp_path, SQUAD)


def test_the_column_of_the_context_counts() -> None:
    hashes = {"train": "a", "test": "b"}

    def fingerprint(**more: Any) -> str:
        spec = DataSpec(train=SQUAD, test=SQUAD, **more)
        return data_fingerprint(spec, kind="question", labels="answers", hashes=hashes)

    found = {
        fingerprint(),
        fingerprint(context="c"),
        fingerprint(answers="a"),
        fingerprint(question="q"),
    }
    assert len(found) == 4
