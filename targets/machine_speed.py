"""How fast the machine itself is at a moment: the time of a fixed piece of work.

A virtual machine, a laptop on battery or a hot board changes its speed by a tenth and more from one
minute to the next, with no other process to blame. Fixed work, timed before every round, sees it.
"""

from __future__ import annotations

import functools
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from targets.environment import Environment

__all__ = ["SpeedMemory", "reference_work_ns"]

REPEATS = 5
PRODUCTS = 60
COPIES = 3
SIDE = 64  # the product of two such matrices is too small for a linear algebra library's threads
COPIED = 2**20  # float32 values: more than the caches next to a core hold


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


class SpeedMemory:
    """The shortest time that the fixed work has taken on this machine, kept from run to run.

    Args:
        path: A JSON file; by default in ``$XDG_CACHE_HOME`` or ``~/.cache``. One that cannot be
            read or written is one that knows nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.path = path or Path(cache) / "compressor" / "machine-speed.json"

    def best_ns(self, seen_ns: int) -> int:
        """The shortest time known, what was just seen included and remembered.

        Args:
            seen_ns: Median of the times of a benchmark, in nanoseconds.
        """
        machine = f"{Environment.here().machine}; numpy {np.__version__}"
        known = self._read()
        best = min(known.get(machine, seen_ns), seen_ns)
        if known.get(machine) != best:
            self._write({**known, machine: best})
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
