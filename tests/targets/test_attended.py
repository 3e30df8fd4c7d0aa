"""A command on a device ends when the workstation that wants it is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from targets import attended

SLEEP = (sys.executable, "-c", "import time; print('on', flush=True); time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "print('on', flush=True); time.sleep(600)",
)


@pytest.fixture
def start():
    """Start the program; its input and output are pipes."""
    with contextlib.ExitStack() as stack:

        def run(*arguments, silence=60):
            command = [sys.executable, "-I", attended.__file__, "--silence", str(silence)]
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, *map(str, arguments)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield run


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def child_of(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as stream:
        return int(stream.read().split()[0])


def test_the_exit_code_and_the_output_are_those_of_the_command(start, tmp_path):
    script = "import os, sys; print(os.getcwd()); print('e', file=sys.stderr); sys.exit(3)"
    process = start("--cwd", tmp_path, "--", sys.executable, "-c", script)
    out = process.stdout.read()
    assert process.wait(60) == 3
    assert out == f"{tmp_path}\n"
    assert process.stderr.read() == "e\n"


def test_a_signal_is_told_as_a_shell_tells_it(start):
    process = start("--", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert process.wait(60) == 128 + signal.SIGKILL


def test_a_command_that_is_not_there(start):
    process = start("--", "/no/such/command")
    assert process.wait(60) == 127
    assert process.stderr.read() == "/no/such/command: No such file or directory\n"


@pytest.mark.parametrize("command", [SLEEP, STUBBORN], ids=["willing", "stubborn"])
def test_the_end_of_the_input_ends_the_command(start, command, monkeypatch):
    process = start("--", *command)
    assert process.stdout.readline() == "on\n"
    child = child_of(process)
    process.stdin.close()
    assert process.wait(60) == attended.ABANDONED
    assert not is_running(child)


def test_silence_ends_the_command(start):
    process = start("--", *SLEEP, silence=0.5)
    assert process.stdout.readline() == "on\n"
    assert process.wait(60) == attended.ABANDONED


def test_signs_of_life_keep_it_going(start):
    process = start("--", sys.executable, "-c", "import time; time.sleep(3)", silence=1.5)
    while process.poll() is None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(".")
            process.stdin.flush()
        time.sleep(0.1)
    assert process.returncode == 0


def test_the_lock_is_held_by_one_at_a_time(start, tmp_path):
    first = start("--lock", tmp_path / "lock")
    assert first.stdout.readline() == "ready\n"
    second = start("--lock", tmp_path / "lock")
    assert second.stdout.readline() == "busy\n"
    first.stdin.close()
    assert first.wait(60) == 0
    assert second.stdout.readline() == "ready\n"


def test_who_stops_waiting_for_the_lock_gets_nothing(start, tmp_path):
    first = start("--lock", tmp_path / "lock")
    assert first.stdout.readline() == "ready\n"
    second = start("--lock", tmp_path / "lock", "--", *SLEEP)
    assert second.stdout.readline() == "busy\n"
    second.stdin.close()
    assert second.wait(60) == attended.ABANDONED
    assert second.stdout.read() == ""


def test_the_folder_goes_with_the_end(start, tmp_path):
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (folder / "link").symlink_to(tmp_path / "kept")
    process = start("--lock", tmp_path / "lock", "--remove", folder)
    assert process.stdout.readline() == "ready\n"
    assert folder.exists()
    process.stdin.close()
    assert process.wait(60) == 0
    assert not folder.exists()
    assert (tmp_path / "kept").exists()
