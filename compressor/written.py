"""Inputs with the texts that are to be written about them, out of tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compressor.cells import read_cell, whole_text
from compressor.errors import DataError
from compressor.tables import require_columns
from targets.preprocessing import KINDS

__all__ = ["Written", "read_written"]


class Written(NamedTuple):
    """A file.

    Attributes:
        inputs: Texts, or the path or the content of a file each.
        texts: What is to be written of each.
        slices: Column -> one value a row.
    """

    inputs: tuple[Any, ...]
    texts: tuple[str, ...]
    slices: dict[str, list[Any]]


def read_written(
    path: Path, kind: str, *, source: str, target: str, slices: Sequence[str] = ()
) -> Written:
    """Read a table.

    Args:
        path: The file.
        kind: Of the inputs.
        source: Column with the input.
        target: Column with the text.
        slices: Columns that the data is sliced by.

    Raises:
        DataError: The file cannot be read, or a row has no input or no text; names it.
    """
    if path.is_dir():
        raise DataError(
            f"the data is a folder, but the texts of {KINDS[kind].noun}s are read from a table",
            where=path,
            fix=f"pass a file with the columns {source} and {target}",
        )
    values = require_columns(path, {kind: source, "target": target}, slices)
    rows: list[tuple[Any, str]] = []
    for row, (cell, text) in enumerate(zip(values[source], values[target], strict=True), 1):
        where = f"{path}, row {row}"
        found = read_cell(cell, kind, path.parent, where)
        if found is None or not isinstance(text, str) or not text.strip():
            raise DataError(
                f"a row has no {kind} or no text to write",
                where=where,
                given=f"{source}={cell!r:.100}, {target}={text!r:.100}",
                fix=f"remove the row, or write {KINDS[kind].wanted} and a text",
            )
        rows.append((found, whole_text(text, where)))
    inputs, texts = zip(*rows, strict=True)
    return Written(inputs, texts, {name: values[name] for name in slices if name in values})
