"""All that one call of the bench measures, as one value with a versioned form in JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from targets.benchmark import BenchmarkCase, BenchmarkSettings, CaseResult, Shape, benchmark
from targets.bundle import Bundle
from targets.cold_start import ColdStart, cold_starts
from targets.environment import Environment
from targets.errors import ToolkitError
from targets.protocol import ErrorRecord
from targets.scratch import ScratchFolder
from targets.sustained import Sustained, sustained_run
from targets.workloads import bundle_texts
from targets.writing import Writing, check_writes, measure_writing

__all__ = ["BenchEntry", "BenchReport", "Sweep", "bench"]

BENCH_SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Sweep(_Frozen):
    """What to measure of each bundle: every combination."""

    threads: tuple[int, ...] = (1,)
    """CPU threads of the runtime."""
    batch_sizes: tuple[int, ...] = (1, 4)
    """Texts a run."""
    sequence_lengths: tuple[int, ...] = (128,)
    """Tokens of each text."""
    real_texts: bool = False
    """Whether to run real texts as well, with and without their tokenization."""
    num_cold_starts: int = 0
    """Starts of a process to time to their first answer."""
    num_written: int = Field(default=0, ge=0, exclude_if=lambda count: not count)
    """Tokens that language models write after a text of each length; 0 leaves it out."""
    sustained_s: float = 0.0
    """Length of a run without a pause, in seconds, at the first of each of the above."""

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes to measure: synthetic ones first."""
        fixed = [
            Shape(size, length) for length in self.sequence_lengths for size in self.batch_sizes
        ]
        real = [
            Shape(size, None, tokenization)
            for size in (self.batch_sizes if self.real_texts else ())
            for tokenization in (False, True)
        ]
        return (*fixed, *real)


class BenchEntry(_Frozen):
    """One bundle with one number of threads."""

    bundle: str
    """As the caller named it."""
    identity: str
    """See `targets.bundle.Bundle.identity`."""
    threads: int
    result: CaseResult
    cold_start: ColdStart | None = None
    sustained: Sustained | None = None
    writing: tuple[Writing, ...] = Field(default=(), exclude_if=lambda found: not found)
    """One for each length of the prompt."""
    failures: Mapping[str, ErrorRecord] = Field(default={}, exclude_if=lambda found: not found)
    """What failed beside the latencies, such as ``writing``, and why."""


class BenchReport(_Frozen):
    """What was measured, where."""

    schema_version: int = BENCH_SCHEMA_VERSION
    created: str
    """Time of the end, in UTC."""
    environment: Environment
    settings: BenchmarkSettings
    sweep: Sweep
    entries: tuple[BenchEntry, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing failed."""
        return not any(entry.result.failures or entry.failures for entry in self.entries)


def bench(
    bundles: Mapping[str, Bundle],
    sweep: Sweep,
    settings: BenchmarkSettings,
    *,
    texts: Sequence[str] | None = None,
    on_progress: Callable[[float, str], None] = lambda fraction, line: None,
) -> BenchReport:
    """Measure bundles side by side.

    Args:
        bundles: Name -> bundle.
        sweep: What to measure.
        settings: How; its threads, batch sizes and sequence length are those of the sweep.
        texts: Real texts; by default each bundle's own test data.
        on_progress: Called with (fraction done, one line).

    Raises:
        BundleError: Real texts are asked for, and a bundle carries none; or writing, and it is
            none of a language model that keeps a state.
        InputError: What is to be written would become too long.
    """
    if sweep.num_written:
        for bundle in bundles.values():
            longest = max(sweep.sequence_lengths)
            check_writes(bundle, prompt_tokens=longest, num_tokens=sweep.num_written)
    with ScratchFolder("bench") as scratch:
        cases = {
            (name, threads): BenchmarkCase(
                bundle.folder,
                threads=threads,
                texts=_write_texts(bundle, texts, scratch.path) if sweep.real_texts else None,
            )
            for name, bundle in bundles.items()
            for threads in sweep.threads
        }
        results = benchmark(
            {f"{name}, {threads} threads": case for (name, threads), case in cases.items()},
            settings,
            lambda done, total, line: on_progress(done / total, line),
            shapes=sweep.shapes,
        )
    written: dict[tuple[str, int], list[Writing]] = {}
    failures: dict[tuple[str, int], dict[str, ErrorRecord]] = {case: {} for case in cases}
    if sweep.num_written:
        failed = {
            name for (name, _), each in zip(cases, results.values(), strict=True) if each.failures
        }
        able = {name: bundle for name, bundle in bundles.items() if name not in failed}
        written = _written(able, sweep, settings, failures, on_progress)
    entries = []
    for (name, threads), result in zip(cases, results.values(), strict=True):
        bundle = bundles[name]
        entry = BenchEntry(
            bundle=name,
            identity=bundle.identity,
            threads=threads,
            result=result,
            writing=tuple(written.get((name, threads), ())),
        )
        own = failures[name, threads]
        if not result.failures:
            entry = entry.model_copy(update=_alone(bundle, threads, sweep, own, on_progress))
        entries.append(entry.model_copy(update={"failures": own}))
    return BenchReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=Environment.here(),
        settings=settings,
        sweep=sweep,
        entries=tuple(entries),
    )


def _written(
    bundles: Mapping[str, Bundle],
    sweep: Sweep,
    settings: BenchmarkSettings,
    failures: Mapping[tuple[str, int], dict[str, ErrorRecord]],
    on_progress: Callable[[float, str], None],
) -> dict[tuple[str, int], list[Writing]]:
    """What each bundle wrote with each number of threads, by the length of the prompt."""
    found: dict[tuple[str, int], list[Writing]] = {}

    def fail(name: str, error: ToolkitError, threads: int, length: int) -> None:
        failures[name, threads][f"writing after {length}"] = ErrorRecord.of(error)
        failed.add(name)

    failed: set[str] = set()

    for threads in sweep.threads:
        for length in sweep.sequence_lengths:
            measured = measure_writing(
                {name: bundle for name, bundle in bundles.items() if name not in failed},
                threads=threads,
                prompt_tokens=length,
                num_tokens=sweep.num_written,
                num_rounds=settings.rounds,
                on_progress=lambda done, total, line: on_progress(done / total, line),
                on_failure=functools.partial(fail, threads=threads, length=length),
                timeout_s=settings.timeout_s,
            )
            for name, writing in measured.items():
                found.setdefault((name, threads), []).append(writing)
    return found


def _alone(
    bundle: Bundle,
    threads: int,
    sweep: Sweep,
    failures: dict[str, ErrorRecord],
    on_progress: Callable[[float, str], None],
) -> dict[str, ColdStart | Sustained]:
    """What is measured of one bundle while no other runs."""
    found: dict[str, ColdStart | Sustained] = {}
    if sweep.num_cold_starts:
        with _noting(failures, "cold start"):
            found["cold_start"] = cold_starts(
                bundle.folder,
                threads=threads,
                num_starts=sweep.num_cold_starts,
                sequence_length=sweep.sequence_lengths[0],
                on_progress=lambda done, total: on_progress(done / total, "cold starts"),
            )
    if sweep.sustained_s:
        with _noting(failures, "sustained run"):
            found["sustained"] = sustained_run(
                bundle.folder,
                duration_s=sweep.sustained_s,
                threads=threads,
                batch_size=sweep.batch_sizes[0],
                sequence_length=sweep.sequence_lengths[0],
                on_progress=on_progress,
            )
    return found


@contextmanager
def _noting(failures: dict[str, ErrorRecord], what: str) -> Iterator[None]:
    """Keep why something failed: what was measured before stays."""
    try:
        yield
    except ToolkitError as error:
        failures[what] = ErrorRecord.of(error)


def _write_texts(bundle: Bundle, texts: Sequence[str] | None, folder: Path) -> Path:
    path = folder / f"{bundle.identity[:16]}.json"
    path.write_text(json.dumps(list(texts or bundle_texts(bundle))), encoding="utf-8")
    return path
