"""A report on disk: ``report.json`` for programs, ``report.md`` and ``report.html`` for people."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from compressor.errors import ReportError
from compressor.report.html import render_html
from compressor.report.markdown import render_markdown
from compressor.report.schema import REPORT_SCHEMA_VERSION, Report

__all__ = ["JSON_NAME", "read_report", "write_report"]

JSON_NAME = "report.json"


def write_report(report: Report, folder: str | Path) -> tuple[Path, ...]:
    """Write a report as JSON, Markdown and HTML; each file appears whole or not at all.

    Args:
        report: What to write.
        folder: Where to; made if it is absent.

    Returns:
        The files that were written, JSON first.

    Raises:
        ReportError: The folder cannot be written to.
    """
    folder = Path(folder)
    contents = {
        JSON_NAME: report.model_dump_json() + "\n",
        "report.md": render_markdown(report),
        "report.html": render_html(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            _replace(folder / name, text)
    except OSError as error:
        raise ReportError(
            "the report cannot be written",
            where=folder,
            given=error,
            fix="free some space there, or pass a folder that can be written to",
        ) from error
    return tuple(folder / name for name in contents)


def read_report(path: str | Path) -> Report:
    """Read ``report.json``.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        ReportError: It is absent, damaged, or of another schema version.
    """
    path = Path(path)
    if path.is_dir():
        path = path / JSON_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ReportError(
            "this is not a report: it cannot be read as JSON",
            where=path,
            given=error,
            fix="pass the report.json that `compressor run` wrote, or run again",
        ) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != REPORT_SCHEMA_VERSION:
        raise ReportError(
            "the report has another schema version",
            where=path,
            given="none" if version is None else repr(version),
            fix=f"this version reads schema {REPORT_SCHEMA_VERSION}; "
            "install the version that wrote the report, or run again",
        )
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise ReportError(
            f"the report is damaged: {error.error_count()} of its fields cannot be read",
            where=f"{path}, field {'.'.join(map(str, first['loc'])) or '(document)'}",
            given=first["msg"],
            fix="run again to write it anew",
        ) from error


def _replace(path: Path, text: str) -> None:
    """Write beside the file, then put it in its place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
