"""How near a compressed model stays to the untouched one, example by example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compressor.evaluation import compare, paired_drop
from compressor.metrics import expected_calibration_error, metric_changes
from compressor.report.schema import Change, ChangedExample, Comparison, Group

__all__ = ["changed_examples", "compare_answers"]

Probabilities = NDArray[np.floating]
MAX_VALUES = 50
"""Of a column that the data is sliced by; the most frequent count."""


def compare_answers(
    reference: Probabilities,
    candidate: Probabilities,
    labels: NDArray[np.int64],
    *,
    label_names: Sequence[str],
    slices: Mapping[str, Sequence[str]] | None = None,
) -> Comparison:
    """Compare two models on the same rows: as a whole, by class, and by slice.

    Args:
        reference: (N, classes) probabilities of the untouched model.
        candidate: (N, classes) probabilities of the other one.
        labels: (N,) true classes.
        label_names: Of the classes.
        slices: Column -> its values, N each.
    """
    before, after = (np.asarray(each.argmax(axis=1)) for each in (reference, candidate))
    changes = metric_changes(before, after, labels, num_classes=len(label_names))
    parts: list[tuple[str | None, str, NDArray[np.bool_]]] = [
        (None, name, labels == index) for index, name in enumerate(label_names)
    ]
    for column, values in (slices or {}).items():
        found = np.asarray(values)
        names, counts = np.unique(found, return_counts=True)
        frequent = names[np.argsort(-counts, kind="stable")][:MAX_VALUES]
        parts += [(column, str(name), found == name) for name in frequent]
    right_before, right_after = before == labels, after == labels
    return compare(before, after, labels).model_copy(
        update={
            "reference_accuracy": float(right_before.mean()),
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
                _group(column, name, right_before[rows], right_after[rows])
                for column, name, rows in parts
                if rows.any()
            ),
            "max_probability_difference": float(np.abs(reference - candidate).max()),
            "calibration_error": expected_calibration_error(candidate, labels),
            "reference_calibration_error": expected_calibration_error(reference, labels),
        }
    )


def changed_examples(
    reference: Probabilities,
    candidate: Probabilities,
    labels: NDArray[np.int64],
    *,
    label_names: Sequence[str],
    texts: Sequence[str] | None = None,
    limit: int = 20,
) -> tuple[ChangedExample, ...]:
    """The examples that got another label, the worst first.

    Worst are those that were right and are wrong now, then those whose new label is the most
    confident.

    Args:
        reference: (N, classes) probabilities of the untouched model.
        candidate: (N, classes) probabilities of the other one.
        labels: (N,) true classes.
        label_names: Of the classes.
        texts: The N examples; None where they are to stay private.
        limit: Most to return.
    """
    before, after = reference.argmax(axis=1), candidate.argmax(axis=1)
    rows = np.flatnonzero(before != after)
    lost = (before[rows] == labels[rows]) & (after[rows] != labels[rows])
    confidence = candidate[rows, after[rows]]
    order = rows[np.lexsort((rows, -confidence, ~lost))][:limit]
    return tuple(
        ChangedExample(
            index=int(row),
            text=None if texts is None else texts[row],
            label=label_names[labels[row]],
            before=label_names[before[row]],
            after=label_names[after[row]],
            confidence_before=float(reference[row, before[row]]),
            confidence_after=float(candidate[row, after[row]]),
        )
        for row in order
    )


def _group(
    column: str | None,
    value: str,
    right_before: NDArray[np.bool_],
    right_after: NDArray[np.bool_],
) -> Group:
    """What the rows of one group lost; both arrays are those rows."""
    drop = paired_drop(right_before, right_after)
    return Group(
        column=column,
        value=value,
        num_rows=len(right_before),
        accuracy=float(right_after.mean()),
        reference=float(right_before.mean()),
        drop_points=drop.points,
        low_points=drop.low,
        high_points=drop.high,
    )
