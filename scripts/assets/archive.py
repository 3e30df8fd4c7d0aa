"""Reading members of a package, which is only ever unpacked: never installed, never executed."""

import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from assets.asset import Archive
from assets.errors import PackageError

LICENCE_FOLDER = "licences"


def require_safe(name: str, path: Path, *, is_special: bool) -> None:
    """Refuse a member that would leave the folder it is unpacked to, or is no plain file.

    Args:
        name: The member as the package names it.
        path: The package.
        is_special: It is a link, a device or a pipe.

    Raises:
        PackageError: The member is unsafe.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    leaves = posix.is_absolute() or windows.anchor or ".." in posix.parts + windows.parts
    if leaves or is_special or "\0" in name:
        raise PackageError(
            "the package holds an unsafe member",
            where=str(path),
            given=repr(name) + (" (a link or device)" if is_special else ""),
            fix="do not use this package; check the pinned version and its sha256",
        )


@dataclass(frozen=True)
class TarArchive:
    """The files of a package that is a tar archive, named without the folder that all lie in."""

    filename: str
    tar: tarfile.TarFile
    members: dict[str, tarfile.TarInfo]

    @classmethod
    def of(cls, tar: tarfile.TarFile, path: Path, *, folder: str) -> "TarArchive":
        """Look at an open archive, and check that its members are safe.

        Args:
            tar: The archive.
            path: The package.
            folder: What the names of its members begin with.

        Raises:
            PackageError: A member is unsafe.
        """
        members = {}
        for member in tar:
            special = not (member.isfile() or member.isdir())
            require_safe(member.name, path, is_special=special)
            if member.isfile():
                members[member.name.removeprefix(folder)] = member
        return cls(str(path), tar, members)

    def namelist(self) -> list[str]:
        """See `Archive`."""
        return list(self.members)

    def open(self, name: str, /) -> IO[bytes]:
        """See `Archive`."""
        file = self.tar.extractfile(self.members[name])
        assert file is not None, "opening refused all that is no file"
        return file


@dataclass(frozen=True)
class JoinedArchive:
    """Several packages as one; of members of one name the first counts."""

    parts: tuple[Archive, ...]

    @property
    def filename(self) -> str:
        """See `Archive`."""
        return ", ".join(str(part.filename) for part in self.parts)

    def namelist(self) -> list[str]:
        """See `Archive`."""
        return list(dict.fromkeys(name for part in self.parts for name in part.namelist()))

    def open(self, name: str, /) -> IO[bytes]:
        """See `Archive`."""
        for part in self.parts:
            if name in part.namelist():
                return part.open(name)
        raise KeyError(name)


def read_member(archive: Archive, name: str) -> bytes:
    """The content of one member.

    Raises:
        PackageError: There is no such member.
    """
    try:
        with archive.open(name) as source:
            return source.read()
    except KeyError as error:
        raise _missing(archive, name) from error


def copy_member(archive: Archive, name: str, destination: Path) -> None:
    """Write one member to a file, in pieces.

    Raises:
        PackageError: There is no such member.
    """
    try:
        source = archive.open(name)
    except KeyError as error:
        raise _missing(archive, name) from error
    with source, destination.open("wb") as file:
        shutil.copyfileobj(source, file, length=1 << 20)


def _missing(archive: Archive, name: str) -> PackageError:
    return PackageError(
        "the package lacks a file that the conversion needs",
        where=str(archive.filename),
        given=f"no member {name}",
        fix="check the pinned version in scripts/assets/catalog.py",
    )


def damaged(path: Path, given: object) -> PackageError:
    """The error for a package that cannot be read."""
    return PackageError(
        "the package is damaged",
        where=str(path),
        given=str(given),
        fix="delete this file and run again",
    )


def copy_licence_files(archive: Archive, members: Iterable[str], folder: Path) -> list[str]:
    """Copy licence files; return their paths below `folder`, sorted."""
    copied = []
    for member in sorted(members):
        path = f"{LICENCE_FOLDER}/{PurePosixPath(member).name}"
        (folder / path).parent.mkdir(exist_ok=True)
        copy_member(archive, member, folder / path)
        copied.append(path)
    return sorted(copied)
