"""The file system's side of the run store: atomic writes, and its refusals as clear errors."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import StoreError
from targets.bundle import FileRecord
from targets.errors import is_disk_full

__all__ = [
    "full_disk",
    "record_files",
    "storage_errors",
    "sync_folder",
    "why_not_writable",
    "write_atomically",
]


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Map what the file system refuses to one clear error."""
    try:
        with full_disk(root):
            yield
    except OSError as error:
        raise StoreError(
            "the run store cannot be read or written",
            where=root,
            given=error,
            fix="pass another folder with --store or set COMPRESSOR_STORE",
        ) from error


@contextmanager
def full_disk(root: Path) -> Iterator[None]:
    """Map a full disk to a clear error, also where a library reports it in its own words."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise StoreError(
            "the disk is full",
            where=root,
            given=f"{shutil.disk_usage(_existing(root)).free / 1e6:.0f} MB free",
            fix="free some space (`compressor runs prune` removes what old runs left) and run "
            "the same command again: finished steps are kept and it goes on from there",
        ) from error


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def why_not_writable(folder: Path) -> str | None:
    """Why nothing can be written to a folder that may not exist yet, or None; leaves no trace."""
    existing = _existing(folder)
    if not existing.is_dir():
        return f"{existing} is a file"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{existing}: {error.strerror or error}"


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Name -> record of every file below a folder, after each of them was written through."""
    records = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            records[path.relative_to(folder).as_posix()] = FileRecord.of(path)
    return records


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file so that a reader finds the old one or the new one, never a part.

    Args:
        path: The file.
        text: Its content.
        durable: Wait until it is on the disk, so that it outlives a loss of power as well.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text + "\n")
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    os.replace(temporary, path)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until what was renamed in a folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
