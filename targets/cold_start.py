"""Cold start: from nothing to the first answer, as after a deployment or a scale-up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from targets.bundle import Bundle
from targets.feeds import FeedsSpec, bundle_feeds
from targets.measurement import Interval, median_interval
from targets.worker_client import Worker

__all__ = ["ColdStart", "Start", "cold_starts"]


class Start(BaseModel):
    """One start of a process that answers one request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process_ms: float = Field(ge=0)
    """To start Python, and to verify the files of the bundle."""
    load_ms: float = Field(ge=0)
    """To import the runtime's library and load the model."""
    first_run_ms: float = Field(ge=0)
    """The first run, which many runtimes use to finish their work of loading."""

    @property
    def total_ms(self) -> float:
        """All of it."""
        return self.process_ms + self.load_ms + self.first_run_ms


class ColdStart(BaseModel):
    """Several starts of one bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    starts: tuple[Start, ...] = Field(min_length=1)
    threads: int
    evicted: bool
    """Whether the files of the bundle were put out of the page cache before each start. The
    libraries of the runtime stay in it."""

    @property
    def median_ms(self) -> float:
        """Median of the whole time to the first answer."""
        return float(np.median([each.total_ms for each in self.starts]))

    @property
    def interval(self) -> Interval:
        """95% confidence interval of ``median_ms``; see `median_interval`."""
        return median_interval([each.total_ms for each in self.starts])


def cold_starts(
    folder: Path,
    *,
    threads: int = 1,
    num_starts: int = 6,
    sequence_length: int = 128,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ColdStart:
    """Start a process again and again, and time it to its first answer.

    Args:
        folder: A bundle.
        threads: CPU threads of the runtime.
        num_starts: How often. With fewer than 6 no 95% interval exists.
        sequence_length: Tokens of the one text.
        on_progress: Called with the starts done and all starts.

    Raises:
        TargetError: The runtime refused the bundle.
        WorkerError: The process died.
    """
    bundle = Bundle.open(folder, verify=False)
    workload = bundle_feeds(bundle, batch_size=1, sequence_length=sequence_length)
    starts, evicted = [], True
    for index in range(num_starts):
        on_progress(index, num_starts)
        evicted = _evict(folder) and evicted
        starts.append(_start(folder, workload, threads))
    return ColdStart(starts=tuple(starts), threads=threads, evicted=evicted)


def _start(folder: Path, workload: FeedsSpec, threads: int) -> Start:
    begin = time.perf_counter()
    with Worker(threads=threads) as worker:
        opened = worker.open(folder.resolve())
        timed = worker.round(workload, num_runs=1, settle_runs=0)
        total_ms = (time.perf_counter() - begin) * 1e3
    first_run_ms = timed.round.run_ns[0] / 1e6
    return Start(
        process_ms=max(total_ms - opened.load_time_ms - first_run_ms, 0.0),
        load_ms=opened.load_time_ms,
        first_run_ms=first_run_ms,
    )


def _evict(folder: Path) -> bool:
    """Put the files of a folder out of the page cache; whether the system was asked to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not on the disk yet would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            return False
        finally:
            os.close(descriptor)
    return True
