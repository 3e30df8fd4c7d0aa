"""Reading members of a wheel, which is only ever unzipped: never installed, never executed."""

import email
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from zipfile import BadZipFile, ZipFile, ZipInfo

from assets.errors import WheelError

LICENCE_FOLDER = "licences"

_LICENCE_MEMBER = re.compile(
    r"[^/]+\.dist-info/(licenses/)?(LICEN[SC]E|COPYING|NOTICE|AUTHORS)[^/]*", re.IGNORECASE
)


@contextmanager
def open_wheel(path: Path) -> Iterator[ZipFile]:
    """Open a wheel after checking that none of its members points out of a folder.

    Raises:
        WheelError: A member is unsafe, or the file is not a whole zip archive.
    """
    try:
        with ZipFile(path) as archive:
            for member in archive.infolist():
                _require_safe(member, path)
            yield archive
    except BadZipFile as error:
        raise WheelError(
            "the wheel is damaged",
            where=str(path),
            given=str(error),
            fix="delete this file and run again",
        ) from error


def _require_safe(member: ZipInfo, path: Path) -> None:
    # ZipFile keeps `filename` up to the first NUL; `orig_filename` is what the archive says.
    name = member.orig_filename
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    leaves = posix.is_absolute() or windows.anchor or ".." in posix.parts + windows.parts
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if leaves or is_link or "\0" in name:
        raise WheelError(
            "the wheel holds an unsafe member",
            where=str(path),
            given=repr(name) + (" (a symbolic link)" if is_link else ""),
            fix="do not use this wheel; check the pinned version and its sha256",
        )


def read_member(archive: ZipFile, name: str) -> bytes:
    """The content of one member.

    Raises:
        WheelError: There is no such member.
    """
    try:
        return archive.read(name)
    except KeyError as error:
        raise _missing(archive, name) from error


def copy_member(archive: ZipFile, name: str, destination: Path) -> None:
    """Write one member to a file, in pieces.

    Raises:
        WheelError: There is no such member.
    """
    try:
        source = archive.open(name)
    except KeyError as error:
        raise _missing(archive, name) from error
    with source, destination.open("wb") as file:
        shutil.copyfileobj(source, file, length=1 << 20)


def _missing(archive: ZipFile, name: str) -> WheelError:
    return WheelError(
        "the wheel lacks a file that the conversion needs",
        where=str(archive.filename),
        given=f"no member {name}",
        fix="check the pinned version in scripts/assets/catalog.py",
    )


def copy_licence_files(archive: ZipFile, folder: Path) -> list[str]:
    """Copy the wheel's licence files; return their paths below `folder`, sorted."""
    members = sorted(name for name in archive.namelist() if _LICENCE_MEMBER.fullmatch(name))
    copied = []
    for member in members:
        path = f"{LICENCE_FOLDER}/{PurePosixPath(member).name}"
        (folder / path).parent.mkdir(exist_ok=True)
        copy_member(archive, member, folder / path)
        copied.append(path)
    return sorted(copied)


def stated_licence(archive: ZipFile) -> list[str]:
    """The lines of the wheel's METADATA that state a licence, in their order."""
    names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    if not names:
        return []
    metadata = email.message_from_bytes(archive.read(names[0]))
    return [
        f"{field}: {' '.join(value.split())}"
        for field, value in metadata.items()
        if field in ("License", "License-Expression")
        or (field == "Classifier" and value.startswith("License ::"))
    ]
