"""Texts whose words have labels, out of files with lists in their rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compressor.cells import as_data_error, whole_text
from compressor.class_names import label_text
from compressor.errors import DataError
from compressor.tables import FLAT, require_columns
from targets.answers.token_labels import join_words
from targets.errors import InputError

__all__ = ["Tagged", "read_tagged"]


class Tagged(NamedTuple):
    """A file.

    Attributes:
        texts: See `targets.answers.token_labels.join_words`.
        tags: The labels of each, one a word.
        slices: Column -> one value a row.
    """

    texts: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]
    slices: dict[str, list[Any]]


def read_tagged(path: Path, *, tokens: str, tags: str, slices: Sequence[str] = ()) -> Tagged:
    """Read a file.

    Args:
        path: .json, .jsonl or .parquet.
        tokens: Column with the words.
        tags: Column with their labels.
        slices: Columns that the data is sliced by.

    Raises:
        DataError: The file cannot be read, or a row has not as many labels as words; names it.
    """
    if path.is_dir() or path.suffix.lower() in FLAT:
        raise DataError(
            "lists of words and of their labels cannot be read from "
            + ("a folder of files" if path.is_dir() else "the cells of this type of file"),
            where=path,
            given="a folder" if path.is_dir() else path.suffix,
            fix="write them to .jsonl, .json or .parquet, such as "
            f'{{"{tokens}": ["Birds", "sing"], "{tags}": ["NOUN", "VERB"]}}',
        )
    values = require_columns(path, {"tokens": tokens, "tags": tags}, slices)
    texts: list[str] = []
    labelled: list[tuple[str, ...]] = []
    for row, (words, labels) in enumerate(zip(values[tokens], values[tags], strict=True), 1):
        where = f"{path}, row {row}"
        for column, cell in ((tokens, words), (tags, labels)):
            if not isinstance(cell, list):
                raise DataError(
                    f"a row has no list in the column {column!r}",
                    where=where,
                    given=f"{type(cell).__name__} {cell!r:.60}",
                    fix="write a list of words, and a list of their labels",
                )
        if len(words) != len(labels):
            raise DataError(
                "a row has different numbers of labels and words",
                where=where,
                given=f"{len(words)} in {tokens!r}, {len(labels)} in {tags!r}",
                fix="give each word of the row one label",
            )
        found = [label for each in labels if (label := label_text(each)) is not None]
        if len(found) != len(labels):
            wrong = next(each for each in labels if label_text(each) is None)
            raise DataError(
                "a word has no label",
                where=where,
                given=f"{wrong!r} in {tags!r}",
                fix="give each word a class name or index",
            )
        try:
            texts.append(whole_text(join_words(words, where=where), where))
        except InputError as error:
            raise as_data_error(error) from error
        labelled.append(tuple(found))
    found_slices = {name: values[name] for name in slices if name in values}
    return Tagged(tuple(texts), tuple(labelled), found_slices)
