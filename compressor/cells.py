"""What the cells of tables hold: texts, contents of files, or their paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from compressor.class_folders import FILE_SUFFIXES
from compressor.errors import DataError
from targets.errors import InputError
from targets.preprocessing import KINDS, Preprocessing
from targets.preprocessing.text import check_characters

__all__ = ["as_data_error", "read_cell", "whole_text"]


def read_cell(
    cell: object, kind: str, folder: Path, where: str, *, name: str | None = None
) -> str | bytes | None:
    """What a cell holds: a text, the content of a file, or its path; None where it holds nothing.

    Args:
        cell: Of a table.
        kind: What is in it; see `compressor.data.Kind`.
        folder: Of the table.
        where: What to call the cell in messages.
        name: What to call what is in it; by default its kind.

    Raises:
        DataError: It names a file that does not exist, or holds an input that is none.
    """
    preprocessing = KINDS[kind]
    if not preprocessing.reads_files():
        return whole_text(cell, where) if isinstance(cell, str) and cell.strip() else None
    held = _content(preprocessing, cell, where)
    if held is not None:
        return held
    if isinstance(cell, Mapping):  # how Hugging Face keeps files in a table
        content, cell = cell.get("bytes"), cell.get("path")
        if content:
            return bytes(content)
    if not isinstance(cell, str) or not cell.strip():
        return None
    path = folder / cell
    exists = os.path.exists if preprocessing.folders else os.path.isfile
    if not exists(path):  # False also for what cannot be a path
        raise DataError(
            f"the file of the {name or kind} does not exist",
            where=where,
            given=f"{path!s:.200}",
            fix="correct the path: it is read from the folder of the table",
        )
    if path.suffix.lower() in FILE_SUFFIXES - {*preprocessing.suffixes} and path.is_file():
        raise DataError(
            f"the file of the {name or kind} has a format that is not read",
            where=where,
            given=path.name,
            fix=f"convert it to one of {', '.join(sorted(preprocessing.suffixes))}",
        )
    return str(path)


def whole_text(text: str, where: str) -> str:
    """A text that is not cut within a character.

    Raises:
        DataError: It has half of one.
    """
    try:
        check_characters(text, where)
    except InputError as error:
        raise as_data_error(error) from error
    return text


def _content(preprocessing: type[Preprocessing], cell: object, where: str) -> bytes | None:
    try:
        return preprocessing.content(cell, where)
    except InputError as error:
        raise as_data_error(error) from error


def as_data_error(error: InputError) -> DataError:
    """The same error, of the data."""
    return DataError(error.what, where=error.where, given=error.given, fix=error.fix)
