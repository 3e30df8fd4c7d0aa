"""Where results are to go is looked at before the work, and folders are made for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.cli.files import check_file, check_folder, write_text
from compressor.cli.tune import tune_bundle
from compressor.errors import ReportError
from targets.benchmark import BenchmarkSettings


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("bench",), "--output"),
        (("bench", "--on", "ssh://me@nowhere.invalid"), "--output"),
        (("bench", "--scenario", "single-stream"), "--output"),
        (("profile",), "--json"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_told_before_the_work(
    command: tuple[str, ...], option: str, compressor: Callable[..., Any], tmp_path: Path
) -> None:
    """Even before the bundle is looked for, which is not there."""
    (tmp_path / "notes.txt").write_text("mine")
    name, *more = command
    if "--scenario" in more:
        pytest.importorskip("mlperf_loadgen")
    found = compressor(
        name, tmp_path / "absent", *more, option, tmp_path / "notes.txt" / "found.json"
    )
    assert found.code == 8
    assert "the result cannot be written" in found.err
    assert f"given: {tmp_path / 'notes.txt'} is a file" in found.err.replace("\n", "")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_for_a_tuned_bundle_is_looked_at_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ReportError, match="the result cannot be written"):
        tune_bundle(tmp_path / "absent", tmp_path / "notes.txt" / "tuned", BenchmarkSettings())


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="the result cannot be written") as caught:
        check_file(tmp_path)
    assert caught.value.given == "it is a folder"
    with pytest.raises(ReportError, match="the result cannot be written"):
        write_text(tmp_path, "text")


def test_a_file_that_is_there_counts_and_not_its_folder(tmp_path: Path) -> None:
    check_file(Path("/dev/null"))
    path = tmp_path / "kept.json"
    path.write_text("mine")
    path.chmod(0o400)
    if os.access(path, os.W_OK):
        pytest.skip("this user may write to any file")
    with pytest.raises(ReportError, match="the result cannot be written"):
        check_file(path)


def test_what_can_be_written_is_and_the_check_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "new" / "found.json"
    check_file(None)
    check_file(path)
    check_folder(path.parent)
    assert not path.parent.exists()
    write_text(path, "one\n")
    write_text(path, "two\n", mode="a")
    assert path.read_text() == "one\ntwo\n"
