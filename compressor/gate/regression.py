"""Compare a report with that of the last release, with the noise of both taken into account."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from compressor.errors import ComparisonError
from compressor.evaluation import paired_perplexity
from compressor.gate.limits import target_label, targets_of
from compressor.report.schema import Check, Report, Row
from compressor.tasks import Task, get_task
from targets.measurement import Measurement, Noise, Round

__all__ = [
    "DIFFERENCES",
    "Answers",
    "ReleaseComparison",
    "Timed",
    "Tolerance",
    "compare_releases",
    "latency_ratio",
]

Answers = Mapping[str, NDArray[np.generic]]
Difference = Literal["machine", "data", "shape", "settings", "model"]

DIFFERENCES: Mapping[Difference, str] = {
    "machine": "the machine",
    "data": "the data",
    "shape": "the shape whose latency counts",
    "settings": "the threads of the benchmark",
    "model": "the untouched model",
}
"""What has to be equal in both reports, unless it is said that it may differ."""

ASPECTS = ("accuracy", "latency", "size", "memory")
"""What is compared of two bundles; of language models the perplexity and the writing too."""
PERPLEXITY = "perplexity"
WRITING = "writing"

RESAMPLES = 2000


class Tolerance(BaseModel):
    """How much worse than the last release is still as good."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    accuracy_points: float = Field(default=0.0, ge=0)
    """A loss counts where the lower end of its 95% interval is above this."""
    latency: float = Field(default=0.03, ge=0)
    """A slow-down, as a share, counts where the lower end of its 95% interval is above this; of
    language models also one in writing."""
    perplexity: float = Field(default=0.0, ge=0)
    """A rise, as a share, counts where the lower end of its 95% interval is above this."""
    size: float = Field(default=0.01, ge=0)
    """A growth of the bundle, as a share, above which it counts."""
    memory: float = Field(default=0.10, ge=0)
    """The same of the peak memory."""


class ReleaseComparison(NamedTuple):
    """What a new release is beside the last one."""

    checks: tuple[Check, ...]
    """One for each target and aspect of `ASPECTS`, ``perplexity`` and ``writing`` of language
    models, and ``shipped`` where a target ships nothing any more."""
    notes: tuple[str, ...]
    """What was not compared, or in another way than usual, and why."""


def compare_releases(
    now: Report,
    before: Report,
    *,
    answers_now: Answers | None = None,
    answers_before: Answers | None = None,
    tolerance: Tolerance = Tolerance(),  # noqa: B008  (frozen)
    allow: Collection[str] = (),
) -> ReleaseComparison:
    """Compare what each target ships now with what it shipped in the last release.

    Where the last release shipped nothing on a target, what came nearest there counts.

    Args:
        now: The new report.
        before: The report of the last release.
        answers_now: What the rows of the new report answered, see `compressor.report.files`.
        answers_before: The same of the other one. Where both are there and the data is the same,
            the answers are compared example by example; else the intervals of both accuracies.
        tolerance: What is still as good.
        allow: Of `DIFFERENCES`, what may differ.

    Raises:
        ComparisonError: The reports differ in what has to be equal; names each difference.
    """
    _check_comparable(now, before, allow)
    answers_now, answers_before = answers_now or {}, answers_before or {}
    checks: list[Check] = []
    notes: list[str] = []
    ships, chosen = _chosen(now, shipped=True), _chosen(before)
    for label in dict.fromkeys([*chosen, *ships]):
        new, old = ships.get(label), chosen.get(label)
        if old is None:
            notes.append(f"{label}: not compared: nothing was measured there for the last release")
            continue
        if new is None and old.unmet:
            notes.append(f"{label}: not compared: nothing ships there, and nothing did before")
            continue
        if new is None:
            checks.append(_gone(label, old, _chosen(now).get(label)))
            continue
        if old.unmet:
            notes.append(
                f"{label}: the last release shipped nothing there; compared with "
                f"{old.variant}, which came nearest to its budget"
            )
        found: list[Check] = []
        answered = _Answered.of(answers_now, new)
        answered_before = _Answered.of(answers_before, old)
        unpaired = _why_unpaired(now, before, answered, answered_before)
        if answered is not None and answered_before is not None and unpaired is None:
            task = get_task(now.recipe.get("task", "text-classification"))
            found += _accuracy(task, label, new.measure, answered, answered_before, tolerance)
            found += _perplexity(label, answered, answered_before, tolerance)
        else:
            found += _accuracy_unpaired(label, new, old, tolerance)
            notes += [f"{label}: {unpaired}"] if found else []
        found += _latency(label, new, old, now, before, tolerance)
        found += _writing(label, new, old, now, before, tolerance)
        notes += _not_compared_devices(label, new, old, now, before)
        found += _growth(label, new, old, now.primary_shape, before.primary_shape, tolerance)
        aspects: tuple[str, ...] = ASPECTS
        if _has_perplexity(new) and unpaired is None:
            aspects = (*ASPECTS, PERPLEXITY)
        elif _has_perplexity(new):
            notes.append(f"{label}: perplexity is not compared: that is done token by token")
        if _writes_alike(new, old):
            aspects = (*aspects, WRITING)
        elif new.writing is not None and old.writing is not None:
            notes.append(
                f"{label}: writing is not compared: it was of other numbers of tokens then"
            )
        unknown = [name for name in aspects if name not in {check.limit for check in found}]
        if unknown:
            notes.append(
                f"{label}: not compared, as it is not in both reports: {', '.join(unknown)}"
            )
        checks += found
    measured = _chosen(now)
    for label in dict.fromkeys((*targets_of(before.rows), *targets_of(now.rows))):
        if label in chosen or label in ships:
            continue
        when = "for the last release" if label in measured else "now or for the last release"
        notes.append(f"{label}: not compared: nothing was measured there {when}")
    return ReleaseComparison(tuple(checks), tuple(notes))


class Timed(Protocol):
    """Times that were taken in rounds: a `Measurement`, or the tokens of a `Writing`."""

    @property
    def rounds(self) -> Sequence[Round]:
        """With the time of each run."""

    @property
    def round_medians_ms(self) -> Sequence[float]:
        """Of the runs of each round, in milliseconds."""


def latency_ratio(
    now: Timed,
    before: Timed,
    *,
    base_now: Timed | None = None,
    base_before: Timed | None = None,
) -> tuple[float, float, float]:
    """How many times as long a run takes now: estimate and 95% interval.

    The rounds, and in each round the runs, are drawn anew 2000 times (a bootstrap in two stages:
    Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). With the same
    untouched model measured in both runs, the ratio is divided by that of the untouched model, so
    that a machine that was slower as a whole cancels out; the rounds of the two stay paired.

    Args:
        now: The bundle in the new run.
        before: The bundle in the old run.
        base_now: The untouched model in the new run.
        base_before: The untouched model in the old run.
    """
    generator = np.random.default_rng(0)

    def medians(own: Timed, base: Timed | None) -> NDArray[np.float64]:
        count = len(own.rounds)
        drawn = generator.integers(0, count, size=(RESAMPLES, count))
        found = _round_medians(own, generator)[np.arange(RESAMPLES)[:, None], drawn]
        if base is None:
            return np.asarray(np.median(found, axis=1))
        other = _round_medians(base, generator)[np.arange(RESAMPLES)[:, None], drawn]
        return np.asarray(np.median(found / other, axis=1))

    def estimate(own: Timed, base: Timed | None) -> float:
        found = np.asarray(own.round_medians_ms)
        return float(
            np.median(found if base is None else found / np.asarray(base.round_medians_ms))
        )

    both = base_now is not None and base_before is not None
    pairs = ((now, base_now if both else None), (before, base_before if both else None))
    drawn_now, drawn_before = (medians(*pair) for pair in pairs)
    first, second = (estimate(*pair) for pair in pairs)
    low, high = np.percentile(drawn_now / drawn_before, [2.5, 97.5])
    return first / second, float(low), float(high)


def _round_medians(measured: Timed, generator: np.random.Generator) -> NDArray[np.float64]:
    """Median of each round, its runs drawn anew.  # (resamples, rounds)"""
    columns = []
    for each in measured.rounds:
        runs = np.asarray(each.run_ns, dtype=np.float64)[:500]
        drawn = generator.integers(0, len(runs), size=(RESAMPLES, len(runs)))
        columns.append(np.median(runs[drawn], axis=1))
    return np.stack(columns, axis=1)


def _check_comparable(now: Report, before: Report, allow: Collection[str]) -> None:
    found: dict[Difference, tuple[object, object]] = {
        "machine": (now.environment.machine, before.environment.machine),
        "data": (now.data.get("sha256"), before.data.get("sha256")),
        "shape": (now.primary_shape, before.primary_shape),
        "settings": (_threads(now), _threads(before)),
        "model": (now.model.sha256, before.model.sha256),
    }
    different = {
        name: pair for name, pair in found.items() if pair[0] != pair[1] and name not in allow
    }
    if different:
        names = ", ".join(DIFFERENCES[name] for name in different)
        given = "; ".join(
            f"{name}: {_short(new)}, in the last release {_short(old)}"
            for name, (new, old) in different.items()
        )
        raise ComparisonError(
            f"the reports cannot be compared: they differ in {names}",
            where=f"{now.name} of {now.created}, {before.name} of {before.created}",
            given=given,
            fix="run both in the same way, or allow what may differ: "
            + " ".join(f"--allow {name}" for name in different),
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _threads(report: Report) -> tuple[int, ...]:
    return tuple(sorted({each.threads for row in report.rows for each in row.latency.values()}))


def _chosen(report: Report, *, shipped: bool = False) -> dict[str, Row]:
    """Target -> what was chosen for it; with ``shipped``, only what met the budget."""
    return {
        target_label(row): row for row in report.rows if row.chosen and not (shipped and row.unmet)
    }


def _why_unpaired(
    now: Report,
    before: Report,
    answers_now: _Answered | None,
    answers_before: _Answered | None,
) -> str | None:
    """Why the answers of two rows cannot be compared example by example; None where they can."""
    reason = "the data differs"
    if now.data.get("sha256") == before.data.get("sha256"):
        places = {"the report": answers_now, "that of the last release": answers_before}
        absent = [place for place, answers in places.items() if answers is None]
        if answers_now is not None and answers_before is not None:
            if now.data.get("labels") == before.data.get("labels") and answers_now.judges_as(
                answers_before
            ):
                return None
            reason = "their answers cover different examples, or different classes"
        else:
            reason = f"no predictions.safetensors with answers lies beside {' and '.join(absent)}"
    return (
        "accuracy is compared by the intervals of both, which are wider than one of paired "
        f"answers: {reason}"
    )


def _gone(label: str, old: Row, nearest: Row | None) -> Check:
    """A target that ships nothing any more; in doubt where what is missed there all is."""
    checks = () if nearest is None else nearest.checks
    return Check(
        limit="shipped",
        subject=label,
        wanted=1,
        found=0,
        met=False,
        shortfall=1,
        text=f"{label} ships nothing; the last release shipped {old.variant}",
        noisy=bool(checks) and all(check.met or check.noisy for check in checks),
    )


def _accuracy(
    task: Task,
    label: str,
    measure: str,
    now: _Answered,
    before: _Answered,
    tolerance: Tolerance,
) -> Iterator[Check]:
    """The answers of both, example by example."""
    rows = None if now.rows is None else np.asarray(now.rows, dtype=np.int64)
    drop, low, high = task.drop(before.answers, now.answers, now.labels, rows)
    yield _drop(label, measure, drop, low, high, tolerance)


def _has_perplexity(row: Row) -> bool:
    return row.test_comparison is not None and row.test_comparison.perplexity is not None


def _perplexity(
    label: str, now: _Answered, before: _Answered, tolerance: Tolerance
) -> Iterator[Check]:
    """How likely both found the same tokens."""
    if now.rows is None or now.losses is None or before.losses is None:
        return
    rows = np.asarray(now.rows, dtype=np.int64)
    first, second = (np.asarray(each.losses, dtype=np.float64) for each in (before, now))
    found = paired_perplexity(first, second, rows)
    low = found.rise_low / 100
    yield Check(
        limit=PERPLEXITY,
        subject=label,
        wanted=tolerance.perplexity,
        found=found.rise / 100,
        met=low <= tolerance.perplexity,
        shortfall=max(0.0, low - tolerance.perplexity),
        text=f"{label}: {found.rise:+.1f}% perplexity against the last release "
        f"({found.rise_low:+.1f} to {found.rise_high:+.1f})",
    )


class _Answered(NamedTuple):
    """What a row of a report answered, and to what."""

    answers: NDArray[np.generic]
    rows: NDArray[np.generic] | None
    """Which row each answer belongs to; reports of older versions have one answer a row."""
    labels: NDArray[np.generic] | None
    losses: NDArray[np.generic] | None
    """How unlikely it found each token, in nats; of language models."""

    @classmethod
    def of(cls, answers: Answers, row: Row) -> _Answered | None:
        """None where they are not known."""
        if row.key not in answers:
            return None
        rows, labels = (
            answers.get(f"{row.key}.{name}", answers.get(name)) for name in ("rows", "labels")
        )
        return cls(answers[row.key], rows, labels, answers.get(f"{row.key}.losses"))

    def judges_as(self, other: _Answered) -> bool:
        """Whether both answer the same."""
        pairs = ((self.rows, other.rows), (self.labels, other.labels))
        return len(self.answers) == len(other.answers) and all(
            one is None or another is None or np.array_equal(one, another) for one, another in pairs
        )


def _accuracy_unpaired(label: str, new: Row, old: Row, tolerance: Tolerance) -> Iterator[Check]:
    if new.test is None or old.test is None:
        return
    drop = old.test.value - new.test.value
    # Newcombe, 1998, method 10: from the Wilson intervals of both.
    low = drop - np.hypot(old.test.value - old.test.low, new.test.high - new.test.value)
    high = drop + np.hypot(old.test.high - old.test.value, new.test.value - new.test.low)
    yield _drop(label, new.measure, 100 * drop, 100 * float(low), 100 * float(high), tolerance)


def _drop(
    label: str, measure: str, drop: float, low: float, high: float, tolerance: Tolerance
) -> Check:
    wanted = tolerance.accuracy_points
    return Check(
        limit="accuracy",
        subject=label,
        wanted=wanted,
        found=drop,
        met=low <= wanted,
        shortfall=max(0.0, low - wanted),
        text=f"{label}: {0.0 - drop:+.1f} points of {measure} against the last release "
        f"({0.0 - high:+.1f} to {0.0 - low:+.1f})",
    )


def _latency(
    label: str, new: Row, old: Row, now: Report, before: Report, tolerance: Tolerance
) -> Iterator[Check]:
    """On this machine, and on each of the remote devices that both runs measured on."""
    same_model = now.model.sha256 == before.model.sha256
    for device in (None, *new.devices):
        measured, earlier = _time(now, new, device), _time(before, old, device)
        if measured is not None and earlier is not None:
            subject = label if device is None else f"{label} on {device}"
            bases: tuple[Measurement | None, Measurement | None] = (None, None)
            if same_model:
                bases = (_baseline(now, new, device), _baseline(before, old, device))
            timed = (measured, earlier, *bases)
            yield _slowdown(
                "latency",
                f"{subject}: ",
                (measured, earlier),
                bases,
                tolerance,
                subject=subject,
                told=f"{earlier.median_ms:.3f} ms then, {measured.median_ms:.3f} ms now",
                noises=[each.noise for each in timed if each is not None],
                latencies=(measured, earlier),
            )


class _Tokens(NamedTuple):
    """What a language model took for each token after the first."""

    rounds: tuple[Round, ...]
    round_medians_ms: tuple[float, ...]

    @classmethod
    def of(cls, row: Row | None) -> _Tokens | None:
        """None where it wrote nothing."""
        if row is None or row.writing is None:
            return None
        # The mean of a round, as tokens/s are: later tokens have more to attend to.
        times = tuple(row.writing.token_ms)
        rounds = [
            each.model_copy(update={"run_ns": (round(1e6 * ms),)})
            for each, ms in zip(row.writing.rounds, times, strict=True)
        ]
        return cls(tuple(rounds), times)


def _writes_alike(new: Row, old: Row) -> bool:
    """Whether both wrote as many tokens after as long a prompt, or one of them none."""
    if new.writing is None or old.writing is None:
        return (new.writing or old.writing) is not None
    return all(
        getattr(new.writing, name) == getattr(old.writing, name)
        for name in ("prompt_tokens", "num_tokens")
    )


def _writing(
    label: str, new: Row, old: Row, now: Report, before: Report, tolerance: Tolerance
) -> Iterator[Check]:
    """Time of a token after the first, beside that of the untouched model if known."""
    written, earlier = _Tokens.of(new), _Tokens.of(old)
    if written is None or earlier is None or new.writing is None or old.writing is None:
        return
    if not _writes_alike(new, old):
        return
    untouched: tuple[Row | None, Row | None] = (None, None)
    if now.model.sha256 == before.model.sha256:
        untouched = (_untouched(now, new), _untouched(before, old))
    wrote = [each.writing for each in (new, old, *untouched) if each is not None]
    yield _slowdown(
        WRITING,
        f"{label}: a token takes ",
        (written, earlier),
        (_Tokens.of(untouched[0]), _Tokens.of(untouched[1])),
        tolerance,
        subject=label,
        told=f"{old.writing.written_per_s:.3g} tokens/s then, {new.writing.written_per_s:.3g} now",
        noises=[each.noise for each in wrote if each is not None],
        latencies=(_time(now, new, None), _time(before, old, None)),
    )


def _not_compared_devices(
    label: str, new: Row, old: Row, now: Report, before: Report
) -> Iterator[str]:
    """A note on each remote device that only one of the runs measured on."""
    for device in dict.fromkeys((*new.devices, *old.devices)):
        if _time(now, new, device) is None or _time(before, old, device) is None:
            yield f"{label} on {device}: not compared, as its latency is not in both reports"


def _slowdown(
    limit: str,
    opening: str,
    times: tuple[Timed, Timed],
    bases: tuple[Timed | None, Timed | None],
    tolerance: Tolerance,
    *,
    subject: str,
    told: str,
    noises: Iterable[Noise],
    latencies: tuple[Measurement | None, Measurement | None],
) -> Check:
    """What something takes now against the last release, beside the untouched model if known.

    Args:
        limit: What is compared.
        opening: Of the sentence that goes on with the ratio.
        times: Now, and in the last release.
        bases: Those of the untouched model in the same runs.
        tolerance: What is still as good.
        subject: The target, with the device.
        told: Both figures, in words.
        noises: Of all that was timed.
        latencies: What tells how fast the machine was in both runs.
    """
    has_base = None not in bases
    ratio, low, high = latency_ratio(*times, base_now=bases[0], base_before=bases[1])
    beside = ", beside the untouched model in each run" if has_base else ""
    noisy = any(each.verdict == "noisy" for each in noises)
    met = low - 1 <= tolerance.latency
    slowed = latencies[1] if met else latencies[0]
    # Which may be all of the difference: the untouched model was slowed as well, unless threads
    # were woken slowly, from which small models suffer most.
    if slowed is not None and (slowed.wakes_slowly or (slowed.is_slowed and not has_base)):
        noisy = True
    return Check(
        limit=limit,
        subject=subject,
        wanted=tolerance.latency,
        found=ratio - 1,
        met=met,
        shortfall=max(0.0, low - 1 - tolerance.latency),
        text=f"{opening}{ratio:.3f}x the time of the last release ({low:.3f} to {high:.3f})"
        f"{beside}; {told}",
        noisy=noisy,
    )


def _time(report: Report, row: Row, device: str | None) -> Measurement | None:
    """The latency of a row on a device; None for this machine."""
    if device is None:
        return row.latency.get(report.primary_shape)
    found = row.devices.get(device)
    return None if found is None else found.latency.get(report.primary_shape)


def _baseline(report: Report, row: Row, device: str | None) -> Measurement | None:
    """The latency of the untouched fp32 model on the target of a row."""
    found = _untouched(report, row)
    return None if found is None else _time(report, found, device)


def _untouched(report: Report, row: Row) -> Row | None:
    """The untouched fp32 model on the target of a row."""
    for each in report.rows:
        if (
            each.kind != "candidate"
            and each.precision == "fp32"
            and target_label(each) == target_label(row)
        ):
            return each
    return None


def _growth(
    label: str, new: Row, old: Row, shape_now: str, shape_before: str, tolerance: Tolerance
) -> Iterator[Check]:
    memory = (
        each.peak_memory_bytes if each is not None else None
        for each in (new.latency.get(shape_now), old.latency.get(shape_before))
    )
    for limit, what, (value, was), wanted in (
        ("size", "size", (new.size_bytes, old.size_bytes), tolerance.size),
        ("memory", "peak memory", tuple(memory), tolerance.memory),
    ):
        if value and was:
            growth = value / was - 1
            yield Check(
                limit=limit,
                subject=label,
                wanted=wanted,
                found=growth,
                met=growth <= wanted,
                shortfall=max(0.0, growth - wanted),
                text=f"{label}: {what} {value / 1e6:.2f} MB, {growth:+.1%} against the last "
                f"release ({was / 1e6:.2f} MB)",
            )
