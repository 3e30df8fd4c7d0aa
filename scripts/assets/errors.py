"""What can go wrong while fetching an asset.

AssetError
    UsageError               a wrong command line
    DownloadError            pip, apt-get or npm brought no package
        HashMismatchError    it brought another package than the pinned one
    PackageError             the package is unsafe to unpack or lacks what the conversion needs
    MissingLibraryError      the conversion needs a library that this Python has not
    StorageError             the asset folder cannot be written
        NoSpaceError         the disk or the quota is full
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assets.asset import Source


class AssetError(Exception):
    """Says what failed, where, what was given and how to fix it.

    Args:
        what: The failure in one line.
        where: The file, folder, option or command it happened in.
        given: The offending value.
        fix: What the reader can do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str, given: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.given = given
        self.fix = fix

    def __str__(self) -> str:
        return (
            f"error: {self.what}\n  where: {self.where}\n  given: {self.given}\n  fix: {self.fix}"
        )


class UsageError(AssetError):
    """A wrong command line."""

    exit_code = 2


class DownloadError(AssetError):
    """pip, apt-get or npm brought no package."""


class HashMismatchError(DownloadError):
    """The package is not the pinned one."""


class PackageError(AssetError):
    """The package is unsafe to unpack, damaged, or lacks what the conversion needs."""


class MissingLibraryError(AssetError):
    """The conversion needs a library that this Python has not."""


class StorageError(AssetError):
    """The asset folder cannot be written."""


class NoSpaceError(StorageError):
    """The disk or the quota is full."""


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn every OSError of the enclosed block into a StorageError about `folder`."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or folder)
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(where, given=reason) from error
        raise StorageError(
            "the asset folder cannot be written",
            where=where,
            given=reason,
            fix="choose a folder you can write with --to DIR or COMPRESSOR_ASSETS",
        ) from error


def no_space(where: str, *, given: str) -> NoSpaceError:
    """The error for a full disk or quota at `where`."""
    return NoSpaceError(
        "no space left for the assets",
        where=where,
        given=given,
        fix="free some space (all assets with their packages take about 1.6 GB), "
        "or choose another disk with --to DIR or COMPRESSOR_ASSETS",
    )


def is_no_space(output: str) -> bool:
    """Whether a package manager failed for a full disk or quota, by what it printed."""
    return "No space left on device" in output or "Disk quota exceeded" in output


def hash_mismatch(source: Source, found: str) -> HashMismatchError:
    """The error for a package with another sha256 than the pinned one."""
    return HashMismatchError(
        f"the downloaded package of {source.requirement} is not the pinned one",
        where=source.filename,
        given=f"sha256 {found}, expected {source.sha256}",
        fix="check the mirror or proxy that packages come through; the file was not kept",
    )
