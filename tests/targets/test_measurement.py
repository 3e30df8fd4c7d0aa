"""Statistics of a measurement: intervals that cover, speedups that pair, noise that says so."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from targets.measurement import (
    Measurement,
    Round,
    median_interval,
    speedup,
    warm_up_until_stable,
)

MS = 1_000_000
TIMES = st.lists(st.integers(MS // 10, 1000 * MS), min_size=3, max_size=3)


def measurement(
    medians_ms: list[float],
    *,
    threads: int = 1,
    cpus: float | list[float] = 1.0,
    others: float = 0.0,
    steal: float = 0.0,
    reference: list[float] | None = None,
    best_reference: float | None = None,
    wakeup: float | None = None,
) -> Measurement:
    fixed = [None if reference is None else round(each * MS) for each in reference or medians_ms]
    used = cpus if isinstance(cpus, list) else [cpus] * len(medians_ms)
    rounds = []
    for ms, cpu, reference_ns in zip(medians_ms, used, fixed, strict=True):
        run_ns = tuple(round(ms * MS * factor) for factor in (0.99, 1.0, 1.0, 1.0, 1.02))
        rounds.append(
            Round(
                run_ns=run_ns,
                cpu_ns=round(sum(run_ns) * cpu),
                others_cpus=others,
                steal=steal,
                reference_ns=reference_ns,
                wakeup_ns=None if wakeup is None else round(wakeup * 34_000),
            )
        )
    best_ns = None if best_reference is None else round(best_reference * MS)
    return of_rounds(rounds, threads=threads, best_reference_ns=best_ns)


def of_rounds(
    rounds: list[Round], *, threads: int = 1, best_reference_ns: int | None = None
) -> Measurement:
    return Measurement(
        best_reference_ns=best_reference_ns,
        best_wakeup_ns=34_000,
        rounds=tuple(rounds),
        threads=threads,
        batch_size=4,
        sequence_length=128,
        num_cpus=2,
        load_time_ms=1,
        peak_memory_bytes=1,
        size_bytes=1,
    )


def test_statistics_of_known_times() -> None:
    rounds = [Round(run_ns=tuple(n * MS for n in range(1, 101)), cpu_ns=100 * MS)] * 3
    measured = of_rounds(rounds)
    assert measured.median_ms == 50.5
    assert measured.p90_ms == pytest.approx(np.percentile(range(1, 101), 90), abs=1)
    assert measured.p99_ms == pytest.approx(np.percentile(range(1, 101), 99), abs=1)
    assert measured.min_ms == 1
    assert measured.throughput == pytest.approx(4 / 50.5e-3)
    # Of requests as unlike as texts are, the median is not what a stream of them takes.
    unlike = of_rounds([Round(run_ns=(2 * MS, 2 * MS, 2 * MS, 20 * MS), cpu_ns=MS)] * 3)
    assert unlike.median_ms == 2
    assert unlike.throughput == pytest.approx(4 / 6.5e-3)
    assert measured.cpu_ms == 1


@given(st.lists(TIMES, min_size=1, max_size=12))
def test_statistics_are_ordered(times: list[list[int]]) -> None:
    measured = of_rounds([Round(run_ns=tuple(each), cpu_ns=0) for each in times])
    assert measured.min_ms <= measured.median_ms <= measured.p90_ms + 1e-9
    assert measured.p90_ms <= measured.p99_ms <= max(measured.run_ms) + 1e-9
    assert measured.interval.low <= measured.median_ms <= measured.interval.high


@given(st.lists(TIMES, min_size=1, max_size=12), st.randoms())
def test_statistics_do_not_depend_on_the_order_of_the_rounds(times, random) -> None:  # type: ignore[no-untyped-def]
    rounds = [Round(run_ns=tuple(each), cpu_ns=0) for each in times]
    shuffled = random.sample(rounds, len(rounds))
    one, other = of_rounds(rounds), of_rounds(shuffled)
    assert (one.median_ms, one.p90_ms, one.interval) == (
        other.median_ms,
        other.p90_ms,
        other.interval,
    )


def test_raw_times_survive_json() -> None:
    measured = measurement([1, 2, 3])
    assert measured.median_ms == 2  # what is cached must not be written
    assert Measurement.model_validate_json(measured.model_dump_json()) == measured


def test_measurement_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        measurement([1]).threads = 2  # type: ignore[misc]


@pytest.mark.parametrize("num", [6, 9, 15])
def test_median_interval_covers_the_true_median_at_least_as_often_as_it_says(num: int) -> None:
    random = np.random.default_rng(0)
    values = random.lognormal(size=(4000, num))  # skewed, median 1
    intervals = [median_interval(row) for row in values]
    covered = np.mean([low <= 1 <= high for low, high in intervals])
    assert covered >= 0.945


def test_median_interval_leaves_outliers_out_from_nine_values_on() -> None:
    assert median_interval([1, 2, 3, 4, 5, 6, 7, 100]) == (1, 100)
    assert median_interval([1, 2, 3, 4, 5, 6, 7, 8, 100]) == (2, 8)


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=40))
def test_median_interval_holds_the_median(values: list[float]) -> None:
    low, high = median_interval(values)
    assert min(values) <= low <= np.median(values) <= high <= max(values)


def test_one_disturbed_round_does_not_move_the_median() -> None:
    assert measurement([2.0] * 8 + [50.0]).median_ms == 2.0


def test_speedup_of_known_times() -> None:
    found = speedup(measurement([6.0] * 9), measurement([2.0] * 9))
    assert found.ratio == pytest.approx(3, rel=1e-3)
    assert found.is_certain
    assert str(found) == "3.00x (3.00-3.00)"


def test_speedup_pairs_rounds_so_that_shared_disturbance_cancels() -> None:
    slowdown = [1.0, 1.1, 3.0, 1.3, 2.0, 1.0, 1.7, 1.2, 1.4]
    baseline = measurement([4 * each for each in slowdown])
    candidate = measurement([2 * each for each in slowdown])
    found = speedup(baseline, candidate)
    assert (found.low, found.high) == (pytest.approx(2, rel=1e-3), pytest.approx(2, rel=1e-3))


@given(st.lists(st.floats(0.5, 50), min_size=1, max_size=12))
def test_speedup_of_a_measurement_over_itself_is_one_and_not_certain(medians: list[float]) -> None:
    found = speedup(measurement(medians), measurement(medians))
    assert (found.ratio, found.low, found.high) == (1, 1, 1)
    assert not found.is_certain


def test_speedup_of_equal_variants_is_not_certain_more_than_one_time_in_twenty() -> None:
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(300):
        one, other = random.lognormal(sigma=0.1, size=(2, 9))
        wrong += speedup(measurement(list(one)), measurement(list(other))).is_certain
    assert wrong <= 0.07 * 300


def test_speedup_of_measurements_that_were_not_made_together() -> None:
    with pytest.raises(ValueError, match="do not pair: 3 and 4"):
        speedup(measurement([1.0] * 3), measurement([1.0] * 4))


def test_quiet_machine() -> None:
    noise = measurement([2.0, 2.02, 2.01, 2.0, 1.99, 2.0, 2.01, 2.0, 2.0]).noise
    assert (noise.verdict, noise.reasons, str(noise)) == ("quiet", (), "quiet")


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        (measurement([1.0, 2.0] * 5), "the rounds differ by 67%"),
        # Many rounds make the interval of their median narrow: half of these are within 6%.
        (measurement([1.0, 1.06, 1.06, 1.06, 1.2] * 9 + [1.2] * 9), "the rounds differ by 13%"),
        (measurement([1.0] * 9, others=1.5), "other processes kept 1.5 of 2 CPUs busy"),
        (measurement([1.0] * 9, threads=2, cpus=2, others=0.5), "beside 2 threads"),
        (measurement([1.0] * 9, steal=0.1), "the host took 10% of the CPU time"),
        (measurement([1.0] * 9, cpus=[1.0] + [0.5] * 8), "got 0.50 CPUs in most rounds"),
        (measurement([1.0] * 9, cpus=4.0), "used 4.0 CPUs with 1 thread asked for"),
        (measurement([1.0] * 9, reference=[1.0, 1.2] * 4 + [1.2]), "changed its speed by 17%"),
    ],
)
def test_noisy_machine_names_the_reason(measured: Measurement, reason: str) -> None:
    assert measured.noise.verdict == "noisy"
    assert reason in str(measured.noise)
    assert len(measured.noise.reasons) == 1


@pytest.mark.parametrize(
    "measured",
    [
        measurement([1.0] * 9, others=0.9),  # the other CPU is free for others
        measurement([1.0] * 9, cpus=0.05),  # a GPU does the work
        measurement([1.0] * 8 + [9.0]),  # one disturbed round of nine
        measurement([1.0] * 9, reference=[1.0] * 8 + [9.0]),
        measurement([1.0] * 9, reference=[2.0] * 9, best_reference=1.0),  # slow, but steadily so
        measurement([1.0] * 9, threads=2, cpus=2, wakeup=1.5),  # the same
    ],
)
def test_what_does_not_disturb_is_not_noise(measured: Measurement) -> None:
    assert measured.noise.verdict == "quiet"


def test_a_machine_that_is_slower_as_a_whole_is_known_by_its_fixed_work() -> None:
    slow = measurement([3.0] * 9, reference=[2.4] * 9, best_reference=2.0)
    assert slow.slowdown == pytest.approx(1.2)
    assert slow.is_slowed
    as_ever = measurement([3.0] * 9, reference=[2.05] * 9, best_reference=2.0)
    assert not as_ever.is_slowed
    assert measurement([3.0] * 9, reference=[2.4] * 9).slowdown is None
    assert measurement([3.0] * 9).slowdown is None
    assert not measurement([3.0] * 9, best_reference=2.0).is_slowed


def test_a_machine_that_wakes_threads_more_slowly_is_slowed_for_several_threads() -> None:
    slow = measurement([3.0] * 9, threads=2, cpus=2, wakeup=1.5)
    assert slow.wakes_slowly
    assert slow.slowed_by == ("waking a thread took 1.50x as long as it has before",)
    both = measurement(
        [3.0] * 9, threads=2, cpus=2, wakeup=1.5, reference=[2.4] * 9, best_reference=2.0
    )
    assert [each.split(" took")[0] for each in both.slowed_by] == ["fixed work", "waking a thread"]
    for as_ever in (
        measurement([3.0] * 9, threads=2, cpus=2, wakeup=1.2),
        measurement([3.0] * 9, threads=1, wakeup=1.5),  # one thread wakes no other
        measurement([3.0] * 9, threads=2, cpus=2),  # by a version that did not measure it
    ):
        assert not as_ever.is_slowed
        assert not as_ever.wakes_slowly


class FakeClock:
    """A clock that a run moves on by the next of some times."""

    def __init__(self, times_ms: Iterator[float]) -> None:
        self.now, self._times = 0, times_ms

    def __call__(self) -> int:
        return self.now

    def run(self) -> None:
        self.now += round(next(self._times) * MS)


def forever(first: list[float], then: float) -> Iterator[float]:
    yield from first
    while True:
        yield then


def test_warm_up_goes_on_while_times_fall() -> None:
    falling = [float(ms) for ms in range(60, 20, -1)]
    clock = FakeClock(forever(falling, 20))
    times = warm_up_until_stable(clock.run, clock, max_s=100)
    assert len(times) >= len(falling)
    assert times[-1] == 20 * MS


def test_warm_up_of_a_fast_model_takes_the_shortest_time() -> None:
    clock = FakeClock(forever([], 1))
    assert len(warm_up_until_stable(clock.run, clock, min_s=0.2)) == 200


def test_warm_up_that_never_settles_ends() -> None:
    clock = FakeClock(iter(float(2**n) for n in range(60)))
    times = warm_up_until_stable(clock.run, clock, max_s=1.0)
    assert all(later > earlier for earlier, later in pairwise(times))
    assert sum(times) < 2.2e9


def test_warm_up_makes_two_runs_of_a_slow_model() -> None:
    clock = FakeClock(forever([], 5000))
    assert len(warm_up_until_stable(clock.run, clock)) == 2
