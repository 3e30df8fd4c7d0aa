"""The machine's own speed: fixed work, and the best time of it from run to run."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from targets import machine_speed
from targets.environment import Environment, usable_cpus
from targets.machine_speed import SpeedMemory, reference_work_ns, wakeup_ns


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


@pytest.mark.skipif(len(usable_cpus()) < 2, reason="a thread is woken on another CPU")
def test_the_threads_that_wake_each_other_are_on_two_cpus(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    cpus = usable_cpus()
    chosen: dict[int, set[int]] = {}
    set_affinity = os.sched_setaffinity

    def stay(pid: int, where: set[int]) -> None:
        set_affinity(pid, where)
        chosen[threading.get_ident()] = os.sched_getaffinity(0)

    monkeypatch.setattr(os, "sched_setaffinity", stay)
    start = time.perf_counter_ns()
    found = wakeup_ns()
    wall_ns = time.perf_counter_ns() - start
    assert found is not None
    assert 0 < found < 2 * wall_ns / machine_speed.ROUND_TRIPS  # of one round trip, not of all
    assert sorted(chosen.values(), key=min) == [{cpus[0]}, {cpus[-1]}]
    assert usable_cpus() == cpus  # the thread that asked may run wherever it could


def test_the_slow_answer_of_a_thread_is_seen(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(machine_speed, "usable_cpus", lambda: (0, 1))
    late = 2_000_000

    class Late:
        """A lock whose holder is woken two milliseconds late."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def acquire(self) -> None:
            self._lock.acquire()
            time.sleep(late / 1e9)

        def release(self) -> None:
            self._lock.release()

    monkeypatch.setattr(machine_speed, "Lock", Late)
    found = wakeup_ns()
    assert found is not None
    assert found >= 2 * late


def test_one_cpu_has_no_other_to_wake(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(machine_speed, "usable_cpus", lambda: (0,))
    assert wakeup_ns() is None


def test_the_times_of_work_and_of_waking_are_kept_apart(tmp_path: Path) -> None:
    memory = SpeedMemory(tmp_path / "speed.json")
    assert memory.best_ns(500) == 500
    assert memory.best_ns(700, "wake-up") == 700
    assert memory.best_ns(900, "wake-up") == 700
    assert memory.best_ns(600) == 500


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
