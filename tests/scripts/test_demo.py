"""What scripts/demo says of arguments, before it does anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "scripts" / "demo"


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DEMO, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_tells_the_usage_and_runs_nothing(option: str) -> None:
    done = call(option)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: scripts/demo [--task text|words|")
    assert "demo-output/TASK" in done.stdout
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tusk", "image"], "does not know what to do with '--tusk'"),
        (["one", "two"], "does not know what to do with 'two'"),
        (["--task", "poetry"], "there is no demo of the task 'poetry'"),
        (["--task=poetry"], "there is no demo of the task 'poetry'"),
        (["--task"], "there is no demo of the task ''"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], message: str) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not done.stdout
