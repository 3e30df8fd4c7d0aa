"""Run a command on a device for as long as the workstation that wants it is there.

A program of its own that needs nothing but the standard library: it is copied to a device before
anything is installed there. The workstation writes a byte to its standard input every few seconds.
When the input ends, or stays silent for too long because the network is gone, the command is
interrupted, so that no benchmark goes on for nobody.

Without a command it holds a lock until its input ends. It prints ``busy`` when another process has
the lock, waits for it, and prints ``ready`` when it has it. So one device runs one benchmark at a
time, whoever asks for it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

__all__ = ["ABANDONED", "main"]

ABANDONED = 75
"""Exit code when the workstation was gone before the command ended."""

POLL_S = 0.2
STOP_S = 5.0  # from the interrupt to the kill


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, or hold the lock; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--silence", type=float, required=True, help="longest silence, in seconds")
    parser.add_argument("--lock", help="a file to lock")
    parser.add_argument("--remove", help="a folder to remove at the end")
    parser.add_argument("--cwd", help="working directory of the command")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the end of the input says the same
    is_alone = _watch(options.silence)
    with contextlib.ExitStack() as stack:
        if options.remove:
            stack.callback(shutil.rmtree, options.remove, ignore_errors=True)
        if options.lock and not _lock(options.lock, is_alone):
            return ABANDONED
        if options.command:
            return _run(options.command, options.cwd, is_alone)
        while not is_alone(POLL_S):
            pass
    return 0


def _watch(silence_s: float) -> Callable[[float], bool]:
    """A function that waits some seconds and tells whether the workstation is gone."""
    stdin = sys.stdin.fileno()
    heard = time.monotonic()

    def is_alone(wait_s: float) -> bool:
        nonlocal heard
        if not select.select([stdin], [], [], wait_s)[0]:
            return time.monotonic() - heard > silence_s
        heard = time.monotonic()
        return not os.read(stdin, 4096)

    return is_alone


def _lock(path: str, is_alone: Callable[[float], bool]) -> bool:
    """Take the lock, which lasts as long as this process; False if the workstation went."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    said = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                print("busy", flush=True)
            said = True
            if is_alone(POLL_S):
                return False
        else:
            print("ready", flush=True)
            return True


def _run(command: Sequence[str], cwd: str | None, is_alone: Callable[[float], bool]) -> int:
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, cwd=cwd, start_new_session=True
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    while process.poll() is None:
        if is_alone(POLL_S):
            _stop(process)
            return ABANDONED
    code = process.returncode
    return code if code >= 0 else 128 - code


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
            return


if __name__ == "__main__":
    sys.exit(main())
