"""Files that a command writes beside what it prints."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["check_file", "check_folder", "write_text"]


def check_file(path: Path | None) -> None:
    """Check that a file can be written, before the work whose result it is to hold.

    Args:
        path: Its folder need not exist. None where nothing is to be written.

    Raises:
        ReportError: It cannot.
    """
    from compressor.storage import why_not_writable

    if path is None:
        return
    if path.is_dir():
        reason: str | None = "it is a folder"
    elif path.exists():
        reason = None if os.access(path, os.W_OK) else "it cannot be written to"
    else:
        reason = why_not_writable(path.absolute().parent)
    if reason is not None:
        raise _cannot_be_written(path, reason)


def check_folder(path: Path) -> None:
    """Check that files can be written to a folder, which need not exist, before the work.

    Raises:
        ReportError: They cannot.
    """
    from compressor.storage import why_not_writable

    reason = why_not_writable(path.absolute())
    if reason is not None:
        raise _cannot_be_written(path, reason)


def write_text(path: Path, text: str, *, mode: str = "w") -> None:
    """Write a text file, and the folder where it is to stand.

    Raises:
        ReportError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise _cannot_be_written(path, error.strerror or error) from error


def _cannot_be_written(path: Path, reason: object) -> Exception:
    from compressor.errors import ReportError

    return ReportError(
        "the result cannot be written",
        where=path,
        given=reason,
        fix="pass a path that can be written to",
    )
