"""Where something was measured: machine, load and library versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Iterable

import psutil
from pydantic import BaseModel, ConfigDict

__all__ = [
    "BF16_FEATURES",
    "INT8_FEATURES",
    "Environment",
    "cpu_features",
    "library_versions",
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


class Environment(BaseModel):
    """The machine and the software of a measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpu: str
    cpu_features: tuple[str, ...]
    num_cpus: int
    memory_bytes: int
    system: str
    python: str
    libraries: dict[str, str]
    load_average: float

    @classmethod
    def here(cls) -> Environment:
        """Describe this machine and process."""
        return cls(
            cpu=_cpu_name(),
            cpu_features=cpu_features(),
            num_cpus=os.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
            libraries=library_versions(REPORTED_LIBRARIES),
            load_average=os.getloadavg()[0],
        )

    @property
    def machine(self) -> str:
        """What has to be equal for two latencies to be comparable."""
        features = " ".join(self.cpu_features)
        return f"{self.cpu}; {self.num_cpus} CPUs; {features}; {self.system}"


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of installed distributions; absent ones are left out. Imports none of them."""
    found = {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


@functools.cache
def _version(name: str) -> str | None:
    """The version of a distribution, None where it is not installed; each is read once."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


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
