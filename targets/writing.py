"""How fast models read an input and write after it, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from targets.answers import WrittenAnswers
from targets.benchmark import alternate
from targets.bundle import Bundle
from targets.environment import usable_cpus
from targets.errors import BundleError, InputError, ToolkitError
from targets.feeds import bundle_feeds
from targets.measurement import (
    Interval,
    Noise,
    Round,
    Speedup,
    machine_noise,
    median_interval,
    paired_speedup,
)
from targets.worker_client import Worker
from targets.workloads import WritingSpec

__all__ = ["Writing", "check_writes", "continues_texts", "measure_writing", "writing_speedup"]

_NS_PER_MS = 1e6
PAUSE_S = 0.02
"""Between rounds, in which the threads of the last runtime stop spinning."""


class Writing(BaseModel):
    """Rounds in which a bundle read one text and wrote tokens after it, one by one.

    Each number is the median of its values in the rounds, with a 95% interval from order
    statistics; see `targets.measurement.median_interval`. What stands around the model, such as
    tokenization and the choice of the token, is not in them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(ge=1)
    num_cpus: int | None = Field(default=None, ge=1)
    """CPUs of the machine; None in what was measured before that was kept."""
    prompt_tokens: int = Field(ge=1)
    """Length of what is read, in the unit of the inputs, such as tokens."""
    unit: str = Field(default="tokens", exclude_if=lambda unit: unit == "tokens")
    """Of that length."""
    num_tokens: int = Field(ge=2)
    """Written, the one that comes with the reading included."""
    rounds: tuple[Round, ...] = Field(min_length=1)
    """The first run of each reads the prompt, the others write a token each."""

    @field_validator("rounds")
    @classmethod
    def _check_rounds(cls, rounds: tuple[Round, ...]) -> tuple[Round, ...]:
        if any(len(each.run_ns) < 2 for each in rounds):
            raise ValueError("in each round a prompt is read, and a token written after it")
        return rounds

    @property
    def noise(self) -> Noise:
        """What else the machine did meanwhile."""
        num_cpus = self.num_cpus or self.threads
        return machine_noise(self.rounds, threads=self.threads, num_cpus=num_cpus)

    @property
    def first_token_ms(self) -> float:
        """Time to the first token: that of the reading, in milliseconds."""
        return float(np.median(self._reading_ms))

    @property
    def first_token_interval(self) -> Interval:
        """Of :attr:`first_token_ms`."""
        return median_interval(self._reading_ms)

    @property
    def read_per_s(self) -> float:
        """Tokens of the prompt a second (prefill)."""
        return 1e3 * self.prompt_tokens / self.first_token_ms

    @property
    def read_interval(self) -> Interval:
        """Of :attr:`read_per_s`."""
        return _rates(self.prompt_tokens, self.first_token_interval)

    @property
    def written_per_s(self) -> float:
        """Tokens a second after the first (decode)."""
        return 1e3 / float(np.median(self.token_ms))

    @property
    def written_interval(self) -> Interval:
        """Of :attr:`written_per_s`."""
        return _rates(1, median_interval(self.token_ms))

    @property
    def token_ms(self) -> list[float]:
        """Mean time of a token after the first in each round, in milliseconds.

        The mean, for later ones have more to attend to.
        """
        return [float(np.mean(each.run_ns[1:])) / _NS_PER_MS for each in self.rounds]

    @property
    def _reading_ms(self) -> list[float]:
        return [each.run_ns[0] / _NS_PER_MS for each in self.rounds]


def writing_speedup(baseline: Writing, candidate: Writing) -> Speedup:
    """How many times as fast one writes as another, of the tokens after the first.

    Raises:
        ValueError: The two were not measured together.
    """
    return paired_speedup(baseline.token_ms, candidate.token_ms)


def continues_texts(bundle: Bundle) -> bool:
    """Whether a bundle is of a language model that keeps a state from token to token."""
    signature = bundle.manifest.signature
    return bool(signature.state) and not signature.context


def check_writes(bundle: Bundle, *, prompt_tokens: int, num_tokens: int) -> None:
    """Check that a bundle can write so much after so much, before any work.

    Raises:
        BundleError: It is none of a model that writes and keeps a state.
        InputError: That is longer than the longest text it was built for.
    """
    answers = bundle.manifest.answers
    if isinstance(answers, WrittenAnswers):
        if num_tokens > answers.longest:
            raise InputError(
                "the text would become longer than the model can write",
                where=bundle.source,
                given=f"{num_tokens} tokens",
                fix=f"use at most {answers.longest}",
            )
        return
    if not bundle.manifest.signature.state:
        raise BundleError(
            "the bundle does not write texts: its model keeps nothing from token to token",
            where=bundle.source,
            given=f"task {bundle.manifest.task}",
            fix="build it from a language model, with cache: true in the pass export",
        )
    longest = bundle.manifest.preprocessing.longest
    if prompt_tokens + num_tokens > longest:
        raise InputError(
            "the text would become longer than the bundle was built for",
            where=bundle.source,
            given=f"{prompt_tokens} tokens read and {num_tokens} written",
            fix=f"use at most {longest} in all",
        )


def measure_writing(
    bundles: Mapping[str, Bundle],
    *,
    threads: int,
    prompt_tokens: int,
    num_tokens: int,
    num_rounds: int,
    on_progress: Callable[[int, int, str], None] = lambda done, total, line: None,
    on_failure: Callable[[str, ToolkitError], None] | None = None,
    timeout_s: float = 600.0,
) -> dict[str, Writing]:
    """Let every bundle read and write in a process of its own, in rounds that alternate.

    Args:
        bundles: Name -> bundle.
        threads: CPU threads of each.
        prompt_tokens: Tokens that are read, drawn at random.
        num_tokens: Tokens that are written, the first one included; at least 2.
        num_rounds: Texts that each writes.
        on_progress: Called with the steps done, all steps, and a line on what is being done.
        on_failure: Called with a bundle whose runtime failed and the error; it is left out, and
            the others go on. None raises the error.
        timeout_s: Longest wait for a bundle to load or a round to end, in seconds.

    Raises:
        BundleError: One of them writes no texts.
        InputError: One of them takes no texts that long.
        TargetError: Its runtime failed.
    """

    def fail(name: str, error: ToolkitError) -> None:
        if on_failure is None:
            raise error
        on_failure(name, error)
        del rounds[name]
        workers[name].close(kindly=False)  # beside the others nothing of it goes on

    for bundle in bundles.values():
        check_writes(bundle, prompt_tokens=prompt_tokens, num_tokens=num_tokens)
    rounds: dict[str, list[Round]] = {name: [] for name in bundles}
    total, done = num_rounds * len(bundles), 0
    with ExitStack() as stack:
        lanes = []
        workers: dict[str, Worker] = {}
        for name, bundle in bundles.items():
            worker = workers[name] = stack.enter_context(
                Worker(threads=threads, timeout_s=timeout_s)
            )
            on_progress(done, total, f"warming up {name}")
            try:
                worker.open(bundle.folder.resolve())
                feeds = bundle_feeds(bundle, batch_size=1, sequence_length=prompt_tokens)
                workload = WritingSpec(prompt=feeds, num_tokens=num_tokens)
                worker.round(workload, num_runs=num_tokens, settle_runs=0)
            except ToolkitError as error:
                fail(name, error)
                continue
            lanes.append((name, worker, workload))
        for index in range(num_rounds):
            going = [lane for lane in lanes if lane[0] in rounds]
            for name, worker, workload in alternate(going, index):
                on_progress(done, total, f"{name} writes, round {index + 1}")
                time.sleep(PAUSE_S)
                try:
                    timed = worker.round(workload, num_runs=num_tokens, settle_runs=1)
                    rounds[name].append(timed.round)
                except ToolkitError as error:
                    fail(name, error)
                done += 1
    return {
        name: Writing(
            threads=threads,
            num_cpus=len(usable_cpus()),
            prompt_tokens=prompt_tokens,
            unit=bundles[name].manifest.preprocessing.unit or "tokens",
            num_tokens=num_tokens,
            rounds=tuple(found),
        )
        for name, found in rounds.items()
    }


def _rates(tokens: int, times_ms: Interval) -> Interval:
    return Interval(1e3 * tokens / times_ms.high, 1e3 * tokens / times_ms.low)
