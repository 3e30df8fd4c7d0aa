"""What the bundles to ship change: by metric, class and slice, and example by example."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.report.schema import ChangedExample, Comparison, Group, Report
from compressor.report.summary import RowText, row_texts
from compressor.report.wording import (
    percent,
    perplexity_text,
    points,
    points_interval,
    significant,
)

__all__ = ["ChangeText", "GroupText", "change_texts"]


@dataclass(frozen=True)
class GroupText:
    """A metric, a class or a slice as text."""

    title: str
    num_rows: str
    before: str
    after: str
    drop: str
    drop_interval: str
    certain: bool
    """Whether something is lost that is more than chance."""


@dataclass(frozen=True)
class ChangeText:
    """What one bundle changes against the untouched model, on the test data.

    Attributes:
        text: Its row.
        facts: Label and value of what is said of all examples.
        groups: Metrics, then classes, then slices.
        layers: Part of the network -> relative error there; empty for a model in float32.
        changed: The worst examples that got another label.
        num_changed: How many got another one.
    """

    text: RowText
    facts: tuple[tuple[str, str], ...]
    groups: tuple[GroupText, ...]
    layers: tuple[tuple[str, str], ...]
    changed: tuple[ChangedExample, ...]
    num_changed: int


def change_texts(report: Report) -> tuple[ChangeText, ...]:
    """One entry for each row that was chosen for its target and compared on the test data."""
    return tuple(
        ChangeText(
            text=text,
            facts=_facts(compared),
            groups=_groups(compared),
            layers=tuple((each.name, percent(each.error)) for each in text.row.layers),
            changed=text.row.changed,
            num_changed=round((1 - compared.agreement) * text.row.test.num_judged),
        )
        for text in row_texts(report)
        if text.row.chosen and text.row.test is not None
        if (compared := text.row.test_comparison) is not None
        if compared.groups or compared.metrics or compared.perplexity
    )


def _p_value(value: float) -> str:
    return significant(value) if value >= _LEAST_P or not value else f"below {_LEAST_P}"


_LEAST_P = 0.0001


def _facts(compared: Comparison) -> tuple[tuple[str, str], ...]:
    found = [
        ("same answer as the untouched model", percent(compared.agreement)),
        ("p-value of the drop", _p_value(compared.p_value)),
    ]
    if compared.perplexity is not None:
        found.insert(0, ("perplexity", perplexity_text(compared.perplexity)))
    difference = compared.max_probability_difference
    if difference is not None:
        found.append(("largest difference of a probability", significant(difference)))
    after, before = compared.calibration_error, compared.reference_calibration_error
    if after is not None and before is not None:
        found.append(
            ("calibration error (ECE)", f"{significant(after)}, untouched {significant(before)}")
        )
    return tuple(found)


def _groups(compared: Comparison) -> tuple[GroupText, ...]:
    metrics = [
        GroupText(
            title=name.replace("_", " "),
            num_rows="all",
            before=percent(each.reference),
            after=percent(each.value),
            drop=points(drop.drop_points),
            drop_interval=points_interval(drop.low_points, drop.high_points),
            certain=drop.low_points > 0,
        )
        for name, each in compared.metrics.items()
        # That of accuracy is the one in the results, whatever is resampled for the others.
        for drop in [compared if name == "accuracy" else each]
    ]
    return (*metrics, *map(_group, compared.groups))


def _group(group: Group) -> GroupText:
    return GroupText(
        title=group.title,
        num_rows=str(group.num_rows),
        before=percent(group.reference),
        after=percent(group.accuracy),
        drop=points(group.drop_points),
        drop_interval=points_interval(group.low_points, group.high_points),
        certain=group.low_points > 0,
    )
