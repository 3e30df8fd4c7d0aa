"""What is lost from one model to another where every answer has a value, and no class is right.

A value may be that of a part of many, such as the right words of a recording: what is compared is
then the ratio of two sums, of the values and of their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.evaluation import sign_flip_p_value
from compressor.report.schema import Change, Comparison, Group
from targets.scoring import resampled_ratios, with_chance

__all__ = ["Values", "compare_means", "frequent_parts", "mean_drop"]

MAX_VALUES = 50
"""Of a column that the data is sliced by; the most frequent count."""
_MILLIONTHS = 1e6

Values = NDArray[Any]


def compare_means(
    metrics: Mapping[str, tuple[Values, Values]],
    *,
    agreement: float,
    weights: NDArray[Any] | None = None,
    rows: NDArray[np.int64],
    slices: Mapping[str, Sequence[str]],
) -> Comparison:
    """Compare two models by the values of their answers to the same rows.

    Args:
        metrics: Name -> (M,) of the untouched model, and of the other one. The first is the one
            that is lost or kept, and broken down.
        agreement: Share of the rows that got the same answer.
        weights: (M,) what the values are parts of; None where each is one.
        rows: (M,) which rows of the data they are.
        slices: Column -> its values, one a row.
    """
    before, after = next(iter(metrics.values()))
    weights = np.ones(len(before)) if weights is None else weights
    points, low, high = mean_drop(before, after, weights)
    return Comparison(
        drop_points=points,
        low_points=low,
        high_points=high,
        p_value=sign_flip_p_value(np.rint(_MILLIONTHS * (before - after)).astype(np.int64)),
        agreement=agreement,
        reference_accuracy=_mean(before, weights),
        metrics={name: _change(*each, weights) for name, each in metrics.items()},
        groups=tuple(
            Group(
                column=column,
                value=str(value),
                num_rows=int(part.sum()),
                accuracy=lost.value,
                reference=lost.reference,
                drop_points=lost.drop_points,
                low_points=lost.low_points,
                high_points=lost.high_points,
            )
            for column, value, part in frequent_parts(slices, rows)
            for lost in [_change(before[part], after[part], weights[part])]
        ),
    )


def mean_drop(
    before: Values, after: Values, weights: NDArray[Any] | None = None
) -> tuple[float, float, float]:
    """What a mean loses from one model to another, in points: estimate and 95% interval.

    The texts are drawn anew for the interval; see `targets.scoring.resampled_ratios`. That of a few
    texts always holds 0; see `targets.scoring.LEAST_CERTAIN`.

    Args:
        before: (M,) a value a text.
        after: (M,) of the same texts.
        weights: (M,) what the values are parts of; None where each is one.
    """
    weights = np.ones(len(before)) if weights is None else weights
    differences = 100 * (before.astype(np.float64) - after)
    low, high = np.percentile(resampled_ratios(differences, weights), [2.5, 97.5])
    return _mean(differences, weights), *with_chance(float(low), float(high), len(before))


def _mean(values: Values, weights: NDArray[Any]) -> float:
    return float(values.sum(dtype=np.float64) / max(weights.sum(), 1))


def _change(before: Values, after: Values, weights: NDArray[Any]) -> Change:
    points, low, high = mean_drop(before, after, weights)
    return Change(
        value=_mean(after, weights),
        reference=_mean(before, weights),
        drop_points=points,
        low_points=low,
        high_points=high,
    )


def frequent_parts(
    slices: Mapping[str, Sequence[str]], rows: NDArray[np.int64]
) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Column, value, and which answers belong to it; the most frequent first.

    Args:
        slices: Column -> its values, one a row.
        rows: (M,) the row of each answer.
    """
    found = []
    for column, values in slices.items():
        each = np.asarray(values)[rows]
        names, counts = np.unique(each, return_counts=True)
        frequent = names[np.argsort(-counts, kind="stable")][:MAX_VALUES]
        found += [(column, str(name), each == name) for name in frequent]
    return found
