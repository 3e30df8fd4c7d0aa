"""Temporary folders: whose they are, and who removes them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from targets.scratch import ScratchFolder

KILLED = """
import os, signal
from targets.scratch import ScratchFolder
folder = ScratchFolder("worker")
(folder.path / "file").write_text("x")
print(folder.path, flush=True)
if {kills}:
    os.kill(os.getpid(), signal.SIGKILL)
input()
"""
LONG_AGO = (1e9, 1e9)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The place for temporary files, of this test alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    gc.collect()


def start(*, kills: bool) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(kills=kills)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_it_goes_with_its_object(place: Path) -> None:
    with ScratchFolder("a") as folder:
        (folder.path / "file").write_text("x")
        assert folder.path.parent == place
    assert not folder.path.exists()
    folder.remove()  # once is enough
    other = ScratchFolder("b").path
    gc.collect()
    assert not other.exists()


def test_what_a_killed_process_left_is_removed_by_the_next_one() -> None:
    process, left = start(kills=True)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with ScratchFolder("next"):
        assert (left / "file").is_file()  # it may have been made just now, and not be locked yet
    os.utime(left, LONG_AGO)
    with ScratchFolder("next"):
        assert not left.exists()


def test_what_is_in_use_or_not_ours_stays(place: Path) -> None:
    process, used = start(kills=False)
    foreign = place / "compressor-output"
    foreign.mkdir()
    target = place / "target"
    target.mkdir()
    (target / "file").write_text("x")
    link = place / "compressor-scratch-link"
    link.symlink_to(target)
    for folder in (used, foreign, target):
        os.utime(folder, LONG_AGO)
    with ScratchFolder("next"):
        assert (used / "file").is_file()
        assert foreign.is_dir()
        assert (target / "file").is_file()
        assert link.is_symlink()
    process.communicate("\n")
    assert not used.exists()
