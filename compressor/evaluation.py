"""Paired comparisons of two models on the same rows. Pure functions over arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressor.report.schema import Comparison
from targets.scoring import Z_95

__all__ = ["Drop", "compare", "mcnemar_p_value", "paired_drop", "paired_interval"]


def compare(
    reference: NDArray[np.int64], candidate: NDArray[np.int64], labels: NDArray[np.int64]
) -> Comparison:
    """Compare two models on the same rows.

    Args:
        reference: (N,) predicted classes of the untouched model.
        candidate: (N,) predicted classes of the other one.
        labels: (N,) true classes.
    """
    drop = paired_drop(reference == labels, candidate == labels)
    return Comparison(
        drop_points=drop.points,
        low_points=drop.low,
        high_points=drop.high,
        p_value=mcnemar_p_value(drop.lost, drop.gained),
        agreement=float((reference == candidate).mean()),
    )


class Drop(NamedTuple):
    """What is lost from one model to another on the same rows, in percentage points."""

    points: float
    low: float
    high: float
    """95% interval."""
    lost: int
    """Rows that only the first got right."""
    gained: int
    """Rows that only the second got right."""


def paired_drop(right_before: NDArray[np.bool_], right_after: NDArray[np.bool_]) -> Drop:
    """Compare which rows two models get right.

    Args:
        right_before: (N,) of the untouched model.
        right_after: (N,) of the other one.
    """
    lost = int((right_before & ~right_after).sum())
    gained = int((~right_before & right_after).sum())
    low, high = paired_interval(lost, gained, len(right_before))
    points = 100 * (lost - gained) / len(right_before)
    return Drop(points, 100 * low, 100 * high, lost, gained)


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
