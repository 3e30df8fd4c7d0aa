"""A long run without a pause: whether the machine holds its speed, or throttles."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
from pydantic import BaseModel, ConfigDict, Field

from targets.bundle import Bundle
from targets.environment import usable_cpus
from targets.feeds import bundle_feeds
from targets.measurement import Interval, Round, machine_noise, median_interval
from targets.worker_client import Worker

__all__ = ["Sustained", "sustained_run"]

SECOND_NS = 1_000_000_000
# Slower by less than this is not called throttling, however certain it is.
LEAST_SLOWDOWN = 1.05
# Below this many slices in the first and in the last third no 95% interval exists.
LEAST_SLICES = 6
COOLING = Path("/sys/devices/system/cpu")


class Sustained(BaseModel):
    """What a long run found, in slices of about a second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slices: tuple[Round, ...] = Field(min_length=1)
    clock_mhz: tuple[float | None, ...]
    """Mean clock of the CPUs at the end of each slice, where the system tells it."""
    throttle_events: int | None
    """Times that the CPUs were slowed down for their heat, where the system counts them."""
    threads: int
    num_cpus: int
    batch_size: int
    sequence_length: int

    @property
    def duration_s(self) -> float:
        """Time spent in runs, in seconds."""
        return sum(sum(each.run_ns) for each in self.slices) / SECOND_NS

    @property
    def throughput(self) -> float:
        """Texts a second over the whole run."""
        return sum(len(each.run_ns) for each in self.slices) * self.batch_size / self.duration_s

    @property
    def first_ms(self) -> Interval:
        """95% interval of the median run in the first third, in ms."""
        return median_interval([each.median_ns / 1e6 for each in self._thirds()[0]])

    @property
    def last_ms(self) -> Interval:
        """95% interval of the median run in the last third, in ms."""
        return median_interval([each.median_ns / 1e6 for each in self._thirds()[1]])

    @property
    def slowdown(self) -> float:
        """Median of the last third as a multiple of that of the first."""
        first, last = (np.median([each.median_ns for each in part]) for part in self._thirds())
        return float(last / first)

    @property
    def verdict(self) -> Literal["steady", "throttled", "noisy", "too short to tell"]:
        """Whether the speed held.

        ``throttled``: slower at the end by 5% or more with intervals that do not overlap, or the
        system counted events. ``noisy``: other processes or the host took CPU time, so that a
        change would prove nothing.
        """
        if len(self._thirds()[0]) < LEAST_SLICES:
            return "too short to tell"
        if self.throttle_events:
            return "throttled"
        noise = machine_noise(self.slices, threads=self.threads, num_cpus=self.num_cpus)
        if noise.verdict == "noisy":
            return "noisy"
        slower = self.slowdown >= LEAST_SLOWDOWN and self.last_ms.low > self.first_ms.high
        return "throttled" if slower else "steady"

    def _thirds(self) -> tuple[tuple[Round, ...], tuple[Round, ...]]:
        size = max(len(self.slices) // 3, 1)
        return self.slices[:size], self.slices[-size:]


def sustained_run(
    folder: Path,
    *,
    duration_s: float,
    threads: int = 1,
    batch_size: int = 1,
    sequence_length: int = 128,
    on_progress: Callable[[float, str], None] = lambda fraction, line: None,
) -> Sustained:
    """Run one bundle without a pause.

    Args:
        folder: A bundle.
        duration_s: How long, in seconds. Heat takes minutes to build up; 18 slices of a second are
            the least that can be judged.
        threads: CPU threads of the runtime.
        batch_size: Texts a run.
        sequence_length: Tokens of each text.
        on_progress: Called with (fraction done, one line).

    Raises:
        TargetError: The runtime refused the bundle.
        WorkerError: The process died.
    """
    bundle = Bundle.open(folder, verify=False)
    workload = bundle_feeds(bundle, batch_size=batch_size, sequence_length=sequence_length)
    slices: list[Round] = []
    clocks: list[float | None] = []
    events = _throttle_events()
    with Worker(threads=threads) as worker:
        worker.open(folder.resolve())
        last_ns = max(worker.warm_up(workload).run_ns[-1], 1)
        begin = time.monotonic()
        while (elapsed_s := time.monotonic() - begin) < duration_s or not slices:
            on_progress(min(elapsed_s / duration_s, 1.0), f"{elapsed_s:.0f} of {duration_s:.0f} s")
            num_runs = max(math.ceil(SECOND_NS / last_ns), 1)
            slices.append(worker.round(workload, num_runs=num_runs, settle_runs=0).round)
            clocks.append(_clock_mhz())
            last_ns = max(int(slices[-1].median_ns), 1)
    after = _throttle_events()
    return Sustained(
        slices=tuple(slices),
        clock_mhz=tuple(clocks),
        throttle_events=None if events is None or after is None else after - events,
        threads=threads,
        num_cpus=len(usable_cpus()),
        batch_size=batch_size,
        sequence_length=sequence_length,
    )


def _clock_mhz() -> float | None:
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return None if frequency is None or not frequency.current else float(frequency.current)


def _throttle_events(root: Path = COOLING) -> int | None:
    """Events that Intel CPUs have counted since the system started; None where none are counted."""
    counts = []
    for path in root.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"):
        try:
            counts.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return sum(counts) if counts else None
