"""What to ask of MLPerf LoadGen: the scenarios, and the settings of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["SCENARIOS", "LoadSettings", "Scenario", "ScenarioRules"]

Scenario = Literal["single-stream", "multi-stream", "offline", "server"]

# A queue that grows by 3% of the arrivals reaches the bound only after 33 times the bound: in a
# shorter run a rate that is 3% more than can be served would look held.
BOUNDS_PER_RUN = 34
# LoadGen calls a 99th percentile held from 459 queries on, and then allows none to be late; with
# this many it allows 3.
SERVER_QUERIES = 1000


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class ScenarioRules:
    """What is particular to a scenario.

    Attributes:
        loadgen: LoadGen's name for it.
        options: Fields of `LoadSettings` that it takes, beside those that all take.
        required: Fields that a user has to give.
        waits: Whether a query arrives only when the one before it is answered.
        min_queries: Fewest queries of a run.
        samples_per_query: Usual number of samples that arrive together.
        max_batch: Usual largest batch.
        latency_key: Key of a percentile in the detail log, to be filled with the percentile.
        mean_key: Key of the mean latency.
        rate_key: Key of the samples completed a second; None where LoadGen logs none.
    """

    loadgen: str
    options: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    waits: bool = True
    min_queries: int = 1
    samples_per_query: int = 1
    max_batch: int = 1
    latency_key: str = "result_{:.2f}_percentile_latency_ns"
    mean_key: str = "result_mean_latency_ns"
    rate_key: str | None = None


SCENARIOS: Mapping[Scenario, ScenarioRules] = {
    "single-stream": ScenarioRules("SingleStream", rate_key="result_qps_with_loadgen_overhead"),
    "multi-stream": ScenarioRules(
        "MultiStream",
        options=frozenset({"samples_per_query", "max_batch"}),
        samples_per_query=8,
        max_batch=8,
        latency_key="result_{:.2f}_percentile_per_query_latency_ns",
        mean_key="result_mean_query_latency_ns",
    ),
    "offline": ScenarioRules(
        "Offline",
        options=frozenset({"max_batch"}),
        max_batch=32,
        rate_key="result_samples_per_second",
    ),
    "server": ScenarioRules(
        "Server",
        options=frozenset({"qps", "p99_ms", "max_batch"}),
        required=frozenset({"p99_ms"}),
        waits=False,
        min_queries=SERVER_QUERIES,
        rate_key="result_completed_samples_per_sec",
    ),
}

OPTIONS = frozenset[str]().union(*(rules.options for rules in SCENARIOS.values()))
"""Fields of `LoadSettings` that only some scenarios take."""


class LoadSettings(_Frozen):
    """What to ask of LoadGen."""

    scenario: Scenario
    """How queries arrive: the next when the last is answered (single-stream, and multi-stream with
    several samples each), all at once (offline), or at random times (server)."""
    duration_s: float = Field(default=10.0, gt=0, le=86_400)
    """Shortest run, in seconds."""
    qps: float | None = Field(default=None, gt=0, le=1e6)
    """Server: mean rate at which queries arrive, a second."""
    p99_ms: float | None = Field(default=None, gt=0, le=3.6e6)
    """Server: bound that 99% of the latencies have to keep, in ms."""
    max_batch: int = Field(default=1, ge=1, le=4096)
    """Most samples in one run of the model."""
    samples_per_query: int = Field(default=1, ge=1, le=4096)
    """Multi-stream: samples that arrive together."""
    seed: int = Field(default=0, ge=0, le=2**32)
    """Seed of the order of the samples and of the arrival times."""

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        for name in sorted(OPTIONS - self.rules.options):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect on the scenario {self.scenario}")
        return self

    @property
    def rules(self) -> ScenarioRules:
        """What is particular to the scenario."""
        return SCENARIOS[self.scenario]

    @property
    def seeds(self) -> dict[str, int]:
        """LoadGen's seeds, by the names of its settings."""
        names = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")
        return {name: self.seed + number for number, name in enumerate(names, start=1)}

    @property
    def run_s(self) -> float:
        """Shortest run that LoadGen is asked for, in seconds; with a bound it is long beside it."""
        return max(self.duration_s, BOUNDS_PER_RUN * (self.p99_ms or 0) / 1e3)

    @property
    def expected_s(self) -> float:
        """How long queries will arrive, in seconds."""
        return max(self.run_s, self.rules.min_queries / self.qps if self.qps else 0)

    @property
    def max_outstanding(self) -> int:
        """Server: unanswered queries at which a run ends early; 0 for no limit.

        With so many, more than 1% of all queries are late already, and waiting for the rest would
        only take time.
        """
        if self.qps is None or self.p99_ms is None:
            return 0
        return int(self.qps * (self.p99_ms / 1e3 + 0.02 * self.expected_s)) + 32
