"""A report on disk: ``report.json`` for programs, ``report.md`` and ``report.html`` for people."""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load, save

from compressor.errors import DamagedReportError, ReportError
from compressor.report.schema import REPORT_SCHEMA_VERSION, Report
from targets.wording import plural

__all__ = [
    "JSON_NAME",
    "PREDICTIONS_NAME",
    "read_answers",
    "read_report",
    "report_file",
    "withdraw_report",
    "write_files",
    "write_report",
]

JSON_NAME = "report.json"
PREDICTIONS_NAME = "predictions.safetensors"

Answers = Mapping[str, NDArray[np.generic]]


def write_report(report: Report, folder: str | Path, *, answers: Answers | None = None) -> Report:
    """Write a report as JSON, Markdown and HTML; each file appears whole or not at all.

    Args:
        report: What to write.
        folder: Where to; made if it is absent.
        answers: What is judged of the test data: its true classes as ``labels`` (M,), the rows of
            the data that they belong to as ``rows`` (M,), and row key -> probabilities
            (M, classes), or of pixels the classes, (M,); written as ``predictions.safetensors``.

    Returns:
        The report, with the sha256 of the answers in it.

    Raises:
        ReportError: The folder cannot be written to.
    """
    from compressor.report.html import render_html
    from compressor.report.markdown import render_markdown

    folder = Path(folder)
    packed = None
    if answers is not None:  # the library writes memory as it lies, also where that has gaps
        packed = save({name: np.ascontiguousarray(each) for name, each in answers.items()})
    if packed is not None:
        digest = hashlib.sha256(packed).hexdigest()
        report = report.model_copy(update={"predictions": digest})
    contents = {
        **({} if packed is None else {PREDICTIONS_NAME: packed}),
        "report.md": render_markdown(report).encode(),
        "report.html": render_html(report).encode(),
        JSON_NAME: (report.model_dump_json() + "\n").encode(),  # last: what it speaks of is there
    }
    write_files(folder, contents)
    return report


def withdraw_report(folder: Path) -> None:
    """Remove ``report.json``, before what it speaks of is replaced.

    Raises:
        ReportError: The folder cannot be written to.
    """
    try:
        (folder / JSON_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder, made if it is absent; each appears whole or not at all.

    Raises:
        ReportError: The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _replace(folder / name, content)
    except OSError as error:
        raise _not_written(folder, error) from error


def _not_written(folder: Path, error: OSError) -> ReportError:
    return ReportError(
        "the report cannot be written",
        where=folder,
        given=error,
        fix="free some space there, or pass a folder that can be written to",
    )


def read_answers(report: Report, path: str | Path) -> dict[str, NDArray[np.generic]] | None:
    """Read the answers that a report was written with; None where there are none beside it.

    Args:
        report: Read from ``path``.
        path: Its file, or the folder that holds it.

    Raises:
        ReportError: They cannot be read, or are not those of the report.
    """
    if report.predictions is None:
        return None
    file = report_file(path).with_name(PREDICTIONS_NAME)
    try:
        packed = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReportError(
            "the predictions of the report cannot be read",
            where=file,
            given=error.strerror or error,
            fix="keep predictions.safetensors beside report.json",
        ) from error
    if hashlib.sha256(packed).hexdigest() != report.predictions:
        raise ReportError(
            "these are not the predictions of the report: their sha256 differs",
            where=file,
            fix="keep the files of one run together, or run again",
        )
    return load(packed)


def report_file(path: str | Path) -> Path:
    """The file of a report, which is named by itself or by the folder that holds it."""
    path = Path(path)
    # Never raises, as is_dir of a path does: reading it then tells what is wrong.
    return path / JSON_NAME if os.path.isdir(path) else path


def read_report(path: str | Path) -> Report:
    """Read ``report.json``.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        ReportError: It is absent, no report, or of another schema version.
        DamagedReportError: A field is not what it has to be, such as a time that is no number.
    """
    path = report_file(path)
    fix = "pass the report.json that `compressor run` wrote, or run again"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReportError("the report does not exist", where=path, fix=fix) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(
            "this is not a report: it cannot be read as JSON", where=path, given=error, fix=fix
        ) from error
    if not isinstance(data, dict) or "schema_version" not in data:
        raise ReportError(
            "this is not a report: it has no schema_version",
            where=path,
            given=reprlib.repr(data),
            fix=fix,
        )
    if data["schema_version"] != REPORT_SCHEMA_VERSION:
        raise ReportError(
            "the report has another schema version",
            where=path,
            given=repr(data["schema_version"]),
            fix=f"this version reads schema {REPORT_SCHEMA_VERSION}; "
            "install the version that wrote the report, or run again",
        )
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"]
        raise DamagedReportError(
            f"the report is damaged: {plural(error.error_count(), 'field')} cannot be used",
            where=f"{path}, field {'.'.join(map(str, first['loc'])) or '(document)'}",
            given=f"{reprlib.repr(first['input'])}: {message[0].lower()}{message[1:]}",
            fix="run again to write it anew",
        ) from error


def _replace(path: Path, content: bytes) -> None:
    """Write beside the file, then put it in its place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
