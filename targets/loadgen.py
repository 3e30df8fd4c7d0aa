"""Run a session under MLPerf LoadGen: it says when queries arrive, and times the answers."""

from __future__ import annotations

import contextlib
import itertools
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from targets.base import Session
from targets.environment import usable_cpus
from targets.errors import MissingLibraryError, TargetError
from targets.evaluation_pack import EvaluationPack
from targets.interference import CpuSample, peak_memory_bytes, round_between
from targets.load_result import LoadResult, MachineState, read_logs
from targets.load_scenario import LoadSettings
from targets.measurement import machine_noise
from targets.signature import Arrays, Signature

__all__ = ["import_loadgen", "run_load"]

# Answers that LoadGen keeps in its accuracy log, by which a run can be checked afterwards.
LOGGED_ANSWERS = 64
WARM_UP_S = 2.0
MOST_BYTES = 512_000_000
"""Of the samples that are ready to run: floats take more than what a pack keeps of an image."""
PACE_S = 0.5
# LoadGen makes twice the queries of the expected pace, and 1.1 times the samples of an offline run;
# one that turns out faster than this would end too early and not be valid.
PACE_MARGIN = 1.25

_T = TypeVar("_T")
_Query = tuple[int, int]
"""LoadGen's id of a query's sample, and which sample of the pack it is."""


def import_loadgen() -> Any:
    """Import LoadGen's module, which has no types.

    Raises:
        MissingLibraryError: It is not installed.
    """
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise MissingLibraryError.for_extra(
            "mlcommons-loadgen", "loadgen", "a load scenario"
        ) from error
    return mlperf_loadgen


def run_load(
    session: Session,
    pack: EvaluationPack,
    settings: LoadSettings,
    logs: Path,
    *,
    threads: int,
) -> LoadResult:
    """Answer LoadGen's queries with a session, after a warm-up.

    The session is used by the calling thread only.

    Args:
        session: The system under test.
        pack: Samples that LoadGen draws from.
        settings: The scenario; a server needs its rate and its bound.
        logs: An existing folder for LoadGen's own logs.
        threads: CPU threads of the session, for the verdict on noise.

    Raises:
        MissingLibraryError: LoadGen is not installed.
        TargetError: LoadGen left no complete log, or an answer takes more than one run.
        Exception: Whatever the session raised while it answered.
    """
    if session.signature.context:
        raise TargetError(
            "a load scenario answers each query with one run, but writing a text takes several",
            given=f"context {', '.join(session.signature.context)}",
            fix="use compressor bench --write, or compressor evaluate",
        )
    waits = settings.rules.waits
    assert waits or (settings.qps is not None and settings.p99_ms is not None)
    loadgen = import_loadgen()
    samples = _Samples(pack, session.signature)
    system = _SystemUnderTest(loadgen, session, samples, session.batch_size(settings.max_batch))
    system.warm_up()
    ready = range(samples.num_ready)
    samples.load(ready)  # as in the run
    asked = _test_settings(loadgen, settings, system.sample_s(ready, settings.samples_per_query))
    samples.unload(ready)
    under_test = loadgen.ConstructSUT(system.answer_now if waits else system.put, _nothing)
    library = loadgen.ConstructQSL(len(pack), len(ready), samples.try_load, samples.unload)

    def start() -> None:
        loadgen.StartTestWithLogSettings(under_test, library, asked, _log_settings(loadgen, logs))

    before = CpuSample.take()
    try:
        if waits:
            start()
        else:
            system.serve_while(start)
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(under_test)
    after = CpuSample.take()
    if system.failure is not None:
        raise system.failure
    return read_logs(logs, settings, threads=threads, machine=_machine(before, after, threads))


class _Samples:
    """The samples of a pack; those that LoadGen draws from are ready to run alone."""

    def __init__(self, pack: EvaluationPack, signature: Signature) -> None:
        self._signature = signature
        self._pack = pack
        self.lengths = pack.lengths
        self._alone: dict[int, Arrays] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_ready(self) -> int:
        """How many LoadGen draws from: all, or as many as there is to be memory for."""
        longest = self._batch((int(np.argmax(self.lengths)),))
        size_bytes = sum(array.nbytes for array in longest.values())
        return int(np.clip(MOST_BYTES // max(size_bytes, 1), 1, len(self)))

    def load(self, indices: Sequence[int]) -> None:
        """Make samples ready."""
        self._alone |= {index: self._batch((index,)) for index in indices}

    def try_load(self, indices: Sequence[int]) -> None:
        """The same for LoadGen, in whose native code no error may end: its query will have it."""
        with contextlib.suppress(Exception):
            self.load(indices)

    def unload(self, indices: Sequence[int]) -> None:
        """Forget them."""
        for index in indices:
            self._alone.pop(index, None)

    def feeds(self, indices: Sequence[int]) -> Arrays:
        """Samples as one batch, padded to the longest of them."""
        ready = self._alone.get(indices[0]) if len(indices) == 1 else None
        return self._batch(indices) if ready is None else ready

    def _batch(self, indices: Sequence[int]) -> Arrays:
        return self._pack.feeds(indices, self._signature)


class _SystemUnderTest:
    """Answers queries in the order in which they arrive; an answer is a row of the first output."""

    def __init__(self, loadgen: Any, session: Session, samples: _Samples, max_batch: int) -> None:
        self._loadgen, self._session, self._samples = loadgen, session, samples
        self._max_batch = max_batch
        self._output = session.signature.outputs[0].name
        self._inbox: queue.SimpleQueue[_Query | None] = queue.SimpleQueue()
        self.failure: Exception | None = None
        """What the session raised. LoadGen cannot be stopped: later queries get empty answers."""

    def warm_up(self) -> None:
        """Run a sample of each length once, until all are done or the time is up."""
        end = time.perf_counter() + WARM_UP_S
        _, firsts = np.unique(self._samples.lengths, return_index=True)
        for index in firsts:
            self._run((int(index),))
            if time.perf_counter() > end:
                return

    def sample_s(self, ready: Sequence[int], samples_per_query: int) -> float:
        """Seconds that a sample takes, on average over some of them after a first part."""
        chosen = itertools.cycle(ready)
        size = max(samples_per_query, self._max_batch)
        marks: list[float] = []
        while len(marks) < 3 or marks[-1] - marks[0] < PACE_S:
            marks.append(time.perf_counter())
            for batch in _batches(tuple(itertools.islice(chosen, size)), self._max_batch):
                self._run(batch)
        measured = marks[len(marks) // 2 - 1 :]
        return (measured[-1] - measured[0]) / (len(measured) - 1) / size

    def answer_now(self, arrived: Sequence[Any]) -> None:
        """Answer a query before returning to LoadGen, which waits for it."""
        queries = [(int(each.id), int(each.index)) for each in arrived]
        for batch in _batches(queries, self._max_batch):
            self._answer(batch)

    def put(self, arrived: Sequence[Any]) -> None:
        """Take a query on LoadGen's own thread."""
        for each in arrived:
            self._inbox.put((int(each.id), int(each.index)))

    def serve_while(self, issue: Callable[[], None]) -> None:
        """Answer what ``issue`` puts, which runs on a thread of its own, until it returns."""

        def stop(_: Future[None]) -> None:
            self._inbox.put(None)

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(issue)
            done.add_done_callback(stop)
            while (first := self._inbox.get()) is not None:
                self._answer([first, *self._waiting(self._max_batch - 1)])
            done.result()

    def _waiting(self, most: int) -> Iterator[_Query]:
        for _ in range(most):
            try:
                query = self._inbox.get_nowait()
            except queue.Empty:
                return
            # LoadGen returns only when all are answered, so the end does not arrive with queries.
            assert query is not None
            yield query

    def _answer(self, queries: Sequence[_Query]) -> None:
        if self.failure is None:
            try:
                rows = np.ascontiguousarray(self._run([index for _, index in queries]))
            except Exception as error:  # it would end in LoadGen's native code, which is not ready
                self.failure = error
        if self.failure is not None:
            rows = np.empty((len(queries), 0), dtype=np.float32)
        begin, size = rows.ctypes.data, rows.nbytes // len(queries)
        response = self._loadgen.QuerySampleResponse
        self._loadgen.QuerySamplesComplete(
            [response(id, begin + row * size, size) for row, (id, _) in enumerate(queries)]
        )

    def _run(self, indices: Sequence[int]) -> NDArray[np.generic]:
        return self._session.run(self._samples.feeds(indices))[self._output]


def _batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def _test_settings(loadgen: Any, settings: LoadSettings, sample_s: float) -> Any:
    """LoadGen's settings.

    Args:
        loadgen: Its module.
        settings: What is wanted.
        sample_s: Seconds that a sample takes, from which LoadGen plans how many it will need.
    """
    asked = loadgen.TestSettings()
    asked.scenario = getattr(loadgen.TestScenario, settings.rules.loadgen)
    asked.mode = loadgen.TestMode.PerformanceOnly
    asked.min_duration_ms = round(settings.run_s * 1e3)
    asked.min_query_count = settings.rules.min_queries
    asked.accuracy_log_sampling_target = LOGGED_ANSWERS
    query_ns = sample_s * settings.samples_per_query / PACE_MARGIN * 1e9
    asked.single_stream_expected_latency_ns = max(round(query_ns), 1)
    asked.multi_stream_expected_latency_ns = max(round(query_ns), 1)
    asked.multi_stream_samples_per_query = settings.samples_per_query
    asked.offline_expected_qps = PACE_MARGIN / sample_s
    if settings.qps is not None and settings.p99_ms is not None:
        asked.server_target_qps = settings.qps
        asked.server_target_latency_ns = round(settings.p99_ms * 1e6)
        asked.server_target_latency_percentile = 0.99
        asked.server_max_async_queries = settings.max_outstanding
    for name, seed in settings.seeds.items():
        setattr(asked, name, seed)
    return asked


def _log_settings(loadgen: Any, folder: Path) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    log = loadgen.LogSettings()
    log.log_output = output
    log.enable_trace = False
    return log


def _machine(before: CpuSample, after: CpuSample, threads: int) -> MachineState:
    wall_ns = max(round((after.wall_s - before.wall_s) * 1e9), 1)
    each = round_between(before, after, (wall_ns,))
    return MachineState(
        cpus=each.cpu_per_wall,
        others_cpus=each.others_cpus,
        steal=each.steal,
        load_average=each.load_average,
        peak_memory_bytes=peak_memory_bytes(),
        noise=machine_noise((each,), threads=threads, num_cpus=len(usable_cpus())),
    )


def _nothing(*_: object) -> None:
    """What LoadGen tells here is of no use: every query is answered."""
