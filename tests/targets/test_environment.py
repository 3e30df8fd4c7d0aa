"""The machine is told apart from others, and a library is found in whatever build it is there."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from targets import environment, interference
from targets.environment import Environment, library_versions, usable_cpus
from targets.errors import is_of_the_machine
from targets.interference import CpuSample


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
    monkeypatch.setattr(environment, "CPU_QUOTA", tmp_path / "absent")
    free = Environment.here()
    assert free.cpu_quota is None
    (tmp_path / "cpu.max").write_text(content)
    monkeypatch.setattr(environment, "CPU_QUOTA", tmp_path / "cpu.max")
    assert Environment.here().cpu_quota == quota
    assert (Environment.here().machine == free.machine) is (quota is None)


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
