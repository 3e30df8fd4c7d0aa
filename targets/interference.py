"""What else the machine did while something was measured."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from targets.energy import EnergyMeter, EnergySample, energy_between
from targets.environment import cpu_periods, online_cpus, usable_cpus
from targets.measurement import Round

__all__ = ["CpuSample", "peak_memory_bytes", "round_between"]


@dataclass(frozen=True)
class CpuSample:
    """The CPU counters of the process and of the CPUs it may use at one moment, in seconds."""

    wall_s: float
    process_s: float
    busy_s: float
    steal_s: float
    total_s: float
    cpu_periods: tuple[int, int]
    load_average: float
    energy: EnergySample

    @classmethod
    def take(cls) -> CpuSample:
        """Read the counters."""
        energy = EnergyMeter.here().take()  # before all others: the first call looks for GPUs
        counted = _cpu_times()
        total_s = sum(counted.values())
        idle_s = counted["idle"] + counted.get("iowait", 0.0)
        steal_s = counted.get("steal", 0.0)
        return cls(
            wall_s=time.perf_counter(),
            process_s=time.process_time(),
            busy_s=total_s - idle_s - steal_s,
            steal_s=steal_s,
            total_s=total_s,
            cpu_periods=cpu_periods(),
            load_average=os.getloadavg()[0],
            energy=energy,
        )


def _cpu_times() -> dict[str, float]:
    """What the CPUs that this process may run on did, in seconds; what others do is no matter."""
    each_cpu, usable, online = psutil.cpu_times(percpu=True), usable_cpus(), online_cpus()
    if len(online) == len(each_cpu) and set(usable) <= set(online):  # offline ones are left out
        by_number = dict(zip(online, each_cpu, strict=True))
        each_cpu = [by_number[cpu] for cpu in usable]
    elif usable[-1] < len(each_cpu):
        each_cpu = [each_cpu[cpu] for cpu in usable]
    # Linux counts the time of guests as user time already.
    names = [name for name in each_cpu[0]._fields if "guest" not in name]
    return {name: sum(getattr(cpu, name) for cpu in each_cpu) for name in names}


def round_between(before: CpuSample, after: CpuSample, run_ns: tuple[int, ...]) -> Round:
    """Put the times of a round together with what happened between two samples."""
    wall_s = max(after.wall_s - before.wall_s, 1e-9)
    process_s = after.process_s - before.process_s
    others_s = after.busy_s - before.busy_s - process_s
    steal_s = after.steal_s - before.steal_s
    pairs = zip(after.cpu_periods, before.cpu_periods, strict=True)
    periods, throttled = (max(now - then, 0) for now, then in pairs)
    return Round(
        run_ns=run_ns,
        cpu_ns=round(process_s * 1e9),
        others_cpus=max(others_s / wall_s, 0.0),
        steal=steal_s / max(after.total_s - before.total_s, 1e-9),
        throttled=throttled / max(periods, 1),
        load_average=after.load_average,
        energy_j=energy_between(before.energy, after.energy),
    )


def peak_memory_bytes(*, with_children: bool = False) -> int:
    """Largest resident size of this process so far.

    Args:
        with_children: Or of the largest process that it started and that has ended.

    Not ``ru_maxrss`` where it can be avoided: on Linux that is inherited from the parent, so a
    small worker started by a large process would seem large.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        peak = int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        peak = _max_resident_bytes(resource.RUSAGE_SELF)
    return max(peak, _max_resident_bytes(resource.RUSAGE_CHILDREN) if with_children else 0)


def _max_resident_bytes(who: int) -> int:
    peak = resource.getrusage(who).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
