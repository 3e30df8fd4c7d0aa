"""Paired comparisons of two models on the same data. Pure functions over arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressor.report.schema import Comparison, Perplexity
from targets.scoring import Z_95, design_effect, resamples

__all__ = [
    "Drop",
    "compare",
    "mcnemar_p_value",
    "paired_drop",
    "paired_interval",
    "paired_perplexity",
    "sign_flip_p_value",
]

_MOST_SUMS = 2**26
"""Steps of the exact test: rows that differ, times the units in which they do."""
_NUM_DRAWN = 20_000
_DRAWN_AT_ONCE = 1000


def compare(
    reference: NDArray[np.int64],
    candidate: NDArray[np.int64],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64] | None = None,
    counts: NDArray[np.int64] | None = None,
) -> Comparison:
    """Compare two models on the same units.

    Args:
        reference: (M,) predicted classes of the untouched model.
        candidate: (M,) predicted classes of the other one.
        labels: (M,) true classes.
        rows: (M,) the row of the data that each belongs to; None where each is one.
        counts: (M,) how many units each stands for; None where it is one.
    """
    before, after = reference == labels, candidate == labels
    drop = paired_drop(before, after, rows, counts)
    return Comparison(
        drop_points=drop.points,
        low_points=drop.low,
        high_points=drop.high,
        p_value=sign_flip_p_value(_by_row(before, after, rows, counts)),
        agreement=float(np.average(reference == candidate, weights=counts)),
    )


class Drop(NamedTuple):
    """What is lost from one model to another on the same units, in percentage points."""

    points: float
    low: float
    high: float
    """95% interval."""
    lost: int
    """Units that only the first got right."""
    gained: int
    """Units that only the second got right."""


def paired_drop(
    right_before: NDArray[np.bool_],
    right_after: NDArray[np.bool_],
    rows: NDArray[np.int64] | None = None,
    counts: NDArray[np.int64] | None = None,
) -> Drop:
    """Compare which units two models get right.

    Where several come from one row, the interval is that of the effective sample: all numbers are
    divided by the design effect of the differences; see `targets.scoring.design_effect`.

    Args:
        right_before: (M,) of the untouched model.
        right_after: (M,) of the other one.
        rows: (M,) the row of the data that each belongs to; None where each is one.
        counts: (M,) how many units each stands for; None where it is one.
    """
    weights = np.ones(len(right_before), dtype=np.int64) if counts is None else counts
    count = int(weights.sum())
    lost = int(weights[right_before & ~right_after].sum())
    gained = int(weights[~right_before & right_after].sum())
    effect = design_effect(_difference(right_before, right_after), rows, counts)
    low, high = paired_interval(lost / effect, gained / effect, count / effect)
    points = 100 * (lost - gained) / count
    return Drop(points, 100 * low, 100 * high, lost, gained)


def _difference(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> NDArray[np.int64]:
    """1 where only the first is right, -1 where only the second is, else 0."""
    return before.astype(np.int64) - after


def _by_row(
    before: NDArray[np.bool_],
    after: NDArray[np.bool_],
    rows: NDArray[np.int64] | None,
    counts: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """Lost minus gained of each row.  # (rows,)"""
    difference = _difference(before, after) * (1 if counts is None else counts)
    if rows is None:
        return difference
    _, places = np.unique(rows, return_inverse=True)
    return np.rint(np.bincount(places, weights=difference)).astype(np.int64)


def paired_interval(
    lost: float, gained: float, count: float, z: float = Z_95
) -> tuple[float, float]:
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
    """Exact two-sided McNemar test (McNemar, 1947): binomial with probability 1/2.

    Args:
        lost: Rows that only the first got right.
        gained: Rows that only the second got right.
    """
    discordant = lost + gained
    if discordant == 0:
        return 1.0
    term = tail = 1  # ways to choose k of the discordant rows, and their sum up to k
    for k in range(min(lost, gained)):
        term = term * (discordant - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << discordant))


def paired_perplexity(
    reference: NDArray[np.floating], candidate: NDArray[np.floating], rows: NDArray[np.int64]
) -> Perplexity:
    """The perplexities of two models on the same tokens.

    Args:
        reference: (M,) cross-entropies of the untouched model, in nats.
        candidate: (M,) of the other one.
        rows: (M,) the text that each token belongs to; a text is drawn with all of its tokens.
    """
    _, places = np.unique(rows, return_inverse=True)
    columns = (reference, candidate, np.ones(len(rows)))
    table = np.stack([np.bincount(places, weights=each) for each in columns], axis=1)

    def means(sums: NDArray[np.float64]) -> Sequence[NDArray[np.float64]]:
        return sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]

    before, after = (float(each[0]) for each in means(table.sum(axis=0, keepdims=True)))
    drawn = [means(each.astype(np.float64) @ table) for each in resamples(len(table))]
    first, second = (np.concatenate(each) for each in zip(*drawn, strict=True))
    low, high = np.exp(np.percentile(second, [2.5, 97.5]))
    rise_low, rise_high = 100 * np.expm1(np.percentile(second - first, [2.5, 97.5]))
    return Perplexity(
        value=math.exp(after),
        low=float(low),
        high=float(high),
        reference=math.exp(before),
        rise=100 * math.expm1(after - before),
        rise_low=float(rise_low),
        rise_high=float(rise_high),
    )


def sign_flip_p_value(differences: NDArray[np.int64]) -> float:
    """Two-sided test that two models are equally good, by the differences of rows.

    If they are, the difference of each row could as well be the other way round: the chance that
    random signs give a sum as far from 0 (Fisher, The Design of Experiments, 1935, section 21).
    With one unit a row this is McNemar's exact test. Exact, but where the differences are so large
    that not all sums can be gone through: then 20,000 random choices of signs, always the same
    ones, stand for all (Phipson and Smyth, "Permutation P-values should never be zero", 2010).

    Args:
        differences: (rows,) units lost minus units gained of each.
    """
    sizes = np.abs(differences[differences != 0])
    if (sizes == 1).all():
        return mcnemar_p_value(int((differences > 0).sum()), int((differences < 0).sum()))
    total, reached = int(sizes.sum()), abs(int(differences.sum()))
    if total * len(sizes) > _MOST_SUMS:
        drawn = (np.abs(sums) >= reached for sums in _random_sums(sizes))
        return float((1 + sum(int(each.sum()) for each in drawn)) / (1 + _NUM_DRAWN))
    chances = np.ones(1)  # of a sum of each size, in steps of 2 from minus to plus what is possible
    for size in sizes.tolist():
        grown = np.zeros(len(chances) + size)
        grown[: len(chances)] += chances / 2
        grown[size:] += chances / 2
        chances = grown
    sums = np.arange(-total, total + 1, 2)
    return min(1.0, float(chances[np.abs(sums) >= reached].sum()))


def _random_sums(sizes: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Sums of the sizes with random signs, some at a time."""
    generator = np.random.default_rng(0)
    for _ in range(0, _NUM_DRAWN, _DRAWN_AT_ONCE):
        signs = generator.integers(0, 2, size=(_DRAWN_AT_ONCE, len(sizes)), dtype=np.int8)
        yield (2 * signs.astype(np.int64) - 1) @ sizes
