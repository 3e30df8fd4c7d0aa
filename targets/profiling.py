"""Where the time of a run goes, by the runtime's own profiler."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from targets.bundle import Bundle
from targets.feeds import bundle_feeds, synthetic_feeds
from targets.node_times import NodeTime
from targets.registry import get, open_session
from targets.signature import Arrays

__all__ = ["OpTime", "Profile", "profile"]

NUM_RUNS = 200


@dataclass(frozen=True)
class OpTime:
    """All nodes of one type that one kind of kernel ran.

    Attributes:
        op: Their type.
        kernel: What ran them.
        count: How many they are.
        ms: Their times added up.
    """

    op: str
    kernel: str
    count: int
    ms: float


class Profile(BaseModel):
    """One run of a bundle, taken apart."""

    model_config = ConfigDict(frozen=True)

    batch_size: int
    length: int
    """Of each sample; `targets.preprocessing.FIXED_SIZE` where all have one size."""
    threads: int
    run_ms: float
    """Median of runs without the profiler."""
    nodes: tuple[NodeTime, ...]
    """Medians of runs with the profiler, which costs time of its own."""

    @property
    def nodes_ms(self) -> float:
        """All nodes together."""
        return sum(each.ms for each in self.nodes)

    def by_op(self) -> tuple[OpTime, ...]:
        """Nodes of one type and kernel together, the most expensive first."""
        groups: dict[tuple[str, str], list[float]] = {}
        for each in self.nodes:
            groups.setdefault((each.op, each.kernel), []).append(each.ms)
        found = (OpTime(*key, len(times), sum(times)) for key, times in groups.items())
        return tuple(sorted(found, key=lambda each: -each.ms))


def profile(
    bundle: Bundle, *, batch_size: int, length: int, threads: int, num_runs: int = NUM_RUNS
) -> Profile:
    """Run a bundle on a synthetic batch, then run it again under its runtime's profiler.

    Args:
        bundle: Of a target that runs here.
        batch_size: Samples of a run.
        length: Of each sample, such as in tokens; `targets.preprocessing.FIXED_SIZE` where all have
            one size.
        threads: CPU threads of the runtime.
        num_runs: With the profiler and without, after a tenth as many that do not count.

    Raises:
        TargetError: The target has no profiler, or failed.
    """
    manifest = bundle.manifest
    spec = bundle_feeds(bundle, batch_size=batch_size, sequence_length=length)
    feeds = synthetic_feeds(manifest.signature, spec)
    run_ms = _plain_ms(bundle, feeds, threads, num_runs)
    target = get(manifest.target, **manifest.target_settings)
    runs = target.profile(bundle, feeds, threads=threads, num_runs=num_runs)
    return Profile(batch_size=batch_size, length=length, threads=threads, run_ms=run_ms, nodes=runs)


def _plain_ms(bundle: Bundle, feeds: Arrays, threads: int, num_runs: int) -> float:
    session = open_session(bundle, threads=threads)
    times = []
    try:
        for _ in range(num_runs + num_runs // 10):
            start = time.perf_counter()
            session.run(feeds)
            times.append(time.perf_counter() - start)
    finally:
        session.close()
    return 1e3 * statistics.median(times[-num_runs:])
