"""A connection to a device: commands as argument lists, and files."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.devices.failures import lost, talking
from compressor.devices.inventory import Device
from targets.errors import MissingLibraryError

if TYPE_CHECKING:
    import asyncssh

__all__ = ["BEAT_S", "Completed", "Connection", "Process", "connect", "printable", "require_ssh"]

BEAT_S = 5.0
"""Seconds between two signs of life, to the server and to each attended command."""
MISSES = 3
"""Signs of life without an answer after which a connection counts as lost."""
CLOSE_S = 12.0  # an attended command has 5 s to end by itself, then it is killed


@dataclass(frozen=True)
class Completed:
    """What a command left.

    Attributes:
        code: Its exit code; 128 and the number of a signal that ended it.
        out: Standard output.
        err: Standard error.
    """

    code: int
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The end of what it printed, on standard error where there is something."""
        lines = [line for line in (self.err.strip() or self.out.strip()).splitlines() if line]
        return printable("\n".join(lines[-8:])) or f"exit code {self.code}"


def printable(text: str) -> str:
    """Words of a device, without what would steer the terminal."""
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)


class Connection:
    """An open connection.

    Args:
        device: What is at the other end.
        ssh: The connection of the library.
    """

    def __init__(self, device: Device, ssh: asyncssh.SSHClientConnection) -> None:
        self.device = device
        self.ssh = ssh
        self._sftp: asyncssh.SFTPClient | None = None

    async def sftp(self) -> asyncssh.SFTPClient:
        """The channel for files."""
        if self._sftp is None:
            with talking(self.device, "opening a channel for files"):
                self._sftp = await self.ssh.start_sftp_client()
        return self._sftp

    async def run(self, argv: Sequence[str], *, doing: str) -> Completed:
        """Run a command that needs no attendance, and wait for its end.

        Args:
            argv: The command and its arguments.
            doing: What it is for, for messages.

        Raises:
            DeviceError: The connection was lost.
        """
        async with self.start(argv, doing=doing) as process:
            return await process.wait()

    @asynccontextmanager
    async def start(
        self, argv: Sequence[str], *, doing: str, beat: bool = False
    ) -> AsyncIterator[Process]:
        """Start a command; at the end of the block its input is closed.

        Args:
            argv: The command and its arguments.
            doing: What it is for, for messages.
            beat: Write a byte to its input every `BEAT_S` seconds.
        """
        with talking(self.device, doing):
            # The channel takes one string, which a shell splits again: nothing goes in unquoted.
            channel = await self.ssh.create_process(
                shlex.join(argv), encoding="utf-8", errors="replace"
            )
        process = Process(self.device, channel, doing)
        beating = asyncio.create_task(process.beat()) if beat else None
        try:
            yield process
        finally:
            if beating is not None:
                beating.cancel()
            with contextlib.suppress(OSError, TimeoutError):
                channel.stdin.write_eof()
                await asyncio.wait_for(channel.wait_closed(), CLOSE_S)
            channel.close()


class Process:
    """A command that runs on a device.

    Args:
        device: Where it runs.
        channel: Its channel.
        doing: What it is for, for messages.
    """

    def __init__(self, device: Device, channel: asyncssh.SSHClientProcess[str], doing: str) -> None:
        self._device, self._channel, self._doing = device, channel, doing

    async def beat(self) -> None:
        """Write signs of life until cancelled, or until nobody listens."""
        with contextlib.suppress(OSError):
            while True:
                self._channel.stdin.write(".")
                await asyncio.sleep(BEAT_S)

    async def line(self) -> str:
        """The next line of its output, without its end; empty when there is no more."""
        with talking(self._device, self._doing):
            return (await self._channel.stdout.readline()).rstrip("\n")

    async def wait(self) -> Completed:
        """Wait for its end.

        Raises:
            DeviceError: The connection was lost before.
        """
        with talking(self._device, self._doing):
            done = await self._channel.wait()
        if done.exit_status is None or done.exit_status < 0:
            if not done.exit_signal:
                raise lost(self._device, self._doing, "it ended without an exit code")
            return Completed(137, str(done.stdout or ""), f"killed by SIG{done.exit_signal[0]}")
        return Completed(done.exit_status, str(done.stdout or ""), str(done.stderr or ""))


def require_ssh() -> None:
    """Check that the SSH library is there.

    Raises:
        MissingLibraryError: Names the extra that brings it.
    """
    if importlib.util.find_spec("asyncssh") is None:
        raise MissingLibraryError.for_extra("asyncssh", "ssh", "work on remote devices")


@asynccontextmanager
async def connect(device: Device) -> AsyncIterator[Connection]:
    """Connect and log in, with the host key checked.

    Raises:
        MissingLibraryError: The SSH library is not installed.
        DeviceError: The device cannot be reached, its host key is not trusted, or it refuses.
    """
    require_ssh()
    from compressor.devices.login import login

    ssh = await login(device, keepalive_s=BEAT_S, misses=MISSES)
    try:
        yield Connection(device, ssh)
    finally:
        ssh.close()
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(ssh.wait_closed(), CLOSE_S)
        ssh.abort()
