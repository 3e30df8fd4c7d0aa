"""Paired comparisons of two models on the same rows. Pure functions over arrays."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from compressor.report.schema import Comparison
from targets.scoring import Z_95

__all__ = ["compare", "mcnemar_p_value", "paired_interval"]


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
