"""What can go wrong while fetching an asset.

AssetError
    UsageError               a wrong command line
    DownloadError            pip brought no wheel
        HashMismatchError    pip brought another wheel than the pinned one
    WheelError               the wheel is unsafe to unpack or lacks what the conversion needs
    StorageError             the asset folder cannot be written
        NoSpaceError         the disk or the quota is full
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    """pip brought no wheel."""


class HashMismatchError(DownloadError):
    """The wheel is not the pinned one."""


class WheelError(AssetError):
    """The wheel is unsafe to unpack, damaged, or lacks what the conversion needs."""


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
        fix="free some space (all assets with their wheels take about 300 MB), "
        "or choose another disk with --to DIR or COMPRESSOR_ASSETS",
    )
