"""The machine's own speed: fixed work, and the best time of it from run to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from targets import machine_speed
from targets.environment import Environment
from targets.machine_speed import SpeedMemory, reference_work_ns


def test_the_fixed_work_is_the_same_each_time(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    done: list[tuple[int, ...]] = []

    def matmul(one: Any, other: Any, out: Any) -> None:
        done.append((*one.shape, *other.shape, *out.shape))

    monkeypatch.setattr(machine_speed.np, "matmul", matmul)
    assert reference_work_ns() > 0
    first = list(done)
    done.clear()
    assert reference_work_ns() > 0
    assert done == first
    assert len(done) == machine_speed.REPEATS * machine_speed.PRODUCTS


def test_the_shortest_time_is_kept_from_run_to_run(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "speed.json"
    assert SpeedMemory(path).best_ns(500) == 500
    assert SpeedMemory(path).best_ns(700) == 500
    assert SpeedMemory(path).best_ns(400) == 400
    assert SpeedMemory(path).best_ns(401) == 400
    assert [each.name for each in path.parent.iterdir()] == ["speed.json"]


def test_each_machine_has_its_own(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    memory = SpeedMemory(tmp_path / "speed.json")
    assert memory.best_ns(500) == 500
    here = Environment.here()
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "here", lambda: here.model_copy(update={"num_cpus": 99}))
        assert memory.best_ns(700) == 700
    assert memory.best_ns(600) == 500


@pytest.mark.parametrize("content", ["", "[1]", '{"x": "y"}', "\udcff"])
def test_a_damaged_memory_knows_nothing_and_is_written_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / "speed.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert SpeedMemory(path).best_ns(500) == 500
    assert list(json.loads(path.read_text()).values()) == [500]


def test_where_nothing_can_be_written_there_is_no_memory_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    memory = SpeedMemory(tmp_path / "file" / "speed.json")
    assert memory.best_ns(500) == 500
    assert memory.best_ns(700) == 700


def test_the_memory_is_in_the_cache_of_the_user(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert SpeedMemory().path == tmp_path / "compressor" / "machine-speed.json"
