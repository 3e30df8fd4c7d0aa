"""The work folder on a device: what lies where, one user at a time, and nothing left behind.

lock                  held while a workstation works on the device
files/SHA256/         the wheel; removed at the end of a run
venvs/KEY/            environments; kept between runs
packages/SHA256/      the unpacked wheel for a given interpreter, and the attendant
                      (targets/attended.py), which others may be about to start; kept between runs
bundles/SHA256/       copies of bundles; removed at the end of a run
runs/ID/              results, and links to the bundles; removed at the end of a run
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath

import targets.attended
from compressor.devices.connection import BEAT_S, Completed, Connection
from compressor.devices.copying import copy_file, make_folder
from compressor.devices.failures import lost, talking
from compressor.errors import DeviceError
from targets.bundle import hash_file

__all__ = ["CLEAN_UP_S", "Workplace", "occupy", "remove_workplace", "workdir_of"]

SILENCE_S = 6 * BEAT_S
"""The device ends what it does after hearing nothing of the workstation for so long."""
CLEAN_UP_S = 20.0
LOCK = "lock"
KINDS = ("files", "venvs", "packages", "bundles", "runs")


class Workplace:
    """The work folder of a device, occupied.

    Args:
        connection: To the device.
        root: The work folder.
        run: The folder of this run.
        attended: Start of a command line that attends a command.
    """

    def __init__(
        self,
        connection: Connection,
        root: PurePosixPath,
        run: PurePosixPath,
        attended: Sequence[str],
    ) -> None:
        self.connection = connection
        self.root = root
        self.run_folder = run
        self._attended = (*attended, "--silence", str(SILENCE_S))

    async def run(
        self, argv: Sequence[str], *, doing: str, cwd: PurePosixPath | None = None
    ) -> Completed:
        """Run a command on the device that is interrupted there when this end goes away.

        Raises:
            DeviceError: The connection was lost.
        """
        where = () if cwd is None else ("--cwd", str(cwd))
        command = (*self._attended, *where, "--", *argv)
        async with self.connection.start(command, doing=doing, beat=True) as process:
            done = await process.wait()
        if done.code == targets.attended.ABANDONED:
            raise lost(self.connection.device, doing, "the device heard nothing for too long")
        return done

    async def file(self, source: Path) -> PurePosixPath:
        """Bring a file to the device, and tell where it is there."""
        folder = self.root / "files" / hash_file(source)
        await make_folder(self.connection, folder)
        await copy_file(self.connection, source, folder / source.name)
        return folder / source.name

    async def remove(self, *folders: PurePosixPath) -> None:
        """Remove folders of this work folder with all that is in them."""
        assert all(self.root in each.parents for each in folders)
        command = ("rm", "-rf", "--", *map(str, folders))
        await self.connection.run(command, doing="cleaning up")


async def workdir_of(connection: Connection) -> PurePosixPath:
    """The absolute path of the work folder."""
    workdir = connection.device.workdir
    if not workdir.startswith("~/"):
        return PurePosixPath(workdir)
    sftp = await connection.sftp()
    with talking(connection.device, "looking for the home folder"):
        return PurePosixPath(str(await sftp.realpath("."))) / workdir.removeprefix("~/")


@asynccontextmanager
async def occupy(
    connection: Connection, python: str, say: Callable[[str], None]
) -> AsyncIterator[Workplace]:
    """Make the work folder if absent, and keep everybody else out of it.

    A process on the device holds the lock, and removes the folder of this run when it ends: also
    when the connection is lost.

    Args:
        connection: To the device.
        python: An interpreter there.
        say: Is told when somebody else has to end first.

    Raises:
        DeviceError: The connection was lost, or the folder cannot be made.
    """
    root = await workdir_of(connection)
    await _check_own(connection, root)
    run = root / "runs" / secrets.token_hex(8)
    await make_folder(connection, run)
    source = Path(targets.attended.__file__)
    folder = root / "packages" / hash_file(source)
    await make_folder(connection, folder)
    await copy_file(connection, source, folder / source.name)
    attended = (python, str(folder / source.name))
    lock = ("--silence", str(SILENCE_S), "--lock", str(root / LOCK), "--remove", str(run))
    doing = "waiting for the lock of the work folder"
    async with connection.start((*attended, *lock), doing=doing, beat=True) as holder:
        answer = await holder.line()
        if answer == "busy":
            say("waits for another run on the device to end")
            answer = await holder.line()
        if answer != "ready":
            raise DeviceError(
                "the work folder of the device cannot be locked",
                where=f"{connection.device.address}, {root}",
                given=(await holder.wait()).last_words,
                fix="name another workdir in the devices file",
            )
        place = Workplace(connection, root, run, attended)
        try:
            yield place
        finally:
            with contextlib.suppress(DeviceError, TimeoutError):
                async with asyncio.timeout(CLEAN_UP_S):
                    await place.remove(root / "files")


async def _check_own(connection: Connection, root: PurePosixPath) -> None:
    """Refuse a folder with other things in it that was never a work folder.

    Folders of its own names are removed without asking.

    Raises:
        DeviceError: It is such a one.
    """
    import asyncssh

    sftp = await connection.sftp()
    with talking(connection.device, f"looking into {root}"):
        try:
            found = {str(name) for name in await sftp.listdir(str(root))} - {".", ".."}
        except asyncssh.SFTPNoSuchFile:
            return
    others = sorted(found - {*KINDS, LOCK})
    if others and LOCK not in found:
        raise DeviceError(
            "the work folder of the device contains other files",
            where=f"{connection.device.address}, {root}",
            given=", ".join(others[:3]),
            fix="set workdir in the devices file to a folder of its own: files in it are removed",
        )


async def remove_workplace(connection: Connection) -> PurePosixPath:
    """Remove all that was ever left on a device, environments too.

    Returns:
        The work folder, which is removed as well unless something else lies in it.
    """
    root = await workdir_of(connection)
    await _check_own(connection, root)
    known = [str(root / name) for name in (*KINDS, LOCK)]
    done = await connection.run(("rm", "-rf", "--", *known), doing=f"removing {root}")
    if done.code:
        raise DeviceError(
            "the work folder of the device cannot be removed",
            where=f"{connection.device.address}, {root}",
            given=done.last_words,
            fix="remove it there",
        )
    with contextlib.suppress(DeviceError):
        await connection.run(("rmdir", "--", str(root)), doing=f"removing {root}")
    return root
