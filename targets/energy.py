"""Energy counters of the processors: RAPL for CPUs under Linux, NVML for NVIDIA GPUs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Counter", "EnergyMeter", "EnergySample", "energy_between"]

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """One counter that grows, and where it begins anew.

    Attributes:
        joules: Its value.
        range_joules: The counter wraps around after this much; infinite where it never does.
    """

    joules: float
    range_joules: float = float("inf")


EnergySample = Mapping[str, Counter]
"""Name of a processor -> its counter; empty where the machine tells none."""


class EnergyMeter:
    """Reads what energy the processors have taken so far.

    CPU packages are read from Linux's powercap (Intel RAPL, which AMD has too); most kernels let
    only root read it. GPUs are read through NVML where the package `nvidia-ml-py` is installed.

    Args:
        powercap: Where the kernel lists its power zones.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        # Only whole packages: their cores and memory are zones inside of them, and psys, the
        # platform, has the packages in it.
        self._zones = [
            zone
            for zone in sorted(powercap.glob("intel-rapl:*"))
            if zone.name.count(":") == 1
            and not _named(zone, "psys")
            and _read(zone / "energy_uj") is not None
        ]
        self._gpus = _nvml_handles()

    @classmethod
    @functools.cache
    def here(cls) -> EnergyMeter:
        """The meter of this machine."""
        return cls()

    @property
    def sources(self) -> tuple[str, ...]:
        """What can be read: names of processors."""
        return (*(zone.name for zone in self._zones), *self._gpus)

    def take(self) -> EnergySample:
        """Read every counter."""
        found = {}
        for zone in self._zones:
            value, limit = _read(zone / "energy_uj"), _read(zone / "max_energy_range_uj")
            if value is not None:
                found[zone.name] = Counter(value / 1e6, limit / 1e6 if limit else float("inf"))
        if self._gpus:
            import pynvml

            for name, handle in self._gpus.items():
                millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
                found[name] = Counter(millijoules / 1e3)
        return found


def energy_between(before: EnergySample, after: EnergySample) -> float | None:
    """Joules taken between two samples by all processors together; None where none can be read."""
    if not before or before.keys() != after.keys():
        return None
    total = 0.0
    for name, end in after.items():
        taken = end.joules - before[name].joules
        total += taken + end.range_joules if taken < 0 else taken
    return total


def _named(zone: Path, name: str) -> bool:
    """Whether the kernel calls a zone so."""
    try:
        return (zone / "name").read_text(encoding="ascii").startswith(name)
    except (OSError, UnicodeDecodeError):
        return False


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _nvml_handles() -> dict[str, object]:
    """Name -> NVML handle of every GPU that counts its energy."""
    if importlib.util.find_spec("pynvml") is None:
        return {}
    import pynvml

    found: dict[str, object] = {}
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            found[f"gpu:{index}"] = handle
    except pynvml.NVMLError:
        return found
    return found
