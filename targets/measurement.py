"""A latency measurement: raw times kept, statistics derived, and a verdict on its own noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from targets.wording import plural

__all__ = [
    "Interval",
    "Measurement",
    "Noise",
    "Round",
    "Speedup",
    "machine_noise",
    "median_interval",
    "paired_speedup",
    "speedup",
    "warm_up_until_stable",
]

NS_PER_MS = 1e6
LEAST_ROUNDS = 6
"""The range of fewer holds their median in less than 95 of 100 cases."""

# Runs of one variant differ by 2-7% between the rounds on an idle machine, and by 9% at the most;
# more is trouble.
MAX_SPREAD = 0.10
# Share of the wanted CPUs that other processes may hold: the resolution of the kernel's counters.
MAX_CONTENTION = 0.10
# On a virtual machine: time for which the host ran somebody else.
MAX_STEAL = 0.02
# Share of the periods in which the limit of a container may stop the process.
MAX_THROTTLED = 0.05
# A round in which the process got this much less CPU than in its best one was held up.
MAX_STARVED = 0.15
# The machine's own speed, with nobody else to blame: a change between the rounds, and against the
# best that it has been known to do. An idle machine repeats the fixed work to within 3%.
MAX_SPEED_CHANGE = 0.10
MAX_SLOWDOWN = 1.05
# The same of waking a thread on another CPU, which differs by a fifth from one second to the next.
MAX_WAKEUP_SLOWDOWN = 1.35
# CPU time above what the threads can use: the runtime started more of them than it was told to.
MAX_EXTRA_CPU = 0.5


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


class Round(_Frozen):
    """One uninterrupted series of runs, and what else the machine did meanwhile."""

    run_ns: tuple[PositiveInt, ...] = Field(min_length=1)
    """Wall time of each run, in nanoseconds."""
    cpu_ns: int = Field(ge=0)
    """CPU time of the process, all threads, over the round."""
    others_cpus: float = 0.0
    """CPUs that other processes kept busy, on average."""
    steal: float = 0.0
    """Share of the machine's CPU time that its host gave to others, 0 to 1."""
    throttled: float = 0.0
    """Share of the periods of a container in which it had used up its CPU time and was stopped."""
    load_average: float = 0.0
    """The system's one-minute load average at the end."""
    reference_ns: PositiveInt | None = None
    """Time of a fixed piece of work just before; see `targets.machine_speed`."""
    wakeup_ns: PositiveInt | None = None
    """Time to wake a thread on another CPU and be woken by it, just before; see
    `targets.machine_speed`."""
    energy_j: float | None = None
    """Energy that the processors took meanwhile, all processes together; see `targets.energy`."""

    @functools.cached_property
    def median_ns(self) -> float:
        """Median wall time of a run."""
        return float(np.median(self.run_ns))

    @property
    def cpu_per_wall(self) -> float:
        """CPUs the process used, on average."""
        return self.cpu_ns / sum(self.run_ns)


class Noise(_Frozen):
    """Whether the machine was quiet enough for the numbers to count."""

    verdict: Literal["quiet", "noisy"]
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.verdict}: {'; '.join(self.reasons)}" if self.reasons else self.verdict


class Measurement(_Frozen):
    """How fast one bundle ran on one shape, in a process of its own."""

    rounds: tuple[Round, ...] = Field(min_length=1)
    threads: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    sequence_length: int | None = Field(ge=0)
    """Length of each sample, such as tokens of a text; 0 where all have one size; None for real
    texts of many lengths."""
    tokenization: bool = False
    """Whether a run began with the text and ended with labels."""
    num_cpus: int = Field(ge=1)
    load_time_ms: float = Field(ge=0)
    """Time to load the model in a fresh process, the import of the runtime's library included."""
    peak_memory_bytes: int = Field(ge=0)
    """Largest resident size of the whole process."""
    size_bytes: int = Field(ge=0)
    """Size of the bundle on disk."""
    best_reference_ns: PositiveInt | None = None
    """The shortest time that the fixed work is known to take on this machine."""
    best_wakeup_ns: PositiveInt | None = None
    """The shortest time that waking a thread is known to take on this machine."""

    @functools.cached_property
    def run_ms(self) -> NDArray[np.float64]:
        """Every run of every round, in ms.  # (runs,)"""
        return np.concatenate([np.asarray(each.run_ns) for each in self.rounds]) / NS_PER_MS

    @property
    def round_medians_ms(self) -> tuple[float, ...]:
        """Median of each round, in the order of the rounds."""
        return tuple(each.median_ns / NS_PER_MS for each in self.rounds)

    @property
    def median_ms(self) -> float:
        """Median of the round medians, so that one disturbed round cannot move it far."""
        return float(np.median(self.round_medians_ms))

    @property
    def p90_ms(self) -> float:
        """90th percentile of all runs."""
        return float(np.percentile(self.run_ms, 90))

    @property
    def p99_ms(self) -> float:
        """99th percentile of all runs."""
        return float(np.percentile(self.run_ms, 99))

    @property
    def min_ms(self) -> float:
        """The fastest run."""
        return float(self.run_ms.min())

    @property
    def interval(self) -> Interval:
        """95% confidence interval of ``median_ms``; see `median_interval`."""
        return median_interval(self.round_medians_ms)

    @property
    def throughput(self) -> float:
        """Samples a second in runs one after the other, median over the rounds.

        Not those of the median run: requests may be as unlike as real texts are.
        """
        seconds = [sum(each.run_ns) / 1e9 / len(each.run_ns) for each in self.rounds]
        return float(np.median([self.batch_size / each for each in seconds]))

    @property
    def cpu_ms(self) -> float:
        """CPU time of one run, all threads, median over the rounds."""
        return float(np.median([each.cpu_ns / len(each.run_ns) for each in self.rounds])) / 1e6

    @property
    def energy_mj(self) -> float | None:
        """Energy of one text, median over the rounds, or None where the machine tells none."""
        found = [
            each.energy_j / (len(each.run_ns) * self.batch_size) * 1e3
            for each in self.rounds
            if each.energy_j is not None
        ]
        return float(np.median(found)) if len(found) == len(self.rounds) else None

    @property
    def slowdown(self) -> float | None:
        """Time of the fixed work as a multiple of the shortest known; None where it is unknown.

        Above 1 the whole machine was slower than it has been. Ratios of bundles that were measured
        together stand; times do not compare with those of another run.
        """
        times = _reference_times(self)
        if not times or self.best_reference_ns is None:
            return None
        return float(np.median(times)) / self.best_reference_ns

    @property
    def wakeup_slowdown(self) -> float | None:
        """The same of waking a thread on another CPU; None also where one thread ran.

        Above 1 whatever runs on several threads was slower than it has been, and small models,
        whose threads wait for each other most often, by more than large ones.
        """
        times = [each.wakeup_ns for each in self.rounds if each.wakeup_ns is not None]
        if self.threads == 1 or not times or self.best_wakeup_ns is None:
            return None
        return float(np.median(times)) / self.best_wakeup_ns

    @property
    def slowed_by(self) -> tuple[str, ...]:
        """In which ways the machine was slower than it has been, by more than chance."""
        found = []
        if self.slowdown is not None and self.slowdown > MAX_SLOWDOWN:
            found.append(f"fixed work took {self.slowdown:.2f}x as long as it has before")
        if self.wakes_slowly:
            found.append(
                f"waking a thread took {self.wakeup_slowdown:.2f}x as long as it has before"
            )
        return tuple(found)

    @property
    def wakes_slowly(self) -> bool:
        """Whether waking a thread was slower than it has been: then ratios do not stand either."""
        return self.wakeup_slowdown is not None and self.wakeup_slowdown > MAX_WAKEUP_SLOWDOWN

    @property
    def is_slowed(self) -> bool:
        """Whether the machine was slower than it has been, by more than chance."""
        return bool(self.slowed_by)

    @property
    def noise(self) -> Noise:
        """Quiet, or noisy with every reason."""
        own = (_spread_reason(self), _starved_reason(self.rounds), _speed_reason(self))
        machine = machine_noise(self.rounds, threads=self.threads, num_cpus=self.num_cpus)
        return _noise(*own, *machine.reasons)


class Speedup(_Frozen):
    """How many times faster a candidate is than its baseline."""

    ratio: PositiveFloat
    low: PositiveFloat
    high: PositiveFloat
    num_rounds: int

    @property
    def is_certain(self) -> bool:
        """Whether the 95% interval leaves out 1, no change; of few rounds there is none."""
        return self.num_rounds >= LEAST_ROUNDS and (self.low > 1 or self.high < 1)

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x ({self.low:.2f}-{self.high:.2f})"


def speedup(baseline: Measurement, candidate: Measurement) -> Speedup:
    """Compare two measurements whose rounds alternated.

    Round by round the median of the baseline is divided by that of the candidate, so that what
    disturbed both cancels out; the result is the median of these ratios.

    Raises:
        ValueError: The two have different numbers of rounds, so they were not measured together.
    """
    return paired_speedup(baseline.round_medians_ms, candidate.round_medians_ms)


def paired_speedup(baseline_ms: Sequence[float], candidate_ms: Sequence[float]) -> Speedup:
    """The median of the ratios of times that were taken in turn; see :func:`speedup`.

    Raises:
        ValueError: There is not one of each for every round.
    """
    if len(baseline_ms) != len(candidate_ms):
        raise ValueError(f"the rounds do not pair: {len(baseline_ms)} and {len(candidate_ms)}")
    ratios = [slow / fast for slow, fast in zip(baseline_ms, candidate_ms, strict=True)]
    low, high = median_interval(ratios)
    return Speedup(ratio=float(np.median(ratios)), low=low, high=high, num_rounds=len(ratios))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Confidence interval of the median, from order statistics.

    Free of any assumption on the distribution: the number of values below the true median is
    binomial with probability 1/2 (Hahn and Meeker, Statistical Intervals, 1991, section 5.2). From
    9 values on it leaves out the smallest and the largest. With fewer than 6 values even the whole
    range covers less than 95%; the range is what is returned.

    Args:
        values: Independent values, at least one.
        confidence: Wanted coverage, 0 to 1.
    """
    ordered = sorted(values)
    num = len(ordered)
    left_out, tail = 0, 1 / 2**num
    while True:
        tail += math.comb(num, left_out + 1) / 2**num
        if 1 - 2 * tail < confidence:
            return Interval(ordered[left_out], ordered[num - 1 - left_out])
        left_out += 1


def warm_up_until_stable(
    run: Callable[[], object],
    clock: Callable[[], int],
    *,
    window: int = 5,
    tolerance: float = 0.05,
    min_s: float = 0.2,
    max_s: float = 0.8,
) -> tuple[int, ...]:
    """Run until the times stop changing.

    Stable means that the medians of the last two windows differ by less than ``tolerance``.

    Args:
        run: What to warm up.
        clock: Gives the time in nanoseconds.
        window: Runs in a window.
        tolerance: Largest relative difference of two windows.
        min_s: Shortest warm-up, in seconds: clock speeds and caches need time as well as runs.
        max_s: Longest warm-up; at least two runs are made.

    Returns:
        The time of each run, in nanoseconds.
    """
    times: list[int] = []
    begin = clock()
    while True:
        start = clock()
        run()
        stop = clock()
        times.append(stop - start)
        elapsed_s = (stop - begin) / 1e9
        if len(times) >= 2 and elapsed_s >= max_s:
            return tuple(times)
        if elapsed_s >= min_s and len(times) >= 2 * window:
            before = float(np.median(times[-2 * window : -window]))
            last = float(np.median(times[-window:]))
            if abs(last - before) <= tolerance * before:
                return tuple(times)


def machine_noise(rounds: Sequence[Round], *, threads: int, num_cpus: int) -> Noise:
    """Judge what the machine did meanwhile, whatever the times were.

    Args:
        rounds: At least one.
        threads: CPU threads that the target was told to use.
        num_cpus: CPUs of the machine.
    """
    return _noise(
        _contention_reason(rounds, threads, num_cpus),
        _steal_reason(rounds),
        _throttled_reason(rounds),
        _extra_cpu_reason(rounds, threads),
    )


def _noise(*reasons: str | None) -> Noise:
    found = tuple(reason for reason in reasons if reason)
    return Noise(verdict="noisy" if found else "quiet", reasons=found)


def _spread_reason(measured: Measurement) -> str | None:
    low, high = measured.interval
    if high - low <= MAX_SPREAD * measured.median_ms:
        # Many rounds make the interval of their median narrow, however far apart they are.
        low, high = np.percentile(measured.round_medians_ms, [25, 75])
    spread = (high - low) / measured.median_ms
    if spread <= MAX_SPREAD:
        return None
    return f"the rounds differ by {spread:.0%} ({low:.2f} to {high:.2f} ms)"


def _reference_times(measured: Measurement) -> list[int]:
    return [each.reference_ns for each in measured.rounds if each.reference_ns is not None]


def _speed_reason(measured: Measurement) -> str | None:
    times = _reference_times(measured)
    if not times:
        return None
    low, high = median_interval(times)
    change = (high - low) / float(np.median(times))
    return f"the machine changed its speed by {change:.0%}" if change > MAX_SPEED_CHANGE else None


def _contention_reason(rounds: Sequence[Round], threads: int, num_cpus: int) -> str | None:
    others = float(np.mean([each.others_cpus for each in rounds]))
    contention = (threads + others - num_cpus) / threads
    if contention <= MAX_CONTENTION:
        return None
    beside = plural(threads, "thread")
    return f"other processes kept {others:.1f} of {num_cpus} CPUs busy, beside {beside}"


def _steal_reason(rounds: Sequence[Round]) -> str | None:
    steal = float(np.mean([each.steal for each in rounds]))
    return f"the host took {steal:.0%} of the CPU time away" if steal > MAX_STEAL else None


def _throttled_reason(rounds: Sequence[Round]) -> str | None:
    throttled = float(np.mean([each.throttled for each in rounds]))
    if throttled <= MAX_THROTTLED:
        return None
    return f"the CPU limit of the container stopped the process in {throttled:.0%} of its periods"


def _starved_reason(rounds: Sequence[Round]) -> str | None:
    # Compared between rounds and not with the wall time: a GPU target waits without using a CPU.
    used = [each.cpu_per_wall for each in rounds]
    best, median = max(used), float(np.median(used))
    if best == 0 or median >= (1 - MAX_STARVED) * best:
        return None
    return f"the process got {median:.2f} CPUs in most rounds and {best:.2f} in the best"


def _extra_cpu_reason(rounds: Sequence[Round], threads: int) -> str | None:
    used = float(np.median([each.cpu_per_wall for each in rounds]))
    if used <= threads + MAX_EXTRA_CPU:
        return None
    return f"the process used {used:.1f} CPUs with {plural(threads, 'thread')} asked for"
