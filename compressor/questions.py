"""Questions with their right answers, out of files as SQuAD has them or rows of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compressor.errors import DataError
from compressor.tables import FLAT, require_columns
from targets.answers.spans import MAX_ANSWERS
from targets.preprocessing import Question

__all__ = ["Questions", "read_questions"]

_FORM = '{"text": ["at dawn"], "answer_start": [11]}'
_SQUAD = (
    '{"data": [{"paragraphs": [{"context": ..., "qas": [{"question": ..., "answers": [...]}]}]}]}'
)

Answers = tuple[tuple[int, int], ...]


class Questions(NamedTuple):
    """A file.

    Attributes:
        inputs: The questions with their contexts.
        answers: The right answers of each, (start, end) in characters of the context.
        slices: Column -> one value a question.
        names: Columns of a file as SQuAD has it; None of a table, which has its own.
    """

    inputs: tuple[Question, ...]
    answers: tuple[Answers, ...]
    slices: dict[str, list[Any]]
    names: tuple[str, ...] | None = None


class _Row(NamedTuple):
    where: str
    question: Any
    context: Any
    texts: Any
    starts: Any


def read_questions(path: Path, columns: Mapping[str, str], slices: Sequence[str] = ()) -> Questions:
    """Read a file of questions.

    Args:
        path: .json as SQuAD has it, or rows in .json, .jsonl or .parquet.
        columns: ``question``, ``context`` and ``answers`` -> the columns of rows.
        slices: Columns that the data is sliced by; of a file as SQuAD has it, ``title`` and ``id``.

    Raises:
        DataError: The file cannot be read, or a question, its context or an answer is not what it
            should be; names it.
    """
    articles = _articles(path)
    if articles is None:
        rows, found = _table_rows(path, columns, slices)
    else:
        squad = list(_squad_rows(path, articles))
        if not squad:
            raise DataError("the file has no questions", where=path, fix=f"write {_SQUAD}")
        rows = [row for row, _ in squad]
        found = {name: [more[name] for _, more in squad] for name in slices if name in squad[0][1]}
    return Questions(
        tuple(_question(row) for row in rows),
        tuple(_answers(row) for row in rows),
        found,
        None if articles is None else ("title", "id"),
    )


def _articles(path: Path) -> list[Any] | None:
    """What a file as SQuAD has it holds; None of any other."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None  # what reads tables says what is wrong, or takes one object a line
    if not isinstance(found, dict) or "data" not in found:
        return None
    return list(_listed(found, "data", str(path)))


def _squad_rows(path: Path, articles: list[Any]) -> Iterator[tuple[_Row, dict[str, Any]]]:
    """Rows, and what else is known of each."""
    for number, article in enumerate(articles, 1):
        place = f"{path}, article {number}"
        for count, paragraph in enumerate(_listed(article, "paragraphs", place), 1):
            spot = f"{place}, paragraph {count}"
            for index, asked in enumerate(_listed(paragraph, "qas", spot), 1):
                where = f"{spot}, question {index}"
                answers = _listed(asked, "answers", where)
                for each in answers:
                    _check_object(each, where, "an answer")
                row = _Row(
                    where,
                    asked.get("question"),
                    paragraph.get("context"),
                    [each.get("text") for each in answers],
                    [each.get("answer_start") for each in answers],
                )
                yield row, {"title": article.get("title"), "id": asked.get("id")}


def _listed(holder: Any, name: str, where: str) -> list[Any]:
    _check_object(holder, where, "a part of the file")
    found = holder.get(name)
    if not isinstance(found, list):
        raise DataError(
            f"there is no list {name!r}, which a SQuAD file needs",
            where=where,
            given=f"{type(found).__name__} {found!r:.60}",
            fix=f"write {_SQUAD}",
        )
    return found


def _check_object(given: Any, where: str, what: str) -> None:
    if not isinstance(given, dict):
        raise DataError(
            f"{what} is not a JSON object",
            where=where,
            given=f"{type(given).__name__} {given!r:.60}",
            fix=f"write {_SQUAD}",
        )


def _table_rows(
    path: Path, columns: Mapping[str, str], slices: Sequence[str]
) -> tuple[list[_Row], dict[str, list[Any]]]:
    if path.is_dir() or path.suffix.lower() in FLAT:
        raise DataError(
            "questions with their answers cannot be read from "
            + ("a folder of files" if path.is_dir() else "the cells of this type of file"),
            where=path,
            given="a folder" if path.is_dir() else path.suffix,
            fix="pass a .json file in SQuAD format, or rows in .jsonl, .json or .parquet",
        )
    values = require_columns(path, columns, slices)
    rows = []
    cells = zip(*(values[name] for name in columns.values()), strict=True)
    for number, (question, context, answers) in enumerate(cells, 1):
        where = f"{path}, row {number}"
        texts, starts = (
            (answers.get("text"), answers.get("answer_start"))
            if isinstance(answers, Mapping)
            else (None, None)
        )
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise DataError(
                "the answers of a row are not two lists of the same length",
                where=where,
                given=f"{columns['answers']}={answers!r:.100}",
                fix=f"write {_FORM}",
            )
        rows.append(_Row(where, question, context, texts, starts))
    return rows, {name: values[name] for name in slices if name in values}


def _question(row: _Row) -> Question:
    for name, text in (("question", row.question), ("context", row.context)):
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"a row has no {name}",
                where=row.where,
                given=f"{text!r:.60}",
                fix="remove the row, or write a text",
            )
    return Question(row.question, row.context)


def _answers(row: _Row) -> Answers:
    found = tuple(
        dict.fromkeys(
            _answer(row, text, start) for text, start in zip(row.texts, row.starts, strict=True)
        )
    )
    if not found:
        raise DataError(
            "a question has no answer in its context",
            where=row.where,
            given=f"{row.question:.60}",
            fix="leave such questions out: every answer has to be part of the context",
        )
    if len(found) > MAX_ANSWERS:
        raise DataError(
            "a question has too many different answers",
            where=row.where,
            given=len(found),
            fix=f"keep {MAX_ANSWERS} of them",
        )
    return found


def _answer(row: _Row, text: Any, start: Any) -> tuple[int, int]:
    is_number = isinstance(start, int) and not isinstance(start, bool)
    if not isinstance(text, str) or not text.strip() or not is_number:
        raise DataError(
            "an answer is not a text and the position of its first character",
            where=row.where,
            given=f"text {text!r:.60}, answer_start {start!r:.20}",
            fix=f"write {_FORM}",
        )
    end = start + len(text)
    if start < 0 or row.context[start:end] != text:
        place = row.context.find(text)
        raise DataError(
            "an answer is not at the position that answer_start gives",
            where=row.where,
            given=f"{text!r:.60} at {start}, where the context has "
            f"{row.context[max(start, 0) : max(end, 0)]!r:.60}",
            fix="correct answer_start, counted in characters from 0"
            + (f": it is at {place}" if place >= 0 else ", or the text, which the context lacks"),
        )
    return start, end
