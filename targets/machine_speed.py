"""How fast the machine itself is at a moment: the times of fixed work, and of waking a thread.

A virtual machine, a laptop on battery or a hot board changes its speed by a tenth and more from one
minute to the next, with no other process to blame. Fixed work, timed before every round, sees it.

The work of one thread does not see all of it. On a virtual machine, waking a CPU can take half as
long again as a minute before while each CPU computes as fast as ever: runs on several threads,
which wait for each other at every operation, then take up to half as long again as well.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from targets.environment import Environment, usable_cpus

__all__ = ["SpeedMemory", "reference_work_ns", "wakeup_ns"]

REPEATS = 5
PRODUCTS = 60
COPIES = 3
SIDE = 64  # the product of two such matrices is too small for a linear algebra library's threads
COPIED = 2**20  # float32 values: more than the caches next to a core hold
ROUND_TRIPS = 40


@functools.cache
def _operands() -> tuple[NDArray[np.float32], ...]:
    square = np.linspace(-1, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    long = np.ones(COPIED, dtype=np.float32)
    return square, np.empty_like(square), long, np.empty_like(long)


def reference_work_ns() -> int:
    """Do the fixed work: matrix products in the nearest cache, and copies through the far ones.

    Returns:
        Wall time of the fastest of a few repeats, in nanoseconds; a few milliseconds go by.
    """
    square, product, long, copy = _operands()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter_ns()
        for _ in range(PRODUCTS):
            np.matmul(square, square, out=product)
        for _ in range(COPIES):
            np.copyto(copy, long)
        times.append(time.perf_counter_ns() - start)
    return min(times)


def wakeup_ns() -> int | None:
    """Wake a thread on another CPU, and be woken by it in turn.

    Returns:
        Wall time of such a round trip, in nanoseconds, median of some; a few milliseconds go by.
        None where this process has one CPU.
    """
    cpus = usable_cpus()
    if len(cpus) < 2:
        return None
    here, there = Lock(), Lock()
    here.acquire()
    there.acquire()
    times: list[int] = []

    def answer() -> None:
        _stay_on(cpus[-1])
        for _ in range(ROUND_TRIPS):
            there.acquire()
            here.release()

    def ask() -> None:
        _stay_on(cpus[0])
        for _ in range(ROUND_TRIPS):
            start = time.perf_counter_ns()
            there.release()
            here.acquire()
            times.append(time.perf_counter_ns() - start)

    # Both in threads of their own: the one that calls may run wherever it could before.
    both = Thread(target=answer), Thread(target=ask)
    for each in both:
        each.start()
    for each in both:
        each.join()
    return round(float(np.median(times)))


def _stay_on(cpu: int) -> None:
    """Keep this thread on a CPU, where the system can: beside its waker it would not be woken."""
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):
            os.sched_setaffinity(0, {cpu})


class SpeedMemory:
    """The shortest times that these two have taken on this machine, kept from run to run.

    Args:
        path: A JSON file; by default in ``$XDG_CACHE_HOME`` or ``~/.cache``. One that cannot be
            read or written is one that knows nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.path = path or Path(cache) / "compressor" / "machine-speed.json"

    def best_ns(self, seen_ns: int, what: Literal["work", "wake-up"] = "work") -> int:
        """The shortest time known, what was just seen included and remembered.

        Args:
            seen_ns: Median of the times of a benchmark, in nanoseconds.
            what: Whether they are of `reference_work_ns` or of `wakeup_ns`.
        """
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        by = f"numpy {np.__version__}" if what == "work" else f"wake-up, Python {python}"
        key = f"{Environment.here().machine}; {by}"
        known = self._read()
        best = min(known.get(key, seen_ns), seen_ns)
        if known.get(key) != best:
            self._write({**known, key: best})
        return best

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: value for key, value in found.items() if isinstance(value, int) and value > 0}

    def _write(self, known: dict[str, int]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
