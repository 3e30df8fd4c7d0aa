"""How near a compressed model stays to the untouched one, example by example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.evaluation import compare, paired_drop
from compressor.metrics import expected_calibration_error, metric_changes
from compressor.report.schema import Change, ChangedExample, Comparison, Group
from targets.answers import classes_of, most_probable
from targets.scoring import count_equal

__all__ = ["changed_examples", "compare_answers"]

Probabilities = NDArray[Any]
MAX_VALUES = 50
"""Of a column that the data is sliced by; the most frequent count."""


def compare_answers(
    reference: Probabilities,
    candidate: Probabilities,
    labels: NDArray[np.int64],
    *,
    label_names: Sequence[str],
    rows: NDArray[np.int64] | None = None,
    slices: Mapping[str, Sequence[str]] | None = None,
) -> Comparison:
    """Compare two models on the same units: as a whole, by class, and by slice.

    Args:
        reference: (M, classes) probabilities of the untouched model, or its classes, (M,): units
            that have the same in all are then counted together.
        candidate: The same of the other one.
        labels: (M,) true classes.
        label_names: Of the classes; empty where they are as many as the tokens of a vocabulary and
            have no names: nothing is then said by class.
        rows: (M,) the row of the data that each unit belongs to; None where each is one.
        slices: Column -> its values, one a row.
    """
    before, after, counts = classes_of(reference), classes_of(candidate), None
    if reference.ndim == 1 and rows is not None and label_names:
        (rows, labels, before, after), counts = count_equal((rows, labels, before, after))
    changes = {}
    if label_names:
        changes = metric_changes(
            before,
            after,
            labels,
            num_classes=len(label_names),
            rows=rows,
            counts=counts,
            label_names=label_names,
        )
    parts: list[tuple[str | None, str, NDArray[np.bool_]]] = [
        (None, name, labels == index) for index, name in enumerate(label_names)
    ]
    for column, values in (slices or {}).items():
        found = np.asarray(values) if rows is None else np.asarray(values)[rows]
        names, places = np.unique(found, return_inverse=True)
        sizes = np.bincount(places, weights=counts)
        frequent = names[np.argsort(-sizes, kind="stable")][:MAX_VALUES]
        parts += [(column, str(name), found == name) for name in frequent]
    right_before, right_after = before == labels, after == labels
    return compare(before, after, labels, rows, counts).model_copy(
        update={
            "reference_accuracy": float(np.average(right_before, weights=counts)),
            "metrics": {
                name: Change(
                    value=each.candidate,
                    reference=each.reference,
                    drop_points=100 * (each.reference - each.candidate),
                    low_points=100 * each.low,
                    high_points=100 * each.high,
                )
                for name, each in changes.items()
            },
            "groups": tuple(
                _group(
                    column,
                    name,
                    right_before[part],
                    right_after[part],
                    None if rows is None else rows[part],
                    None if counts is None else counts[part],
                )
                for column, name, part in parts
                if part.any()
            ),
            **(_of_probabilities(reference, candidate, labels) if reference.ndim > 1 else {}),
        }
    )


def _of_probabilities(
    reference: Probabilities, candidate: Probabilities, labels: NDArray[np.int64]
) -> dict[str, float]:
    return {
        "max_probability_difference": float(np.abs(reference - candidate).max()),
        "calibration_error": expected_calibration_error(candidate, labels),
        "reference_calibration_error": expected_calibration_error(reference, labels),
    }


def changed_examples(
    reference: Probabilities,
    candidate: Probabilities,
    labels: NDArray[np.int64],
    *,
    label_names: Sequence[str],
    rows: NDArray[np.int64] | None = None,
    title: Callable[[int, int], str] | None = None,
    limit: int = 20,
) -> tuple[ChangedExample, ...]:
    """The units that got another label, the worst first.

    Worst are those that were right and are wrong now, then those whose new label is the most
    confident.

    Args:
        reference: (M, classes) probabilities of the untouched model.
        candidate: (M, classes) probabilities of the other one. Where there are classes alone, (M,),
            as of pixels, nothing tells which are worst, and none is returned.
        labels: (M,) true classes.
        label_names: Of the classes.
        rows: (M,) the row of the data that each unit belongs to, rising; None where each is one.
        title: What to call a unit, by its row and its place among those of the row, from 0; None
            where the data is to stay private.
        limit: Most to return.
    """
    if reference.ndim == 1:
        return ()
    if rows is None:
        rows = np.arange(len(labels))
    before, after = most_probable(reference), most_probable(candidate)
    units = np.flatnonzero(before != after)
    lost = (before[units] == labels[units]) & (after[units] != labels[units])
    confidence = candidate[units, after[units]]
    order = units[np.lexsort((units, -confidence, ~lost))][:limit]
    first = np.searchsorted(rows, rows[order])
    return tuple(
        ChangedExample(
            index=int(rows[unit]),
            text=None if title is None else title(int(rows[unit]), place),
            label=label_names[labels[unit]],
            before=label_names[before[unit]],
            after=label_names[after[unit]],
            confidence_before=float(reference[unit, before[unit]]),
            confidence_after=float(candidate[unit, after[unit]]),
        )
        for unit, place in zip(order, (order - first).tolist(), strict=True)
    )


def _group(
    column: str | None,
    value: str,
    right_before: NDArray[np.bool_],
    right_after: NDArray[np.bool_],
    rows: NDArray[np.int64] | None,
    counts: NDArray[np.int64] | None,
) -> Group:
    """What the units of one group lost; the arrays are of those units."""
    drop = paired_drop(right_before, right_after, rows, counts)
    return Group(
        column=column,
        value=value,
        num_rows=len(right_before) if counts is None else int(counts.sum()),
        accuracy=float(np.average(right_after, weights=counts)),
        reference=float(np.average(right_before, weights=counts)),
        drop_points=drop.points,
        low_points=drop.low,
        high_points=drop.high,
    )
