"""The machine is told apart from others, and a library is found in whatever build it is there."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from targets import environment, interference
from targets.environment import Environment, cpu_periods, library_versions, usable_cpus
from targets.errors import is_of_the_machine
from targets.interference import CpuSample, round_between
from targets.measurement import machine_noise


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    environment._version.cache_clear()
    environment._gpu_names.cache_clear()


def test_a_library_in_another_build_is_that_library(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime-gpu": "1.32.0", "numpy": "2.3.1"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    names = ("numpy", "onnxruntime", "openvino")
    assert library_versions(names) == {"numpy": "2.3.1", "onnxruntime": "1.32.0+gpu"}
    environment._version.cache_clear()
    installed["onnxruntime"] = "1.33.0"
    assert library_versions(("onnxruntime",)) == {"onnxruntime": "1.33.0"}


def test_machines_with_other_gpus_are_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "NVIDIA", tmp_path)
    without = Environment.here()
    assert without.gpus == ()
    for number, text in enumerate(("Model: \t\t NVIDIA L4\nIRQ: 35\n", "garbage")):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
        (tmp_path / f"0000:0{number}:00.0" / "information").write_text(text)
    environment._gpu_names.cache_clear()
    found = Environment.here()
    assert found.gpus == ("NVIDIA L4", "an NVIDIA GPU")
    assert found.machine == f"{without.machine}; NVIDIA L4; an NVIDIA GPU"


@pytest.mark.parametrize(
    ("content", "quota"),
    [
        ("50000 100000\n", 0.5),
        ("max 100000\n", None),
        (f"{100_000 * len(usable_cpus())} 100000\n", None),  # no less than there is
        ("", None),
        ("1 0", None),
    ],
)
def test_the_cpu_time_of_a_container_is_part_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, quota: float | None
) -> None:
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    free = Environment.here()
    assert free.cpu_quota is None
    (tmp_path / "cpu.max").write_text(content)
    assert Environment.here().cpu_quota == quota
    assert (Environment.here().machine == free.machine) is (quota is None)


@pytest.mark.parametrize(("quota", "found"), [("50000\n", 0.5), ("-1\n", None)])
def test_limits_of_the_first_version_of_cgroups_count_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, found: float | None
) -> None:
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert Environment.here().cpu_quota == found
    assert cpu_periods() == (0, 0)
    (tmp_path / "cpu" / "cpu.stat").write_text("nr_periods 9\nnr_throttled 2\nthrottled_time 1\n")
    assert cpu_periods() == (9, 2)
    (tmp_path / "cpu.stat").write_text("usage_usec 9\n")  # of a group without a limit
    assert cpu_periods() == (9, 2)


def test_a_container_that_is_stopped_is_noisy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    (tmp_path / "cpu.stat").write_text("nr_periods 10\nnr_throttled 3\n")
    before = CpuSample.take()
    (tmp_path / "cpu.stat").write_text("nr_periods 14\nnr_throttled 4\n")
    found = round_between(before, CpuSample.take(), (50_000_000,))
    assert found.throttled == 0.25
    noise = machine_noise([found], threads=1, num_cpus=64)
    assert "the CPU limit of the container stopped the process in 25% of its periods" in str(noise)
    quiet = found.model_copy(update={"throttled": 0.01})
    assert "container" not in str(machine_noise([quiet], threads=1, num_cpus=64))


ARM = """processor\t: 0
Features\t: fp asimd asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: {part}
CPU revision\t: 1

processor\t: 1
CPU implementer\t: 0x41
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""


def test_cpus_without_a_name_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ARM has numbers of each kind of core, and a board has a name."""
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(environment, "BOARD", (tmp_path / "none", tmp_path / "model"))
    name = environment._cpu_name.__wrapped__
    found = []
    for part in ("0xd40", "0xd4f"):
        (tmp_path / "cpuinfo").write_text(ARM.format(part=part))
        found.append(name())
    assert found[0].endswith(", 0x41 0x1 0xd40 1")
    assert found[1].endswith(", 0x41 0x1 0xd40 1, 0x41 0x1 0xd4f 1")
    assert environment.cpu_features.__wrapped__() == ("asimddp",)
    (tmp_path / "model").write_text("A Board\0")
    assert name() == f"{found[1]}, A Board"
    (tmp_path / "cpuinfo").write_text("model name\t: A: CPU\nflags\t: avx2\n")
    assert name() == "A: CPU"


def test_cpus_that_are_offline_have_no_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel lists those that run, without gaps."""
    monkeypatch.setattr(environment, "ONLINE", tmp_path / "online")
    (tmp_path / "online").write_text("0,2,4-6\n")
    assert environment.online_cpus() == (0, 2, 4, 5, 6)
    times = [
        SimpleNamespace(_fields=("user", "idle"), user=cpu, idle=0.0) for cpu in (0, 2, 4, 5, 6)
    ]
    monkeypatch.setattr(interference.psutil, "cpu_times", lambda percpu: times)
    monkeypatch.setattr(interference, "usable_cpus", lambda: (2, 4))
    assert interference._cpu_times() == {"user": 6, "idle": 0.0}
    (tmp_path / "online").write_text("0-7\n")  # not those of the list: by places
    assert interference._cpu_times() == {"user": 4 + 6, "idle": 0.0}


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(usable_cpus()) < 2,
    reason="a process is kept to one of several CPUs",
)
def test_a_process_has_the_cpus_that_it_may_run_on() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})\n"
        "from targets.environment import Environment, usable_cpus\n"
        "print(Environment.here().num_cpus, *usable_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split() == ["1", str(max(usable_cpus()))]


def test_what_others_do_on_other_cpus_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = interference._cpu_times()
    assert everything["idle"] > 0
    one = usable_cpus()[:1]
    monkeypatch.setattr(interference, "usable_cpus", lambda: one)
    (first, *others) = interference.psutil.cpu_times(percpu=True)
    fewer = CpuSample.take()
    if others and one == (0,):
        assert fewer.total_s == pytest.approx(sum(first[:8]), rel=0.02)
        assert fewer.total_s < 0.9 * sum(everything.values())


@pytest.mark.parametrize(
    ("error", "of_the_machine"),
    [
        ("std::bad_alloc", True),
        ("CUDA failure 2: out of memory ; GPU=0", True),
        ("Failed to load libcudnn.so.9", True),
        (MemoryError(), True),
        ("Could not find an implementation for Fancy(1) node", False),
        ("Node (relu) Op (Fancy) is not registered; CUDAExecutionProvider was asked", False),
    ],
)
def test_what_fails_for_want_of_memory_or_a_device_is_not_blamed_on_the_model(
    error: object, of_the_machine: bool
) -> None:
    assert is_of_the_machine(error) is of_the_machine
