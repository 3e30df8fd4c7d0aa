"""What each node of a graph took, as the profiler of a runtime tells it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

__all__ = ["NodeTime", "median_times"]


class NodeTime(BaseModel):
    """What one node of the graph that a runtime runs took."""

    model_config = ConfigDict(frozen=True)

    name: str
    op: str
    """Its type, as the runtime calls it after fusing."""
    kernel: str
    """What ran it, as the runtime names it: an implementation, or what it computes in."""
    ms: float
    """Of one run."""


def median_times(runs: Sequence[Sequence[NodeTime]]) -> tuple[NodeTime, ...]:
    """The median of each node over several runs of one graph.

    Args:
        runs: The nodes of each run; one that is not in a run took no time there.
    """
    times: dict[tuple[str, str, str], list[float]] = {}
    for nodes in runs:
        for each in nodes:
            times.setdefault((each.name, each.op, each.kernel), []).append(each.ms)
    found = []
    for (name, op, kernel), seen in times.items():
        absent = [0.0] * (len(runs) - len(seen))
        ms = statistics.median([*seen, *absent])
        found.append(NodeTime(name=name, op=op, kernel=kernel, ms=ms))
    return tuple(found)
