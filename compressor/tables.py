"""Columns of local CSV, JSON and Parquet files. No text is taken for a number."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compressor.errors import DataError, nearest
from targets.errors import MissingLibraryError

__all__ = ["FLAT", "SUFFIXES", "Columns", "read_columns", "require_columns"]

FLAT = (".csv", ".tsv")
"""Suffixes of formats whose cells hold text only."""


class Columns(NamedTuple):
    """What was read of a file."""

    names: tuple[str, ...]
    """All columns of the file."""
    values: dict[str, list[Any]]
    """The wanted columns that it has, row by row."""


def read_columns(path: Path, wanted: Collection[str]) -> Columns:
    """Read some columns of a file; its suffix tells the format.

    Args:
        path: The file.
        wanted: Names of the columns; those the file lacks are left out.

    Raises:
        DataError: The file is absent, empty, of an unknown format, or not well formed.
        MissingLibraryError: It is a Parquet file and pyarrow is not installed.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(
            "the data file has an unknown format",
            where=path,
            given=path.suffix or "no suffix",
            fix=f"use one of {', '.join(SUFFIXES)}",
        )
    if not path.is_file():
        raise DataError(
            "the data file does not exist", where=path, fix="correct the path in the recipe"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError("the file is empty", where=path, fix="pass a file with labelled rows")
        return read(path, wanted)
    except UnicodeDecodeError as error:
        raise DataError(
            "the file is not UTF-8",
            where=path,
            given=error,
            fix=f"convert it, such as with `iconv -f latin1 -t utf-8 {path.name}`",
        ) from error
    except OSError as error:
        raise DataError(
            "the file cannot be read", where=path, given=error, fix="check its permissions"
        ) from error


def require_columns(
    path: Path, columns: Mapping[str, str], slices: Sequence[str]
) -> dict[str, list[Any]]:
    """The cells of columns, by their names, and of those that the data is sliced by.

    Args:
        path: The file.
        columns: Field of the data -> the name of the column; inputs first, labels last, if any.
        slices: Columns that the data is sliced by; one that is missing is left out.

    Raises:
        DataError: A column is missing, or the file has no rows.
    """
    names, values = read_columns(path, {*columns.values(), *slices})
    first, *labels = columns
    missing = {role: column for role, column in columns.items() if column not in values}
    if missing:
        named = " and ".join(f"the {role} column {column!r}" for role, column in missing.items())
        raise DataError(
            f"{named} {'is' if len(missing) == 1 else 'are'} missing",
            where=path,
            given=f"columns {', '.join(names) or '(none)'}",
            fix=_separator_hint(names) or _how_to_name(missing, columns, names),
        )
    if not values[columns[first]]:
        kind = "labelled rows" if labels else "rows"
        raise DataError("the file has no rows", where=path, fix=f"pass a file with {kind}")
    return values


def _how_to_name(
    missing: Mapping[str, str], columns: Mapping[str, str], names: Sequence[str]
) -> str:
    """How a recipe and the command line are told the columns; with the nearest that there are."""
    first = next(iter(columns))
    settings = " ".join(f"--set data.{role}=COLUMN" for role in missing)
    known = {list(columns)[-1]: "label", first: "input"}
    options = " ".join(f"--{known[role]} COLUMN" for role in missing if role in known)
    guesses = [guess for guess in (nearest(each, names) for each in missing.values()) if guess]
    which = "it" if len(missing) == 1 else "them"
    hint = f"; did you mean {' and '.join(map(repr, guesses))}?" if guesses else ""
    if not options:
        return f"name {which}: {settings}{hint}"
    return f"name {which}: {options}, or in a recipe with {settings}{hint}"


def _separator_hint(names: Sequence[str]) -> str | None:
    """What to do about a table whose columns were read as one."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(names) == 1 and separator in names[0]:
            return f"the columns are separated by {name}: write commas, or tabs in a .tsv file"
    return None


def _read_csv(path: Path, wanted: Collection[str], delimiter: str = ",") -> Columns:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        # strict: a quote out of place would otherwise swallow the rows up to the next one.
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = tuple(next(reader, ()))
            _refuse_twice(header, wanted, path)
            places = {name: header.index(name) for name in wanted if name in header}
            values: dict[str, list[Any]] = {name: [] for name in places}
            for row in reader:
                if not row:
                    continue  # a blank line
                if len(row) != len(header):
                    raise DataError(
                        "a row does not have the same number of fields as the header",
                        where=f"{path}, line {reader.line_num}",
                        given=f"{len(row)} fields, the header has {len(header)}",
                        fix=f"put texts that hold {delimiter!r} in double quotes",
                    )
                if delimiter == "\t" and any(delimiter in field for field in row):
                    raise DataError(  # else a lone quote takes the rows up to the next one
                        "a quoted text holds a tab",
                        where=f"{path}, up to line {reader.line_num}",
                        given=next(field for field in row if delimiter in field)[:60],
                        fix="put texts that hold double quotes in double quotes, and double those "
                        "inside",
                    )
                for name, place in places.items():
                    values[name].append(row[place])
        except csv.Error as error:
            raise DataError(
                "the file is not well-formed CSV",
                where=f"{path}, line {reader.line_num}",
                given=error,
                fix="double the quotes inside of quoted texts, and close each; "
                "texts above 131,072 characters need .jsonl",
            ) from error
    return Columns(header, values)


def _read_tsv(path: Path, wanted: Collection[str]) -> Columns:
    return _read_csv(path, wanted, delimiter="\t")


def _refuse_twice(header: tuple[str, ...], wanted: Collection[str], path: Path) -> None:
    for name, count in Counter(header).items():
        if count > 1 and name in wanted:
            raise DataError(
                f"the column {name!r} appears twice",
                where=path,
                given=f"columns {', '.join(header)}",
                fix="rename one of them",
            )


def _read_json(path: Path, wanted: Collection[str]) -> Columns:
    """A list of objects, or one object a line."""
    names: dict[str, None] = {}
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    for where, row in _json_rows(path):
        if not isinstance(row, dict):
            raise DataError(
                "a row is not a JSON object",
                where=where,
                given=type(row).__name__,
                fix='write each row as {"text": ..., "label": ...}',
            )
        names |= dict.fromkeys(row)
        for name, column in values.items():
            column.append(row.get(name))
    return Columns(tuple(names), {name: values[name] for name in values if name in names})


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows, each with the place where it stands."""
    with path.open(encoding="utf-8-sig") as stream:
        is_list = path.suffix.lower() == ".json" and stream.read(4096).lstrip()[:1] == "["
        stream.seek(0)
        if is_list:
            for index, row in enumerate(_parse_json(stream.read(), str(path)), 1):
                yield f"{path}, row {index}", row
            return
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _parse_json(line, where)


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            "the file is not well-formed JSON",
            where=where,
            given=error,
            fix="write one JSON object a line, or in a .json file one list of objects",
        ) from error


def _read_parquet(path: Path, wanted: Collection[str]) -> Columns:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingLibraryError.for_extra("pyarrow", "build", "reading Parquet") from error
    try:
        with parquet.ParquetFile(path) as stream:
            names = tuple(stream.schema_arrow.names)
            _refuse_twice(names, wanted, path)
            table = stream.read(columns=[name for name in wanted if name in names])
        values: dict[str, list[Any]] = table.to_pydict()
    except ArrowException as error:
        raise DataError(
            "the file is not a complete Parquet file",
            where=path,
            given=str(error).strip().splitlines()[0],
            fix="copy or write it again",
        ) from error
    return Columns(names, values)


_READERS: dict[str, Callable[[Path, Collection[str]], Columns]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}

SUFFIXES = tuple(_READERS)
"""Suffixes of the formats that can be read."""
