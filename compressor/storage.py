"""The file system's side of the run store: atomic writes, and its refusals as clear errors."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import ReportError, StoreError
from targets.bundle import FileRecord
from targets.errors import is_disk_full

__all__ = [
    "copy_changed",
    "full_disk",
    "record_files",
    "records_of",
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
    while not os.path.exists(path):  # which raises nothing, whatever may not be read
        path = path.parent
    return path


def why_not_writable(folder: Path) -> str | None:
    """Why nothing can be written to a folder that may not exist yet, or None; leaves no trace."""
    existing = _existing(folder)
    if not os.path.isdir(existing):
        return f"{existing} is a file"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{existing}: {error.strerror or error}"


def records_of(folder: Path, names: Iterable[str]) -> dict[str, FileRecord | None]:
    """Name -> record of each file below a folder, None where there is none; several at a time."""

    def record(name: str) -> FileRecord | None:
        path = folder / name
        return FileRecord.of(path) if path.is_file() else None

    named = list(names)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(named, pool.map(record, named), strict=True))


def copy_changed(source: Path, target: Path, records: Mapping[str, FileRecord]) -> None:
    """Copy the files that are not there yet as they are recorded; each appears whole.

    Raises:
        ReportError: They cannot be written.
    """
    found = records_of(target, records)
    try:
        for name, wanted in records.items():
            if found[name] != wanted:
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f"{path.name}.partial")
                shutil.copyfile(source / name, temporary)
                os.replace(temporary, path)
    except OSError as error:
        raise ReportError(
            "a file cannot be written to the output folder",
            where=target,
            given=error.strerror or error,
            fix="free some space there, or pass another folder with --output; "
            "the store has kept every finished step",
        ) from error


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
