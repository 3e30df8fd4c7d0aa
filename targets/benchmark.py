"""Time several bundles side by side: a process each, in rounds that alternate between them."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from targets.bundle import Bundle
from targets.environment import usable_cpus
from targets.errors import ToolkitError
from targets.feeds import FeedsSpec, num_token_ids
from targets.machine_speed import SpeedMemory, reference_work_ns, wakeup_ns
from targets.measurement import Measurement, Round
from targets.preprocessing import FIXED_SIZE
from targets.protocol import ErrorRecord
from targets.worker_client import Opened, Timed, Worker
from targets.workloads import TextsSpec, Workload

__all__ = [
    "BenchmarkCase",
    "BenchmarkSettings",
    "CaseResult",
    "Failure",
    "Shape",
    "alternate",
    "benchmark",
]

T = TypeVar("T")

# One run alone would hide a hiccup; more than the upper number of runs says nothing new.
MIN_RUNS = 2
MAX_RUNS = 500
# Others had the caches meanwhile: runs that are not timed bring them back. One is needed even by a
# long run (the first was 4% slower in PyTorch), two where they cost little.
SETTLE_NS = 50_000_000
MAX_SETTLE_RUNS = 2


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Shape(NamedTuple):
    """Size of a batch.

    Attributes:
        batch_size: Samples a run.
        sequence_length: Length of each, such as tokens of a text; `FIXED_SIZE` where all have one
            size; None for real texts of many lengths.
        tokenization: Whether a run begins with the text and ends with labels; real texts only.
    """

    batch_size: int
    sequence_length: int | None
    tokenization: bool = False

    def __str__(self) -> str:
        if self.sequence_length == FIXED_SIZE:
            return f"batch {self.batch_size}"
        length = "raw text" if self.tokenization else self.sequence_length or "real"
        return f"{self.batch_size} x {length}"


class BenchmarkSettings(_Frozen):
    """How latency is measured."""

    threads: int = Field(default=1, ge=1, le=1024)
    """CPU threads of each target."""
    sequence_length: int = Field(default=128, ge=FIXED_SIZE, le=10_000_000)
    """Length of each sample: tokens of a text, samples of a recording; 0 where all inputs of the
    model have one size."""
    batch_sizes: tuple[int, ...] = Field(default=(1, 4), min_length=1, max_length=16)
    """Batch sizes to measure. The first is the one that counts as latency."""
    write_tokens: int | None = Field(
        default=32, ge=2, le=100_000, exclude_if=lambda value: value == 32
    )
    """Tokens that a language model with a state writes in each round, the first one included,
    after a prompt of `sequence_length`; fewer where a text cannot become that long. null: it writes
    none."""
    rounds: int = Field(default=9, ge=1, le=1000)
    """Rounds of each bundle and batch size; below 6 no 95% interval exists, from 9 on one
    disturbed round does not widen it."""
    min_round_s: float = Field(default=0.1, gt=0, le=3600)
    """Shortest round, in seconds; at least 2 runs are made."""
    pause_s: float = Field(default=0.02, ge=0, le=60)
    """Pause between rounds, in seconds, in which the threads of the last runtime stop spinning."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait for a bundle to load or a round to end, in seconds."""

    @field_validator("batch_sizes")
    @classmethod
    def _check_batch_sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if min(sizes) < 1:
            raise ValueError("a batch has at least one sample")
        if len(set(sizes)) < len(sizes):
            raise ValueError("each batch size is measured once; name it once")
        return sizes

    def of_latency(self) -> dict[str, Any]:
        """The settings that latencies depend on, as JSON values."""
        return self.model_dump(mode="json", exclude={"write_tokens"})

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes to measure, the one that counts as latency first."""
        return tuple(Shape(size, self.sequence_length) for size in self.batch_sizes)


@dataclass(frozen=True)
class BenchmarkCase:
    """One bundle to measure.

    Attributes:
        bundle: Its folder.
        python: The interpreter that has its runtime.
        threads: CPU threads; None for those of the settings.
        texts: A JSON file with a list of texts, for shapes without a length.
        options: Runtime options on top of those of the bundle.
    """

    bundle: Path
    python: str | Path = sys.executable
    threads: int | None = None
    texts: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Failure(_Frozen):
    """Why a bundle has no measurement."""

    error: ErrorRecord
    shape: Shape | None = None
    """The shape it failed on; None if it could not be loaded."""


class CaseResult(_Frozen):
    """What was measured of one bundle."""

    measurements: tuple[Measurement, ...] = ()
    failures: tuple[Failure, ...] = ()

    def at(self, shape: Shape) -> Measurement | Failure | None:
        """What happened on a shape; None if it was not asked for."""
        for each in self.measurements:
            if (each.batch_size, each.sequence_length, each.tokenization) == shape:
                return each
        return next((each for each in self.failures if each.shape in (shape, None)), None)


Progress = Callable[[int, int, str], None]
"""Called with the steps done, all steps, and a line on what is being done."""


@dataclass
class _Lane:
    """The worker of one case, and what came out of it so far."""

    name: str
    worker: Worker
    opened: Opened
    num_ids: int
    bundle: Bundle
    texts: Path | None = None
    measurements: list[Measurement] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def workload(self, shape: Shape) -> Workload:
        if shape.sequence_length is None:
            assert self.texts is not None
            return TextsSpec(
                texts=self.texts, batch_size=shape.batch_size, tokenization=shape.tokenization
            )
        return FeedsSpec.of(
            self.bundle, shape.batch_size, shape.sequence_length, num_ids=self.num_ids
        )


class _Length(NamedTuple):
    """How long a round is."""

    num_runs: int
    settle_runs: int


class _BestSpeed(NamedTuple):
    """What the machine has been known to do; see `targets.machine_speed`."""

    reference_ns: int | None
    wakeup_ns: int | None


class _Steps:
    """Counts the steps of a benchmark for whoever watches."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def next(self, message: str) -> None:
        if self._on_progress is not None:
            self._on_progress(self._done, self._total, message)
        self._done += 1


def benchmark(
    cases: Mapping[str, BenchmarkCase],
    settings: BenchmarkSettings,
    on_progress: Progress | None = None,
    *,
    shapes: Sequence[Shape] | None = None,
) -> dict[str, CaseResult]:
    """Measure the latency of bundles under the same conditions.

    Every bundle runs in a process of its own. All are loaded, then each shape is measured in
    rounds that alternate between them, so that a change of the machine meets all of them; those
    not in turn sleep. A bundle that fails is a result with its reason, and the others go on.

    Args:
        cases: Name -> bundle.
        settings: How to measure.
        on_progress: Called before every step.
        shapes: What to measure, instead of the shapes of the settings.

    Returns:
        One result for each case, in the same order.
    """
    wanted = settings.shapes if shapes is None else tuple(shapes)
    steps = _Steps(len(cases) * (1 + len(wanted) * (1 + settings.rounds)), on_progress)
    results: dict[str, CaseResult] = {}
    with ExitStack() as stack:
        lanes: list[_Lane] = []
        for name, case in cases.items():
            steps.next(f"loading {name}")
            try:
                lanes.append(_open(stack, name, case, settings))
            except ToolkitError as error:
                results[name] = CaseResult(failures=(Failure(error=ErrorRecord.of(error)),))
        for shape in wanted:
            _measure(lanes, shape, settings, steps)
        for lane in lanes:
            results[lane.name] = CaseResult(
                measurements=tuple(lane.measurements), failures=tuple(lane.failures)
            )
    return {name: results[name] for name in cases}


def _open(stack: ExitStack, name: str, case: BenchmarkCase, settings: BenchmarkSettings) -> _Lane:
    bundle = Bundle.open(case.bundle, verify=False)  # the worker verifies it
    threads = case.threads or settings.threads
    worker = Worker(threads=threads, python=case.python, timeout_s=settings.timeout_s)
    with ExitStack() as own:
        own.enter_context(worker)
        lane = _Lane(
            name=name,
            worker=worker,
            opened=worker.open(case.bundle.resolve(), options=case.options),
            num_ids=num_token_ids(bundle),
            bundle=bundle,
            texts=case.texts,
        )
        stack.push(own.pop_all())
    return lane


def _measure(
    lanes: Sequence[_Lane], shape: Shape, settings: BenchmarkSettings, steps: _Steps
) -> None:
    lengths: dict[str, _Length] = {}
    timed: dict[str, list[Timed]] = {}
    for lane in lanes:
        steps.next(f"warming up {lane.name} ({shape})")
        try:
            warmed_up = lane.worker.warm_up(lane.workload(shape))
        except ToolkitError as error:
            lane.failures.append(Failure(error=ErrorRecord.of(error), shape=shape))
            continue
        lengths[lane.name] = _length_of(
            warmed_up.run_ns, settings.min_round_s, num_requests=warmed_up.num_requests
        )
        timed[lane.name] = []
    for index in range(settings.rounds):
        for lane in alternate([lane for lane in lanes if lane.name in timed], index):
            steps.next(f"measuring {lane.name} ({shape}), round {index + 1}")
            time.sleep(settings.pause_s)
            reference_ns = reference_work_ns()
            woken_ns = wakeup_ns() if lane.worker.threads > 1 else None
            try:
                each = lane.worker.round(lane.workload(shape), **lengths[lane.name]._asdict())
                timed[lane.name].append(each.after(reference_ns, woken_ns))
            except ToolkitError as error:
                lane.failures.append(Failure(error=ErrorRecord.of(error), shape=shape))
                del timed[lane.name]
    best = _best_speed([each.round for found in timed.values() for each in found])
    for lane in lanes:
        if lane.name in timed:
            lane.measurements.append(_measurement(lane, shape, timed[lane.name], best))


def _best_speed(rounds: Sequence[Round]) -> _BestSpeed:
    """The shortest times that are known of this machine, those of these rounds included."""
    memory = SpeedMemory()
    work = [each.reference_ns for each in rounds if each.reference_ns is not None]
    woken = [each.wakeup_ns for each in rounds if each.wakeup_ns is not None]
    return _BestSpeed(
        reference_ns=memory.best_ns(round(statistics.median(work))) if work else None,
        wakeup_ns=memory.best_ns(round(statistics.median(woken)), "wake-up") if woken else None,
    )


def _measurement(
    lane: _Lane, shape: Shape, timed: Sequence[Timed], best: _BestSpeed
) -> Measurement:
    return Measurement(
        rounds=tuple(each.round for each in timed),
        best_reference_ns=best.reference_ns,
        best_wakeup_ns=best.wakeup_ns,
        threads=lane.worker.threads,
        batch_size=shape.batch_size,
        sequence_length=shape.sequence_length,
        tokenization=shape.tokenization,
        num_cpus=len(usable_cpus()),
        load_time_ms=lane.opened.load_time_ms,
        peak_memory_bytes=max(each.peak_memory_bytes for each in timed),
        size_bytes=lane.bundle.size_bytes,
    )


def _length_of(warm_up_ns: Sequence[int], min_round_s: float, *, num_requests: int = 1) -> _Length:
    """Runs that fill a round, from the times at the end of the warm-up.

    Every round takes each request equally often, so that rounds can be compared.
    """
    last_ns = max(statistics.median(warm_up_ns[-max(5, num_requests) :]), 1)
    num_runs = min(max(math.ceil(min_round_s * 1e9 / last_ns), MIN_RUNS), MAX_RUNS)
    return _Length(
        num_runs=math.ceil(num_runs / num_requests) * num_requests,
        settle_runs=max(1, min(int(SETTLE_NS / last_ns), MAX_SETTLE_RUNS)),
    )


def alternate(lanes: Sequence[T], index: int) -> list[T]:
    """The order of a round: every second one goes the other way, every two begin with another lane.

    So no lane always runs first, nor always after the same neighbour.
    """
    if not lanes:
        return []
    start = index // 2 % len(lanes)
    turned = [*lanes[start:], *lanes[:start]]
    return turned[::-1] if index % 2 else turned
