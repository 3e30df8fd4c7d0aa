"""Where something was measured: machine, load and library versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

__all__ = [
    "BF16_FEATURES",
    "INT8_FEATURES",
    "Environment",
    "cpu_features",
    "library_versions",
    "usable_cpus",
]

INT8_FEATURES = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
"""Instruction sets that add products of int8 in 32 bits; others add two of them in 16 first."""

BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Instruction sets that multiply bf16."""

REPORTED_LIBRARIES = (
    "compressor",
    "numpy",
    "mlcommons-loadgen",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt-rtx",
    "tensorrt",
    "torch",
    "torch-pruning",
    "transformers",
)


OTHER_BUILDS = {"onnxruntime": ("gpu", "directml", "openvino", "qnn", "rocm")}
"""Library -> what follows its name in the distributions that bring it built for something else."""
NVIDIA = Path("/proc/driver/nvidia/gpus")
"""A folder for each GPU, as its driver has them on Linux."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""CPU time that a container may take, and the period in which, in microseconds; or ``max``."""


class Environment(BaseModel):
    """The machine and the software of a measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpu: str
    cpu_features: tuple[str, ...]
    num_cpus: int
    """CPUs that the process may run on."""
    cpu_quota: float | None = None
    """CPUs' worth of time that the container of the process may take, where that is less."""
    memory_bytes: int
    system: str
    python: str
    libraries: dict[str, str]
    load_average: float
    gpus: tuple[str, ...] = ()
    """Names of the NVIDIA GPUs, where the driver tells them."""

    @classmethod
    def here(cls) -> Environment:
        """Describe this machine and process."""
        return cls(
            cpu=_cpu_name(),
            cpu_features=cpu_features(),
            num_cpus=len(usable_cpus()),
            cpu_quota=_cpu_quota(),
            memory_bytes=psutil.virtual_memory().total,
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
            libraries=library_versions(REPORTED_LIBRARIES),
            load_average=os.getloadavg()[0],
            gpus=_gpu_names(),
        )

    @property
    def machine(self) -> str:
        """What has to be equal for two latencies to be comparable."""
        features = " ".join(self.cpu_features)
        quota = () if self.cpu_quota is None else (f"the time of {self.cpu_quota:g} CPUs",)
        return "; ".join(
            (self.cpu, f"{self.num_cpus} CPUs", features, self.system, *quota, *self.gpus)
        )


def usable_cpus() -> tuple[int, ...]:
    """Numbers of the CPUs that this process may run on: a container may have few of many."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _cpu_quota() -> float | None:
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        found = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no container, or no limit
        return None
    return found if found < len(usable_cpus()) else None


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of installed distributions; absent ones are left out. Imports none of them.

    That of a library in another build ends with what the build is for: onnxruntime-gpu 1.32.0 is
    ``{"onnxruntime": "1.32.0+gpu"}``.
    """
    found = {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


@functools.cache
def _version(name: str) -> str | None:
    """The version of a distribution, None where it is not installed; each is read once."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    for build in OTHER_BUILDS.get(name, ()):
        with suppress(importlib.metadata.PackageNotFoundError):
            return f"{importlib.metadata.version(f'{name}-{build}')}+{build}"
    return None


@functools.cache
def _gpu_names() -> tuple[str, ...]:
    found = []
    for path in sorted(NVIDIA.glob("*/information")):
        with suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            found.append(fields.get("Model", "").strip() or "an NVIDIA GPU")
    return tuple(found)


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """The instruction sets that matter for inference, as the kernel names them; may be empty."""
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            flags = next((line for line in stream if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ()
    present = set(flags.split())
    return tuple(name for name in (*wanted, "asimddp", "i8mm", "bf16") if name in present)


@functools.cache
def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
