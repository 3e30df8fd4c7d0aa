"""Copy files to a device; a file that was cut off goes on where it stopped."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from compressor.devices.connection import Connection
from compressor.devices.failures import talking
from compressor.errors import DeviceError
from targets.archive import MANIFEST
from targets.bundle import Bundle, hash_file

if TYPE_CHECKING:
    import asyncssh

__all__ = ["BLOCK", "Copied", "bundle_key", "copy_bundle", "copy_file", "make_folder"]

CHUNK = 2**20
"""Bytes of which the arrival is awaited before more are sent. Only in the last chunk of a file that
was cut off can bytes be missing, so the copy goes on at its beginning."""

BLOCK = 2**15
"""Bytes of one request; every server takes so many."""
_PRIVATE = 0o700


@dataclass(frozen=True)
class Copied:
    """What a copy cost.

    Attributes:
        sent_bytes: Bytes that went over the network.
        found_bytes: Bytes that were on the device already.
    """

    sent_bytes: int = 0
    found_bytes: int = 0

    def __add__(self, other: Copied) -> Copied:
        return Copied(self.sent_bytes + other.sent_bytes, self.found_bytes + other.found_bytes)

    def __str__(self) -> str:
        there = f", {self.found_bytes / 1e6:.2f} MB were there" if self.found_bytes else ""
        return f"copied {self.sent_bytes / 1e6:.2f} MB{there}"


async def make_folder(connection: Connection, folder: PurePosixPath) -> None:
    """Make a folder and those above it; only the user may enter the new ones."""
    import asyncssh

    sftp = await connection.sftp()
    with talking(connection.device, f"making {folder}"):
        attributes = asyncssh.SFTPAttrs(permissions=_PRIVATE)
        await sftp.makedirs(str(folder), attributes, exist_ok=True)


async def copy_file(connection: Connection, source: Path, goal: PurePosixPath) -> Copied:
    """Copy one file into a folder that exists.

    The name of ``goal`` has to change with the content (a hash above it does): a file of the right
    size is taken for the file itself. Whoever uses it compares its hash.

    Raises:
        DeviceError: The connection was lost, or the device refuses the file.
    """
    import asyncssh

    sftp = await connection.sftp()
    size = source.stat().st_size
    with talking(connection.device, f"copying {source.name}"):
        if await _size(sftp, goal) == size:
            return Copied(found_bytes=size)
        part = goal.with_name(goal.name + ".part")
        there = await _size(sftp, part) or 0
        start = max(there - 1, 0) // CHUNK * CHUNK if there <= size else 0
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT
        if not start:
            await _check_room(connection, sftp, goal.parent, size)
            flags |= asyncssh.FXF_TRUNC
        with source.open("rb") as stream:
            stream.seek(start)
            # Without a block size of its own the library leaves tasks with unseen errors behind
            # when the connection is lost.
            async with sftp.open(str(part), flags, encoding=None, block_size=0) as output:
                offset = start
                while chunk := stream.read(CHUNK):
                    await asyncio.gather(
                        *(
                            output.write(chunk[at : at + BLOCK], offset + at)
                            for at in range(0, len(chunk), BLOCK)
                        )
                    )
                    offset += len(chunk)
        await sftp.posix_rename(str(part), str(goal))
    return Copied(sent_bytes=size - start, found_bytes=start)


async def copy_bundle(connection: Connection, bundle: Bundle, folder: PurePosixPath) -> Copied:
    """Copy a bundle into a folder whose name stands for its content; the manifest comes last.

    Raises:
        DeviceError: The connection was lost, or the device refuses a file.
    """
    copied = Copied()
    for name in (*bundle.manifest.files, MANIFEST):
        goal = folder / name
        await make_folder(connection, goal.parent)
        copied += await copy_file(connection, bundle.path(name), goal)
    return copied


def bundle_key(bundle: Bundle) -> str:
    """What names the content of a bundle: the sha256 of its manifest, which has all others."""
    return hash_file(bundle.path(MANIFEST))


async def _size(sftp: asyncssh.SFTPClient, path: PurePosixPath) -> int | None:
    import asyncssh

    try:
        return (await sftp.stat(str(path))).size
    except asyncssh.SFTPNoSuchFile:
        return None


async def _check_room(
    connection: Connection, sftp: asyncssh.SFTPClient, folder: PurePosixPath, size: int
) -> None:
    """Refuse a file for which there is no room, where the server can tell."""
    import asyncssh

    try:
        found = await sftp.statvfs(str(folder))
    except asyncssh.SFTPOpUnsupported:
        return
    free = found.bavail * found.frsize
    if size > free:
        raise DeviceError(
            "the disk of the device has no room for a file",
            where=f"{connection.device.address}, {folder}",
            given=f"{size / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free",
            fix="free some space there, or name another workdir in the devices file",
        )
