"""Histograms of magnitudes that grow as data streams in, and the thresholds to clip at.

Memory is a fixed number of bins for each tensor, whatever the amount of calibration data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histogram", "entropy_threshold", "percentile_threshold"]

NUM_BINS = 4096
QUANTIZED_LEVELS = 128
"""Magnitudes that a symmetric int8 can hold: 0 to 127."""


@dataclass(frozen=True)
class Histogram:
    """Counts of ``|x|`` in equal bins over [0, ``limit``].

    ``limit`` is a power of two times the first batch's maximum, so that two neighbouring bins merge
    exactly into one when the range doubles.

    Attributes:
        counts: (NUM_BINS,) int64.
        limit: Upper edge of the last bin; 0 before any value but zero was seen.
        low: Smallest value that was seen, or 0.
        high: Largest value that was seen, or 0.
    """

    counts: NDArray[np.int64]
    limit: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def empty(cls) -> Histogram:
        """A histogram of nothing."""
        return cls(np.zeros(NUM_BINS, np.int64))

    def add(self, values: NDArray[np.floating]) -> Histogram:
        """The histogram of what was seen so far and these values.

        Args:
            values: Array of any shape; finite.
        """
        if values.size == 0:
            return self
        low, high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        magnitudes = np.abs(values).ravel()
        maximum = max(-low, high)
        counts, limit = self.counts, self.limit
        if limit == 0.0:
            # All values so far were zero: they stay in the first bin whatever the limit becomes.
            limit = maximum
        while maximum > limit:
            counts = np.concatenate(
                [counts.reshape(-1, 2).sum(1), np.zeros(NUM_BINS // 2, np.int64)]
            )
            limit *= 2
        if limit == 0.0:
            added = np.zeros(NUM_BINS, np.int64)
            added[0] = magnitudes.size
        else:
            index = (magnitudes * np.float64(NUM_BINS / limit)).astype(np.int64)
            np.minimum(index, NUM_BINS - 1, out=index)
            added = np.bincount(index, minlength=NUM_BINS)
        return Histogram(counts + added, limit, low, high)

    @property
    def maximum(self) -> float:
        """Largest magnitude that was seen."""
        return max(-self.low, self.high)

    @property
    def bin_width(self) -> float:
        """Width of a bin."""
        return self.limit / NUM_BINS


def percentile_threshold(histogram: Histogram, percentile: float) -> float:
    """The magnitude below which ``percentile`` percent of the values lie.

    Args:
        histogram: Of the values.
        percentile: In (0, 100]; 100 clips nothing.
    """
    total = int(histogram.counts.sum())
    if total == 0:
        return 0.0
    reached = np.cumsum(histogram.counts) >= total * percentile / 100
    edge: float = (int(np.argmax(reached)) + 1) * histogram.bin_width
    return min(edge, histogram.maximum)


def entropy_threshold(histogram: Histogram) -> float:
    """The threshold whose quantized distribution differs least from the original one.

    The difference is the Kullback-Leibler divergence between the clipped histogram and its image
    on 128 levels (Migacz, "8-bit Inference with TensorRT", GTC 2017). Differs from it in that the
    clipped mass is kept in the last bin of the reference only, and that every 16th bin edge is a
    candidate, not each one.

    Returns:
        The threshold, at most the largest magnitude.
    """
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1 if histogram.counts.any() else 0
    if used <= QUANTIZED_LEVELS:
        return histogram.maximum
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]  # zeros are exact at every scale, and exact zeros (padding, ReLU) abound
    candidates = [*range(QUANTIZED_LEVELS, used, 16), used]
    divergences = [_divergence(counts, num_bins) for num_bins in candidates]
    best = candidates[int(np.argmin(divergences))]
    threshold: float = min(best * histogram.bin_width, histogram.maximum)
    return threshold


def _divergence(counts: NDArray[np.float64], num_bins: int) -> float:
    """KL divergence of the first ``num_bins`` bins, the rest clipped, from their int8 image."""
    reference = counts[:num_bins].copy()
    reference[-1] += counts[num_bins:].sum()
    levels = np.minimum(np.arange(num_bins) * QUANTIZED_LEVELS // num_bins, QUANTIZED_LEVELS - 1)
    kept = counts[:num_bins]
    occupied = kept > 0
    mass = np.bincount(levels, weights=kept, minlength=QUANTIZED_LEVELS)
    share = np.bincount(levels, weights=occupied, minlength=QUANTIZED_LEVELS)
    image = np.where(occupied, (mass / np.maximum(share, 1))[levels], 0.0)
    total, image_total = reference.sum(), image.sum()
    if image_total == 0.0:
        return float("inf")
    p, q = reference / total, image / image_total
    seen = p > 0
    smallest = 1e-10  # a bin that only clipping filled has no image: a large, finite penalty
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], smallest))))
