"""Accuracy with its interval, and paired comparisons. Pure functions over arrays."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from compressor.report.schema import Accuracy, Comparison

__all__ = ["accuracy", "compare", "mcnemar_p_value", "paired_interval", "wilson_interval"]

Z_95 = 1.959963984540054  # standard normal quantile for a two-sided 95% interval


def accuracy(correct: NDArray[np.bool_]) -> Accuracy:
    """Share of right answers with its 95% interval.

    Args:
        correct: (N,) whether each row is right; N >= 1.
    """
    hits, count = int(correct.sum()), len(correct)
    low, high = wilson_interval(hits, count)
    return Accuracy(value=hits / count, low=low, high=high, num_rows=count)


def compare(
    reference: NDArray[np.int64], candidate: NDArray[np.int64], labels: NDArray[np.int64]
) -> Comparison:
    """Compare two models on the same rows.

    Args:
        reference: (N,) predicted classes of the untouched model.
        candidate: (N,) predicted classes of the other one.
        labels: (N,) true classes.
    """
    right_before, right_after = reference == labels, candidate == labels
    lost = int((right_before & ~right_after).sum())
    gained = int((~right_before & right_after).sum())
    low, high = paired_interval(lost, gained, len(labels))
    return Comparison(
        drop_points=100 * (lost - gained) / len(labels),
        low_points=100 * low,
        high_points=100 * high,
        p_value=mcnemar_p_value(lost, gained),
        agreement=float((reference == candidate).mean()),
    )


def wilson_interval(hits: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of a proportion that holds near 0 and 1 and for small samples (Wilson, 1927)."""
    share = hits / count
    center = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    low, high = (center - spread) / scale, (center + spread) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding must not leave it out


def paired_interval(lost: int, gained: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of the difference of two proportions on the same rows (Agresti and Min, 2005).

    Adds half an observation to each cell of the 2 x 2 table, so that it neither collapses to a
    point when the models agree everywhere nor leaves [-1, 1].

    Args:
        lost: Rows that only the first got right.
        gained: Rows that only the second got right.
        count: All rows.

    Returns:
        Low and high end of (share right of the first) - (share right of the second).
    """
    b, c, n = lost + 0.5, gained + 0.5, count + 2
    difference = (b - c) / n
    spread = z * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    return max(-1.0, difference - spread), min(1.0, difference + spread)


def mcnemar_p_value(lost: int, gained: int) -> float:
    """Exact two-sided McNemar test (McNemar, 1947): binomial with probability 1/2."""
    discordant = lost + gained
    if discordant == 0:
        return 1.0
    term = tail = 1  # ways to choose k of the discordant rows, and their sum up to k
    for k in range(min(lost, gained)):
        term = term * (discordant - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << discordant))
