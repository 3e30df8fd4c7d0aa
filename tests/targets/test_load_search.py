"""The search for the highest rate: it converges, gives up honestly, and keeps every run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from targets import Arrays, Session, Signature, TensorSpec
from targets.evaluation_pack import EvaluationPack
from targets.load_result import LoadLatency, LoadResult, MachineState
from targets.load_scenario import LoadSettings
from targets.load_search import MAX_CONFIRMATIONS, RateSearch, find_rate
from targets.loadgen import run_load
from targets.measurement import Noise
from targets.preprocessing import TextPreprocessing

SERVICE_S = 0.0005
SETTINGS = LoadSettings(scenario="server", p99_ms=20, duration_s=8)


def result_of(
    settings: LoadSettings, *, latency_ms: float, kept: bool = True, noise: str = "quiet"
) -> LoadResult:
    """A run whose latencies are all equal."""
    names = ("mean_ms", "p50_ms", "p90_ms", "p99_ms", "p999_ms")
    return LoadResult(
        settings=settings,
        threads=1,
        valid=kept,
        reasons=() if kept else ("over the bound",),
        bound_kept=kept,
        num_queries=1000,
        num_samples=1000,
        num_late=0,
        duration_s=1.0,
        samples_per_s=1000.0,
        scheduled_qps=settings.qps,
        latency=LoadLatency.model_validate(dict.fromkeys(names, latency_ms)),
        machine=MachineState(
            cpus=1,
            others_cpus=0,
            steal=0,
            load_average=0,
            peak_memory_bytes=1,
            noise=Noise.model_validate({"verdict": noise}),
        ),
        seeds={},
        loadgen_version="0",
        loadgen_settings={},
    )


def search(
    limit: float, *, service_ms: float = 2.0, noise: str = "quiet", lucky: float = 1.0
) -> RateSearch:
    """Search where rates up to ``limit`` are held, and up to ``lucky`` times it by short runs."""

    def run(settings: LoadSettings) -> LoadResult:
        highest = limit * (lucky if settings.duration_s < SETTINGS.duration_s else 1)
        kept = settings.qps is None or settings.qps <= highest
        return result_of(settings, latency_ms=service_ms, kept=kept, noise=noise)

    return find_rate(run, SETTINGS)


def rates(runs: tuple[LoadResult, ...]) -> list[float]:
    return [run.settings.qps or 0.0 for run in runs]


@given(st.floats(10, 1e5))
def test_the_highest_rate_is_found_to_three_percent(limit: float) -> None:
    found = search(limit)
    assert found.held is not None
    assert found.held.settings.qps is not None
    assert limit / 1.03 <= found.held.settings.qps <= limit
    assert len(found.probes) <= 20
    assert len(found.confirmations) == 1


def test_what_is_held_was_run_at_full_length_and_probes_were_shorter() -> None:
    found = search(300)
    assert found.held is not None
    assert found.held.settings.duration_s == SETTINGS.duration_s
    assert found.held.settings.p99_ms == 20
    assert {run.settings.duration_s for run in found.probes} == {SETTINGS.duration_s / 4}
    assert {run.settings.seed for run in found.probes} == {SETTINGS.seed}


def test_a_rate_that_only_short_runs_hold_is_lowered_until_a_long_one_does() -> None:
    found = search(300, lucky=1.12)
    assert found.held is not None
    tried = rates(found.confirmations)
    steps = [high / low for high, low in itertools.pairwise(tried)]
    assert steps == pytest.approx([1.03, 1.06, 1.12][: len(steps)])
    assert [run.valid for run in found.confirmations] == [False] * (len(tried) - 1) + [True]
    assert 300 / steps[-1] <= tried[-1] <= 300


def test_nothing_is_held_that_no_long_run_confirms() -> None:
    found = search(300, lucky=4)
    assert len(found.confirmations) == MAX_CONFIRMATIONS
    assert found.held is None


def test_a_bound_below_one_query_at_a_time_starts_no_probe() -> None:
    found = search(300, service_ms=20.1)
    assert (found.probes, found.confirmations, found.held) == ((), (), None)
    assert found.unloaded.settings.scenario == "single-stream"


def test_a_search_that_holds_nothing_ends() -> None:
    found = search(0.001)
    assert rates(found.probes) == pytest.approx([250 / 2**step for step in range(7)])
    assert (found.confirmations, found.held) == ((), None)


def test_a_search_that_holds_everything_ends() -> None:
    found = search(float("inf"))
    assert found.held is not None
    assert found.held.settings.qps == pytest.approx(250 * 2**12)


def test_a_miss_on_a_noisy_machine_gets_a_second_chance() -> None:
    calm, noisy = rates(search(300).probes), rates(search(300, noise="noisy").probes)
    assert noisy == [rate for rate in calm for _ in range(1 if rate <= 300 else 2)]


class Sleeper(Session):
    """One server with a constant service time."""

    def __init__(self) -> None:
        free = ("batch", "sequence")
        super().__init__(
            Signature(
                inputs=(TensorSpec(name="input_ids", dtype="int64", shape=free),),
                outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 1)),),
            )
        )

    def _run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        time.sleep(SERVICE_S)
        return {"logits": np.zeros((len(feeds["input_ids"]), 1), dtype=np.float32)}


@pytest.mark.slow
def test_one_server_holds_nearly_one_query_in_its_service_time(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    pack = EvaluationPack.from_rows(
        {"input_ids": [[1], [2, 3]]},
        [0, 1],
        preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
    )
    session, folders = Sleeper(), itertools.count()

    def run(settings: LoadSettings) -> LoadResult:
        logs = tmp_path / str(next(folders))
        logs.mkdir()
        return run_load(session, pack, settings, logs, threads=1)

    found = find_rate(run, LoadSettings(scenario="server", p99_ms=25, duration_s=1))
    assert found.held is not None
    rate = found.held.settings.qps or 0
    record_property("share_of_service_rate", round(rate * SERVICE_S, 3))
    # A sleep is never shorter than asked for; on a busy machine it is longer, so that one query at
    # a time tells what to expect at least.
    assert rate < 1.05 / SERVICE_S
    assert rate > 0.4 * 1e3 / found.unloaded.latency.mean_ms
    assert found.held.latency.p99_ms <= 25
    assert found.held.scheduled_qps == pytest.approx(rate, rel=0.1)
    missed = [run for run in found.probes if not run.bound_kept]
    assert missed
    assert all(run.latency.p99_ms > 25 for run in missed)
