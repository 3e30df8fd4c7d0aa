"""Find the highest rate at which a server keeps its latency bound."""

from __future__ import annotations

import math
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from targets.load_result import LoadResult
from targets.load_scenario import LoadSettings

__all__ = ["RateSearch", "find_rate"]

TOLERANCE = 0.03
PROBE_SHARE = 0.25
"""Length of a probe as a share of the run that confirms; the bound and the number of queries that
a verdict needs may make it longer."""
FIRST_SHARE = 0.5
"""The first rate, as a share of what one query at a time would give."""
MAX_HALVINGS = 6
MAX_DOUBLINGS = 12
MAX_CONFIRMATIONS = 6
CHANCES = 2
"""Probes of one rate, where those before were missed and the machine was noisy."""

Run = Callable[[LoadSettings], LoadResult]
"""Runs a scenario."""


class RateSearch(BaseModel):
    """How the highest rate was found."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    unloaded: LoadResult
    """One query at a time: no rate has lower latencies."""
    probes: tuple[LoadResult, ...]
    """Short runs, in the order in which they were made."""
    confirmations: tuple[LoadResult, ...]
    """Runs of full length from the highest rate that a probe held, until one is valid."""

    @property
    def held(self) -> LoadResult | None:
        """The run that confirmed the highest rate; None if no rate was held."""
        last = self.confirmations[-1] if self.confirmations else None
        return last if last is not None and last.valid else None


def find_rate(run: Run, settings: LoadSettings) -> RateSearch:
    """Find the highest rate at which 99% of the latencies keep a bound, to 3%.

    From half of what one query at a time gives, the rate is doubled, or halved, until one is held
    and its double is not; then the interval is halved on a logarithmic scale. A probe counts as
    held if its 99th percentile keeps the bound; one that is missed while the machine is noisy gets
    a second chance. All use the same seed, so that arrivals differ in scale only and a higher rate
    is never easier by luck. What was found is confirmed by a run of full length that LoadGen itself
    calls valid; after one that is not, the rate goes down by 3%, then by twice as much each time.

    Args:
        run: Runs a scenario.
        settings: A server with its bound and without a rate; ``duration_s`` is the full length.
    """
    assert settings.p99_ms is not None
    shorter = {"duration_s": settings.duration_s * PROBE_SHARE}
    unloaded = run(LoadSettings(scenario="single-stream", seed=settings.seed, **shorter))
    if unloaded.latency.p50_ms > settings.p99_ms:
        return RateSearch(unloaded=unloaded, probes=(), confirmations=())
    probes: list[LoadResult] = []

    def holds(qps: float) -> bool:
        for _ in range(CHANCES):
            probes.append(run(settings.model_copy(update={"qps": qps, **shorter})))
            if probes[-1].bound_kept or probes[-1].machine.noise.verdict == "quiet":
                break
        return probes[-1].bound_kept

    qps = _highest(holds, first=FIRST_SHARE * 1e3 / unloaded.latency.mean_ms)
    confirmations: list[LoadResult] = []
    while qps is not None and len(confirmations) < MAX_CONFIRMATIONS:
        confirmations.append(run(settings.model_copy(update={"qps": qps})))
        if confirmations[-1].valid:
            break
        qps /= 1 + TOLERANCE * 2 ** (len(confirmations) - 1)
    return RateSearch(unloaded=unloaded, probes=tuple(probes), confirmations=tuple(confirmations))


def _highest(holds: Callable[[float], bool], *, first: float) -> float | None:
    """The highest value that holds, to `TOLERANCE`, or None if none does that was tried."""
    low = first
    if holds(low):
        high = 2 * low
        for _ in range(MAX_DOUBLINGS):
            if not holds(high):
                break
            low, high = high, 2 * high
        else:
            return low
    else:
        for _ in range(MAX_HALVINGS):
            low, high = low / 2, low
            if holds(low):
                break
        else:
            return None
    while high / low > 1 + TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
