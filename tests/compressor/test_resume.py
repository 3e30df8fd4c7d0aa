"""Runs that are killed, interrupted, out of disk space, or not alone go on where they were."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compressor.report.files import read_report
from compressor.store import RunStore
from targets.bundle import Bundle

# A test runner in the background hands an ignored SIGINT down to its children.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from compressor.cli import main
main(sys.argv[1:])
"""
BUNDLE = "bundles/fp32-onnxruntime"
DEADLINE_S = 300


def start(home: Path, output: Path, store: Path) -> subprocess.Popen[str]:
    """The recipe with one variant on one target, as a process of its own."""
    arguments = ["run", home / "recipe.yaml", "--output", output, "--store", store]
    arguments += ["--set", "targets=[onnxruntime]", "--set", "variants={fp32: []}"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as the undisturbed run of the other tests
    )


def kinds(store: Path) -> set[str]:
    return {record.kind for record in RunStore(store).steps()}


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


@dataclass(frozen=True)
class Story:
    """What happened to one store."""

    killed: int
    kept_of_killed: set[str]
    interrupted: int
    message: str
    kept_of_interrupted: set[str]
    results: list[tuple[int, str, str]]
    outputs: list[Path]
    store: Path


@pytest.fixture(scope="module")
def story(home, tmp_path_factory) -> Story:
    """Kill a run in its passes, interrupt the next in a training, let two finish side by side."""
    folder = tmp_path_factory.mktemp("story")
    store = folder / "store"

    process = start(home, folder / "killed", store)
    wait_for(process, lambda: "import" in kinds(store))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed, kept_of_killed = process.returncode, kinds(store)

    process = start(home, folder / "interrupted", store)
    wait_for(process, lambda: "pass:prune" in kinds(store))
    process.send_signal(signal.SIGINT)
    _, message = process.communicate()
    interrupted, kept_of_interrupted = process.returncode, kinds(store)

    outputs = [folder / "one", folder / "two"]
    both = [start(home, output, store) for output in outputs]
    printed = [process.communicate() for process in both]
    results = [(process.returncode, *texts) for process, texts in zip(both, printed, strict=True)]
    return Story(
        killed,
        kept_of_killed,
        interrupted,
        message,
        kept_of_interrupted,
        results,
        outputs,
        store,
    )


@pytest.mark.slow
def test_a_killed_run_keeps_its_finished_steps(story):
    assert story.killed == -signal.SIGKILL
    assert "import" in story.kept_of_killed
    assert "pass:distill" not in story.kept_of_killed


@pytest.mark.slow
def test_an_interrupted_run_exits_130_and_says_how_to_go_on(story):
    assert story.interrupted == 130, story.message
    assert "interrupted; finished work is kept" in story.message
    assert "Traceback" not in story.message
    assert "pass:distill" not in story.kept_of_interrupted
    statuses = [run.status for run in RunStore(story.store).runs()]
    assert sorted(statuses) == ["finished", "finished", "interrupted", "killed"]


@pytest.mark.slow
def test_the_next_run_finds_what_was_finished(story):
    assert [code for code, *_ in story.results] == [0, 0], story.results
    for output in story.outputs:
        steps = {step.pass_name: step.cached for step in read_report(output).steps["fp32"]}
        assert steps["trim_vocabulary"]
        assert steps["prune"]


@pytest.mark.slow
def test_after_all_disturbance_the_bundles_are_those_of_an_undisturbed_run(story, finished):
    undisturbed = Bundle.open(finished.output / BUNDLE)
    for output in story.outputs:
        found = Bundle.open(output / BUNDLE)
        assert found.identity == undisturbed.identity
        assert set(found.manifest.files) == set(undisturbed.manifest.files)


@pytest.mark.slow
def test_two_runs_at_once_make_each_step_once(story):
    made = [
        {step.key for step in read_report(output).steps["fp32"] if not step.cached}
        for output in story.outputs
    ]
    assert not made[0] & made[1]
    assert not list((story.store / "partial").iterdir())


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=420k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    # Lazily: a model that nobody has freed yet may still map its weights there.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_exits_8_and_with_more_space_the_same_command_finishes(
    home, small_disk, tmp_path, compressor: Any
):
    arguments = (
        "run", home / "recipe.yaml", "--store", small_disk / "store", "--output", tmp_path / "out",
        "--set", "passes=[export]", "--set", "targets=[onnxruntime]", "--set", "variants={}",
    )  # fmt: skip
    outcome = compressor(*arguments)
    assert outcome.code == 8, (outcome.out, outcome.err)
    assert "the disk is full" in outcome.err
    assert f"where: {small_disk}" in outcome.err
    assert "run the same command again" in " ".join(outcome.err.split())
    assert "import" in kinds(small_disk / "store")

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    outcome = compressor(*arguments)
    assert outcome.code == 0, (outcome.out, outcome.err)
    first = next(line for line in outcome.out.splitlines() if "load the checkpoint" in line)
    assert " cached " in first
