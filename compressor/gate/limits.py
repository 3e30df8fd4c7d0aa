"""Compare a row with each limit of the budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.gate.budget import Budget, DeviceLimits, Limits
from compressor.passes import Goal
from compressor.report.schema import Change, Check, Comparison, Group, Row
from targets.measurement import Measurement, Speedup

__all__ = ["GOALS", "NoisyBases", "check_row", "target_label", "targets_of"]

NoisyBases = Mapping[str | None, Collection[str]]
"""Device, None for this machine -> limits on a ratio of which what it divides was measured while
the machine was noisy."""

_LEAST_DROP = 1.0
"""Points that a miss is measured by where the limit itself is near 0."""


@dataclass(frozen=True)
class _Facts:
    """What the limits of one row look at."""

    row: Row
    comparison: Comparison | None
    measured: Measurement | None
    speedup: Speedup | None
    limits: DeviceLimits
    noisy_bases: Collection[str] = ()
    """Limits on a ratio of which what it divides was measured while the machine was noisy."""

    @property
    def upper(self) -> bool:
        return getattr(self.limits, "drop_at", None) == "upper"

    @property
    def at(self) -> str:
        """Which drop it is, for the end of a sentence."""
        return " at the upper end of the interval" if self.upper else ""

    def drop(self) -> float | None:
        found = self.comparison
        if found is None:
            return None
        return found.high_points if self.upper else found.drop_points

    def relative_drop(self) -> float | None:
        drop, found = self.drop(), self.comparison
        accuracy = None if found is None else found.reference_accuracy
        if drop is None or accuracy is None or accuracy <= 0:
            return None
        return drop / accuracy

    def perplexity_rise(self) -> float | None:
        found = None if self.comparison is None else self.comparison.perplexity
        if found is None:
            return None
        return found.rise_high if self.upper else found.rise

    def of_comparison(self, name: str) -> float | None:
        value = None if self.comparison is None else getattr(self.comparison, name)
        return None if value is None else float(value)

    def of_latency(self, name: str, scale: float = 1.0) -> float | None:
        return None if self.measured is None else getattr(self.measured, name) / scale

    def of_writing(self, name: str) -> float | None:
        return None if self.row.writing is None else getattr(self.row.writing, name)


@dataclass(frozen=True)
class _Limit:
    goal: Goal
    read: Callable[[_Facts], float | None]
    words: str
    of_drop: bool = False
    of_latency: bool = False
    of_writing: bool = False
    ratio: Callable[[_Facts], Speedup | None] | None = None
    """Of two times, where it is on one: that to the untouched model."""


def _of_ratio(
    ratio: Callable[[_Facts], Speedup | None], words: str, *, of_writing: bool = False
) -> _Limit:
    """A limit on how many times as fast a row is as the untouched model."""

    def read(facts: _Facts) -> float | None:
        found = ratio(facts)
        return None if found is None else found.ratio

    return _Limit(
        "speed", read, words, of_latency=not of_writing, of_writing=of_writing, ratio=ratio
    )


_LIMITS: Mapping[str, _Limit] = {
    "max_accuracy_drop": _Limit(
        "accuracy",
        _Facts.drop,
        "loses {found:.2f} points of {measure}{at}, allowed {limit:g}",
        of_drop=True,
    ),
    "max_relative_drop": _Limit(
        "accuracy",
        _Facts.relative_drop,
        "loses {found:.2f}% of the {measure}{at}, allowed {limit:g}%",
        of_drop=True,
    ),
    "max_perplexity_rise": _Limit(
        "accuracy",
        _Facts.perplexity_rise,
        "changes the perplexity by {found:+.2f}%{at}, allowed {limit:+g}%",
    ),
    "min_label_agreement": _Limit(
        "accuracy",
        lambda facts: facts.of_comparison("agreement"),
        "answers as the untouched model does on {found:.1%} of the examples, wanted {limit:.1%}",
    ),
    "max_probability_difference": _Limit(
        "accuracy",
        lambda facts: facts.of_comparison("max_probability_difference"),
        "differs by {found:.3g} in a probability, allowed {limit:g}",
    ),
    "max_calibration_error": _Limit(
        "accuracy",
        lambda facts: facts.of_comparison("calibration_error"),
        "has a calibration error of {found:.3f}, allowed {limit:g}",
    ),
    "max_latency_ms": _Limit(
        "speed",
        lambda facts: facts.of_latency("median_ms"),
        "takes {found:.3f} ms, allowed {limit:g} ms",
        of_latency=True,
    ),
    "max_p90_ms": _Limit(
        "speed",
        lambda facts: facts.of_latency("p90_ms"),
        "takes {found:.3f} ms at the 90th percentile, allowed {limit:g} ms",
        of_latency=True,
    ),
    "max_p99_ms": _Limit(
        "speed",
        lambda facts: facts.of_latency("p99_ms"),
        "takes {found:.3f} ms at the 99th percentile, allowed {limit:g} ms",
        of_latency=True,
    ),
    "min_speedup": _of_ratio(
        lambda facts: facts.speedup, "is {found:.2f}x as fast, wanted {limit:g}x"
    ),
    "min_speedup_eager": _of_ratio(
        lambda facts: facts.row.speedup_eager,
        "is {found:.2f}x as fast as eager PyTorch, wanted {limit:g}x",
    ),
    "max_first_token_ms": _Limit(
        "speed",
        lambda facts: facts.of_writing("first_token_ms"),
        "takes {found:.1f} ms to the first token, allowed {limit:g} ms",
        of_writing=True,
    ),
    "min_tokens_per_s": _Limit(
        "speed",
        lambda facts: facts.of_writing("written_per_s"),
        "writes {found:.1f} tokens/s, wanted {limit:g}",
        of_writing=True,
    ),
    "min_writing_speedup": _of_ratio(
        lambda facts: facts.row.writing_speedup,
        "writes {found:.2f}x as fast, wanted {limit:g}x",
        of_writing=True,
    ),
    "min_writing_speedup_eager": _of_ratio(
        lambda facts: facts.row.writing_speedup_eager,
        "writes {found:.2f}x as fast as eager PyTorch, wanted {limit:g}x",
        of_writing=True,
    ),
    "max_load_time_ms": _Limit(
        "size",
        lambda facts: facts.of_latency("load_time_ms"),
        "takes {found:.0f} ms to load, allowed {limit:g} ms",
        of_latency=True,
    ),
    "max_peak_memory_mb": _Limit(
        "size",
        lambda facts: facts.of_latency("peak_memory_bytes", 1e6),
        "needs {found:.0f} MB of memory, allowed {limit:g} MB",
    ),
    "max_size_mb": _Limit(
        "size",
        lambda facts: None if facts.row.size_bytes is None else facts.row.size_bytes / 1e6,
        "is {found:.2f} MB, allowed {limit:g} MB",
    ),
    "min_size_ratio": _Limit(
        "size", lambda facts: facts.row.size_ratio, "is {found:.2f}x smaller, wanted {limit:g}x"
    ),
}
"""Limits of one number."""

GOALS: Mapping[str, Goal] = {
    **{name: limit.goal for name, limit in _LIMITS.items()},
    "max_metric_drop": "accuracy",
    "max_class_drop": "accuracy",
    "max_slice_drop": "accuracy",
}
"""Limit of the budget -> what it is about."""


def target_label(row: Row) -> str:
    """Name of a row's target, with the device where that is not the default."""
    return row.target if row.device is None else f"{row.target} ({row.device})"


def targets_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Labels of the targets that there are candidates for, in their order."""
    return tuple(dict.fromkeys(target_label(row) for row in rows if row.kind == "candidate"))


def check_row(
    row: Row,
    budget: Budget,
    comparison: Comparison | None,
    primary_shape: str,
    *,
    noisy_bases: NoisyBases | None = None,
) -> tuple[Check, ...]:
    """Compare a row with every limit that there is for it.

    Args:
        row: A candidate.
        budget: The limits.
        comparison: The row against the untouched model, on the data that is to count.
        primary_shape: The shape whose latency counts.
        noisy_bases: What of the untouched model is in doubt.
    """
    limits = budget.on(target_label(row))
    measured = row.latency.get(primary_shape)
    noisy_bases = noisy_bases or {}
    facts = _Facts(row, comparison, measured, row.speedup, limits, noisy_bases.get(None, ()))
    checks = [*_simple(facts), *_metrics(facts, limits), *_groups(facts, limits)]
    for name, device_limits in budget.devices.items():
        found = row.devices.get(name)
        measured = None if found is None else found.latency.get(primary_shape)
        there = None if found is None else found.speedup
        of_device = _Facts(row, None, measured, there, device_limits, noisy_bases.get(name, ()))
        checks += _simple(of_device, f"on {name}")
    if row.bundle is None:
        text = "nothing to ship: the report names no bundle of it"
        checks.append(Check(limit="bundle", wanted=1, found=0, met=False, shortfall=1.0, text=text))
    return tuple(checks)


def _simple(facts: _Facts, subject: str = "") -> Iterator[Check]:
    """The limits of one number."""
    measured, writing = facts.measured, facts.row.writing
    noisy = measured is not None and measured.noise.verdict == "noisy"
    noisy_writing = writing is not None and writing.noise.verdict == "noisy"
    for name, limit in _LIMITS.items():
        wanted = getattr(facts.limits, name, None)
        if wanted is None:
            continue
        check = _check(
            name,
            wanted,
            limit.read(facts),
            limit.words,
            subject=subject,
            at=facts.at,
            measure=facts.row.measure,
            in_points=limit.of_drop,
            noisy=(limit.of_latency and noisy)
            or (limit.of_writing and noisy_writing)
            or (name in facts.noisy_bases and _may_be_beyond(facts, limit, wanted)),
        )
        # A machine that was slow while latencies were measured was so while texts were written.
        is_time = limit.of_latency or limit.of_writing
        if is_time and not check.met and measured is not None:
            check = _excused(check, measured, is_ratio=limit.ratio is not None)
        yield check


def _may_be_beyond(facts: _Facts, limit: _Limit, wanted: float) -> bool:
    """Whether a ratio to a noisy time could as well be on the other side of its limit."""
    found = None if limit.ratio is None else limit.ratio(facts)
    return found is not None and found.low < wanted <= found.high


def _excused(check: Check, measured: Measurement, *, is_ratio: bool) -> Check:
    """A time that is too long proves nothing on a machine that was slower than it has been.

    A ratio stands, unless threads were woken slowly, from which small models suffer most.
    """
    if not (measured.wakes_slowly if is_ratio else measured.is_slowed):
        return check
    text = f"{check.text}; but {' and '.join(measured.slowed_by)}"
    return check.model_copy(update={"noisy": True, "text": text})


def _metrics(facts: _Facts, limits: Limits) -> Iterator[Check]:
    for name, wanted in limits.max_metric_drop.items():
        change: Change | None = (facts.comparison.metrics if facts.comparison else {}).get(name)
        drop = None
        if change is not None:
            drop = change.high_points if facts.upper else change.drop_points
        words = "loses {found:.2f} points of {subject}{at}, allowed {limit:g}"
        yield _check(
            "max_metric_drop", wanted, drop, words, subject=name, at=facts.at, in_points=True
        )


def _groups(facts: _Facts, limits: Limits) -> Iterator[Check]:
    groups = () if facts.comparison is None else facts.comparison.groups
    for name, is_class in (("max_class_drop", True), ("max_slice_drop", False)):
        wanted = getattr(limits, name)
        if wanted is None:
            continue
        own = [each for each in groups if (each.column is None) == is_class]
        if not own:
            yield _check(name, wanted, None, "")
        for each in own:
            yield _group_check(name, wanted, each)


def _group_check(name: str, wanted: float, group: Group) -> Check:
    words = "loses {found:.1f} points ({low:.1f} to {high:.1f}) on {subject}, allowed {limit:g}"
    check = _check(
        name,
        wanted,
        group.drop_points,
        words,
        subject=group.title,
        in_points=True,
        low=group.low_points,
        high=group.high_points,
    )
    if not check.met and group.low_points <= 0:
        text = f"{check.text}; it may be chance, with {group.num_rows} examples"
        return check.model_copy(update={"met": True, "shortfall": 0.0, "text": text})
    return check


def _check(
    name: str,
    wanted: float,
    found: float | None,
    words: str,
    *,
    subject: str = "",
    in_points: bool = False,
    noisy: bool = False,
    **more: Any,
) -> Check:
    place = f"{subject}: " if subject.startswith("on ") else ""
    if found is None:
        text = f"{place}{name} could not be measured"
        return Check(
            limit=name, subject=subject, wanted=wanted, found=None, met=False, shortfall=1.0,
            text=text,
        )  # fmt: skip
    shown = {"found": abs(found) if in_points else found, **more}
    if in_points and found < 0:
        words = words.replace("loses", "gains")
        if "low" in more:
            shown |= {"low": -more["high"], "high": -more["low"]}
    # Differences of shares of a count: what they miss by is not a matter of the last bit.
    rounded = round(found, 9)
    met = rounded <= wanted if name.startswith("max") else rounded >= wanted
    scale = max(abs(wanted), _LEAST_DROP) if in_points else (abs(wanted) or 1.0)
    return Check(
        limit=name,
        subject=subject,
        wanted=wanted,
        found=found,
        met=met,
        shortfall=0.0 if met else abs(found - wanted) / scale,
        text=place + words.format(limit=wanted, subject=subject, **shown),
        noisy=noisy,
    )
