"""How good predicted classes are, and what is lost from one model to the other, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressor.entities import count_entities, is_iob2
from targets.answers import most_probable
from targets.scoring import resamples

__all__ = [
    "ENTITY_METRICS",
    "METRICS",
    "MetricChange",
    "expected_calibration_error",
    "metric_changes",
]

Weights = NDArray[np.float64]
Counts = NDArray[np.float32]


def _accuracy(right: Weights, wanted: Weights, given: Weights) -> Weights:
    return np.asarray(right.sum(axis=1) / wanted.sum(axis=1))


def _balanced_accuracy(right: Weights, wanted: Weights, given: Weights) -> Weights:
    return _mean_of_classes(right, wanted, wanted > 0)


def _macro_f1(right: Weights, wanted: Weights, given: Weights) -> Weights:
    return _mean_of_classes(2 * right, wanted + given, wanted + given > 0)


def _mean_iou(right: Weights, wanted: Weights, given: Weights) -> Weights:
    either = wanted + given - right
    return _mean_of_classes(right, either, either > 0)


def _mean_of_classes(above: Weights, below: Weights, present: NDArray[np.bool_]) -> Weights:
    """Mean over the classes that are present, (B,)."""
    each = np.divide(above, below, out=np.zeros_like(above), where=present)
    return np.asarray(each.sum(axis=1) / present.sum(axis=1))


def _f1(right: Weights, wanted: Weights, given: Weights) -> Weights:
    below = (wanted + given).sum(axis=1)
    above = 2 * right.sum(axis=1)
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0))


Measures = Mapping[str, Callable[[Weights, Weights, Weights], Weights]]

METRICS: Measures = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "mean_iou": _mean_iou,
}
"""Name -> function of the weights, each (B, classes), of the units that are rightly given a class,
that have it, and that are given it. Gives (B,)."""

ENTITY_METRICS: Measures = {"entity_f1": _f1}
"""The same of entities, (B, 1), where the classes are tags in the IOB2 form."""


class MetricChange(NamedTuple):
    """A metric of two models on the same units, all as shares in [0, 1]."""

    reference: float
    candidate: float
    low: float
    high: float
    """95% interval of the first minus the second."""


def metric_changes(
    reference: NDArray[np.int64],
    candidate: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    num_classes: int,
    rows: NDArray[np.int64] | None = None,
    label_names: Sequence[str] = (),
    counts: NDArray[np.int64] | None = None,
) -> dict[str, MetricChange]:
    """Every metric of two models, and what is lost from one to the other.

    The interval comes from 1000 paired bootstrap resamples of the rows, always the same ones (Efron
    and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). Where a row has several
    units, it is drawn with all of them (Davison and Hinkley, Bootstrap Methods and their
    Application, 1997, section 3.8).

    Args:
        reference: (M,) classes that the untouched model gives.
        candidate: (M,) classes that the other one gives.
        labels: (M,) true classes.
        num_classes: Of the task.
        rows: (M,) the row of the data that each unit belongs to; None where each is one.
        label_names: Of the classes. Where they are tags in the IOB2 form, and the rows are rising,
            entities are counted too.
        counts: (M,) how many units each stands for; None where it is one.
    """
    if rows is None:
        rows = np.arange(len(labels))
    names, places = np.unique(rows, return_inverse=True)

    def of_classes(classes: NDArray[np.int64], among: Any = slice(None)) -> Counts:
        cells = (places * num_classes + classes)[among]
        weights = None if counts is None else counts[among]
        found = np.bincount(cells, weights, minlength=len(names) * num_classes)
        return found.reshape(len(names), num_classes).astype(np.float32)

    before, after = (
        (of_classes(each), of_classes(each, each == labels)) for each in (reference, candidate)
    )
    table = np.concatenate([of_classes(labels), *before, *after], axis=1)  # (rows, 5 * classes)
    found = _changes(table, METRICS)
    if is_iob2(label_names):
        first, second = (
            count_entities(each, labels, rows, label_names) for each in (reference, candidate)
        )
        columns = [first[:, 1], first[:, 2], first[:, 0], second[:, 2], second[:, 0]]
        found |= _changes(np.stack(columns, axis=1).astype(np.float32), ENTITY_METRICS)
    return found


def _changes(table: Counts, measures: Measures) -> dict[str, MetricChange]:
    """Every metric of a table of counts, (rows, 5 * classes); see :func:`_values`."""
    whole = _values(table.sum(axis=0, keepdims=True, dtype=np.float64), measures)
    resampled = [_values(each @ table, measures) for each in resamples(len(table))]
    found = {}
    for name in measures:
        drops = np.concatenate([one[name][0] - one[name][1] for one in resampled])
        low, high = np.percentile(drops, [2.5, 97.5])
        first, second = (float(each[0]) for each in whole[name])
        found[name] = MetricChange(first, second, float(low), float(high))
    return found


def _values(counts: NDArray[Any], measures: Measures) -> dict[str, tuple[Weights, Weights]]:
    """Metric -> that of the reference and of the candidate, (B,) each.

    Args:
        counts: (B, 5 * classes): what there is of each class; what the reference gives, and rightly
            gives; what the candidate gives, and rightly gives.
        measures: The metrics.
    """
    parts = np.split(counts.astype(np.float64), 5, axis=1)
    wanted, before, right_before, after, right_after = parts
    return {
        name: (measure(right_before, wanted, before), measure(right_after, wanted, after))
        for name, measure in measures.items()
    }


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], *, num_bins: int = 15
) -> float:
    """How far confidence and accuracy are apart, in [0, 1] (Guo et al., 2017).

    Args:
        probabilities: (M, classes), rows add up to 1.
        labels: (M,) true classes.
        num_bins: Equal ranges of confidence.
    """
    confidence = probabilities.max(axis=1)
    right = most_probable(probabilities) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))
