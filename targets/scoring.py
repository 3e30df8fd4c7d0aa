"""How good predictions are: accuracy with its interval. Pure functions over arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from targets.wording import plural

__all__ = [
    "RESAMPLES",
    "Z_95",
    "Accuracy",
    "accuracy",
    "count_equal",
    "design_effect",
    "mean_score",
    "perplexity",
    "ratio_score",
    "resampled_ratios",
    "resamples",
    "wilson_interval",
    "with_chance",
]

Z_95 = 1.959963984540054  # standard normal quantile for a two-sided 95% interval
RESAMPLES = 1000
LEAST_CERTAIN = 6
"""Independent samples from which on a loss can be more than chance: of fewer, random signs give a
two-sided p of 2 / 2**n, 0.06 for five, and samples drawn anew are too much alike."""
_CHUNK = 2**22  # lines of a table that are sorted at once
_CELLS = 20_000_000  # of a table of weights that are held at once


def with_chance(low: float, high: float, count: int) -> tuple[float, float]:
    """The interval of a loss, which holds 0 where it is of fewer than `LEAST_CERTAIN` samples.

    Args:
        low: Its lower end.
        high: Its upper end.
        count: Of independent samples.
    """
    return (low, high) if count >= LEAST_CERTAIN else (min(low, 0.0), max(high, 0.0))


class Accuracy(BaseModel):
    """Share of right answers in [0, 1] with its 95% interval, or another mean of at most 1.

    See :func:`accuracy` and :func:`mean_score`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    low: float
    high: float
    num_rows: int
    """Rows of the data."""
    unit: str = "row"
    """What is counted, such as ``word``."""
    num_units: int | None = None
    """How many of those there are, where they are no rows."""
    measure: str = Field(default="accuracy", exclude_if=lambda name: name == "accuracy")
    """What it is."""

    @property
    def num_judged(self) -> int:
        """How many answers were right or wrong."""
        return self.num_rows if self.num_units is None else self.num_units

    @property
    def counted(self) -> str:
        """Such as ``1000 rows`` or ``20184 words in 1000 rows``."""
        rows = plural(self.num_rows, "row")
        return rows if self.num_units is None else f"{plural(self.num_units, self.unit)} in {rows}"

    def __str__(self) -> str:
        """Such as ``93.8% (92.1 to 95.1, 1000 rows)``."""
        return (
            f"{100 * self.value:.1f}% ({100 * self.low:.1f} to {100 * self.high:.1f}, "
            f"{self.counted})"
        )


def accuracy(
    correct: NDArray[np.bool_], rows: NDArray[np.int64] | None = None, *, unit: str = "row"
) -> Accuracy:
    """Share of right answers with its 95% interval.

    That is Wilson's; where several units come from one row, of the effective sample: hits and count
    are divided by the design effect (Rao and Scott, "A simple method for the analysis of clustered
    binary data", Biometrics 48, 1992).

    Args:
        correct: (M,) whether each unit is right; M >= 1.
        rows: (M,) the row of the data that each belongs to; None where each is one.
        unit: What is counted, such as ``word``.
    """
    hits, count, num_rows, effect = int(correct.sum()), len(correct), len(correct), 1.0
    if rows is not None:
        (rows, answers), counts = count_equal((rows, correct))
        num_rows = len(np.unique(rows))
        effect = design_effect(answers, rows, counts)
    low, high = wilson_interval(hits / effect, count / effect)
    by_row = unit == "row"
    return Accuracy(
        value=hits / count,
        low=low,
        high=high,
        num_rows=num_rows,
        unit=unit,
        num_units=None if by_row else count,
    )


def mean_score(values: NDArray[np.floating], *, measure: str) -> Accuracy:
    """The mean of one value a row, with its 95% interval; see :func:`resampled_ratios`.

    Args:
        values: (M,) at most 1 each; M >= 1.
        measure: What the mean is called.
    """
    return ratio_score(values, np.ones(len(values)), measure=measure)


def ratio_score(numerators: NDArray[Any], denominators: NDArray[Any], *, measure: str) -> Accuracy:
    """The ratio of two sums over rows, with its 95% interval; see :func:`resampled_ratios`.

    Args:
        numerators: (M,) at most the denominators; M >= 1.
        denominators: (M,) at least 0.
        measure: What the ratio is called.
    """
    low, high = np.percentile(resampled_ratios(numerators, denominators), [2.5, 97.5])
    return Accuracy(
        value=float(numerators.sum() / max(denominators.sum(), 1)),
        low=float(low),
        high=float(high),
        num_rows=len(numerators),
        measure=measure,
    )


def resampled_ratios(numerators: NDArray[Any], denominators: NDArray[Any]) -> NDArray[np.float64]:
    """The ratio of two sums over as many rows, drawn with replacement 1000 times.

    They are always the same ones: Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    section 13.3.

    Args:
        numerators: (M,) one a row; M >= 1.
        denominators: (M,) at least 0; a sum of less than 1 counts as 1.
    """
    generator = np.random.default_rng(0)
    count = len(numerators)
    found = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, count, size=count)
        found.append(numerators[drawn].sum() / max(denominators[drawn].sum(), 1))
    return np.array(found)


def count_equal(
    columns: Sequence[NDArray[Any]],
) -> tuple[tuple[NDArray[np.int64], ...], NDArray[np.int64]]:
    """The different lines of a table, in ascending order, and how often each is there.

    What is said of the units of a row follows from these, and images have millions of units.

    Args:
        columns: (M,) whole numbers from 0 each, or booleans; M >= 1.

    Returns:
        The columns, (L,) each, and the counts, (L,).
    """
    sizes = [int(each.max()) + 1 for each in columns]
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for start in range(0, len(columns[0]), _CHUNK):
        codes: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        for column, size in zip(columns, sizes, strict=True):
            codes = codes * size + column[start : start + _CHUNK]
        found.append(np.unique(codes, return_counts=True))
    lines, places = np.unique(np.concatenate([each for each, _ in found]), return_inverse=True)
    counts = np.zeros(len(lines), dtype=np.int64)
    np.add.at(counts, places, np.concatenate([each for _, each in found]))
    parts = np.unravel_index(lines, sizes)
    return tuple(each.astype(np.int64) for each in parts), counts


def design_effect(
    values: NDArray[Any],
    rows: NDArray[np.int64] | None,
    counts: NDArray[np.int64] | None = None,
) -> float:
    """How many times as large the variance of a mean is as if all units were independent.

    Units of one row tend to be right or wrong together, and what is drawn at random is rows. The
    variance of the mean, a ratio of two sums over rows, is that of its linear form, n / (n - 1)
    times the sum over the n rows of (sum of the residuals of a row) squared, over M squared (Rao
    and Scott, 1992, section 2). It is divided by that of M independent units.

    Args:
        values: (M,) of each unit.
        rows: (M,) the row that each belongs to; None where each is one.
        counts: (M,) how many units each stands for; None where it is one.

    Returns:
        At least 1, and exactly 1 where each row has one unit. Where no value differs, the mean
        number of units a row: then nothing tells that units of one row differ at all.
    """
    if rows is None:
        return 1.0
    weights = np.ones(len(rows), dtype=np.int64) if counts is None else counts
    total = int(weights.sum())
    names, places = np.unique(rows, return_inverse=True)
    if len(names) == total:
        return 1.0
    residuals = values - np.average(values, weights=weights)
    independent = float((weights * np.square(residuals)).sum())
    if independent == 0 or len(names) == 1:
        return total / len(names)
    by_row = np.bincount(places, weights=weights * residuals)
    clustered = len(names) / (len(names) - 1) * float(np.square(by_row).sum())
    return max(1.0, clustered / independent)


def perplexity(losses: NDArray[np.floating]) -> float:
    """Exponential of the mean cross-entropy.

    Args:
        losses: (M,) in nats; M >= 1.
    """
    return float(np.exp(losses.mean(dtype=np.float64)))


def wilson_interval(hits: float, count: float, z: float = Z_95) -> tuple[float, float]:
    """Interval of a proportion that holds near 0 and 1 and for small samples (Wilson, 1927)."""
    share = hits / count
    center = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    low, high = (center - spread) / scale, (center + spread) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding must not leave it out


def resamples(count: int) -> Iterator[NDArray[np.float32]]:
    """How often each row is drawn in 1000 bootstrap samples, always the same, (B, count) a time."""
    if count * RESAMPLES <= _CELLS:
        yield _drawn(count)
        return
    generator = np.random.default_rng(0)
    step = max(1, _CELLS // count)
    for start in range(0, RESAMPLES, step):
        yield _draw(generator, min(step, RESAMPLES - start), count)


@functools.lru_cache(maxsize=4)
def _drawn(count: int) -> NDArray[np.float32]:
    return _draw(np.random.default_rng(0), RESAMPLES, count)


def _draw(generator: np.random.Generator, size: int, count: int) -> NDArray[np.float32]:
    drawn = generator.integers(0, count, size=(size, count))
    drawn += np.arange(size)[:, None] * count
    counts = np.bincount(drawn.ravel(), minlength=size * count)
    return counts.reshape(size, count).astype(np.float32)
