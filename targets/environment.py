"""Where something was measured: machine, load and library versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

__all__ = [
    "BF16_FEATURES",
    "INT8_FEATURES",
    "Environment",
    "cpu_features",
    "cpu_periods",
    "distributions",
    "library_versions",
    "online_cpus",
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


GPU = "gpu"
"""What stands for the GPU that an engine was built for beside versions of libraries."""
SOURCE = "source of "
"""How the names of packages begin that stand there with the hash of their code."""
OTHER_BUILDS = {"onnxruntime": ("gpu", "directml", "openvino", "qnn", "rocm")}
"""Library -> what follows its name in the distributions that bring it built for something else."""
NVIDIA = Path("/proc/driver/nvidia/gpus")
"""A folder for each GPU, as its driver has them on Linux."""
CGROUP = Path("/sys/fs/cgroup")
"""Limits of a container: version 2 in the folder itself, version 1 in one for each resource."""
ONLINE = Path("/sys/devices/system/cpu/online")
"""Numbers of the CPUs that run, such as ``0,2,4-7``."""
BOARD = (
    Path("/sys/firmware/devicetree/base/model"),
    Path("/sys/class/dmi/id/product_name"),
)
"""What a machine is called whose CPU has no name."""


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


def online_cpus() -> tuple[int, ...]:
    """Numbers of the CPUs that run, in order; empty where the system does not tell."""
    found: list[int] = []
    with suppress(OSError, ValueError):
        for part in ONLINE.read_text(encoding="ascii").strip().split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _cpu_quota() -> float | None:
    """CPU time that the container may take in a period, over that period."""
    found = None
    with suppress(OSError, ValueError, ZeroDivisionError):  # no container, or no limit
        quota, period = _read(CGROUP / "cpu.max").split()
        found = int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota = _read(CGROUP / "cpu" / "cpu.cfs_quota_us")  # -1 is no limit
        if int(quota) > 0:
            found = int(quota) / int(_read(CGROUP / "cpu" / "cpu.cfs_period_us"))
    return None if found is None or found >= len(usable_cpus()) else found


def cpu_periods() -> tuple[int, int]:
    """Periods in which the container ran so far, and those of them in which it was stopped.

    It is stopped where it has used up the CPU time of a period. None where there is no limit.
    """
    for path in (CGROUP / "cpu.stat", CGROUP / "cpu" / "cpu.stat"):
        with suppress(OSError, ValueError, KeyError):
            fields = dict(line.split(maxsplit=1) for line in _read(path).splitlines())
            return int(fields["nr_periods"]), int(fields["nr_throttled"])
    return 0, 0


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii")


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of installed distributions; absent ones are left out. Imports none of them.

    That of a library in another build ends with what the build is for: onnxruntime-gpu 1.32.0 is
    ``{"onnxruntime": "1.32.0+gpu"}``.
    """
    found = {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def distributions(versions: Mapping[str, str]) -> dict[str, str]:
    """Of what a bundle was made with those that are distributions, which an index may have.

    Beside them stand the GPU that an engine was built for, and the code of somebody's own package.
    """
    return {
        name: version
        for name, version in versions.items()
        if name != GPU and not name.startswith(SOURCE)
    }


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
    present: set[str] = set()
    for each in _cpuinfo():
        present |= set(f"{each.get('flags', '')} {each.get('Features', '')}".split())
    if sys.platform == "darwin":
        present |= {ours for theirs, ours in _OF_MACS.items() if _sysctl(theirs) == "1"}
    return tuple(name for name in (*wanted, "asimddp", "i8mm", "bf16") if name in present)


_OF_MACS = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
    "hw.optional.avx512bf16": "avx512_bf16",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
"""What macOS calls an instruction set -> what Linux does."""


def _sysctl(name: str) -> str:
    """A value that macOS tells of the machine; empty where it does not."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["/usr/sbin/sysctl", "-n", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip()
    return ""


CPUINFO = Path("/proc/cpuinfo")


def _cpuinfo() -> list[dict[str, str]]:
    """What Linux tells of each CPU: field -> value; empty elsewhere."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    blocks = (block.splitlines() for block in text.split("\n\n"))
    pairs = ([line.partition(":") for line in block if ":" in line] for block in blocks)
    return [{key.strip(): value.strip() for key, _, value in each} for each in pairs if each]


@functools.cache
def _cpu_name() -> str:
    """The name of the CPU; of one that has none what tells it from others, and the machine's."""
    found = _cpuinfo()
    for each in found:
        if "model name" in each:
            return each["model name"]
    if sys.platform == "darwin" and (name := _sysctl("machdep.cpu.brand_string")):
        return name
    # Of ARM; a machine may have cores of several kinds.
    kinds = {tuple(each.get(f"CPU {part}", "") for part in _PARTS) for each in found}
    cores = sorted(" ".join(kind) for kind in kinds if any(kind))
    boards = []
    for path in BOARD:
        with suppress(OSError):
            boards.append(path.read_text(encoding="utf-8", errors="replace").strip("\0\n "))
    name = platform.processor() or platform.machine()
    return ", ".join([name, *cores, *boards[:1]])


_PARTS = ("implementer", "variant", "part", "revision")
"""What Linux tells of a core of ARM that has no name, as numbers."""
