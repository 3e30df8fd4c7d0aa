"""The range of an activation that eight bits hold, and how it follows from what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compressor.quantization.histogram import (
    Histogram,
    entropy_threshold,
    percentile_threshold,
)

__all__ = ["Activations", "Calibration", "ClippingRange", "clipping_range"]

Activations = Literal["uint8", "int8"]
Calibration = Literal["search", "minmax", "entropy", "percentile"]

_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ClippingRange:
    """Values from ``low`` to ``high``, 0 among them, on the levels of eight bits.

    Attributes:
        low: At most 0.
        high: At least 0.
        activations: ``uint8``: 256 levels from ``low`` to ``high``, the level of 0 moved to where 0
            is. ``int8``: 255 levels from -t to t, t being the larger magnitude of both; it is what
            TensorRT takes.
    """

    low: float
    high: float
    activations: Activations = "uint8"

    @property
    def scale(self) -> np.float32:
        """Step from level to level; where nothing but zeros was seen, the largest level is 1."""
        levels, width = 255, self.high - self.low
        if self.activations == "int8":
            levels, width = 127, max(-self.low, self.high)
        return np.float32(max(width / levels, _SMALLEST) if width > 0 else 1 / levels)

    @property
    def zero_point(self) -> NDArray[np.generic]:
        """The level of 0, a scalar array of the type of the levels."""
        if self.activations == "int8":
            return np.asarray(np.int8(0))
        return np.asarray(np.uint8(np.clip(np.rint(-self.low / float(self.scale)), 0, 255)))


def clipping_range(
    histogram: Histogram,
    calibration: Calibration,
    *,
    percentile: float,
    activations: Activations = "uint8",
) -> ClippingRange:
    """The range of a tensor: magnitudes above a threshold are clipped, on the side they are on.

    Args:
        histogram: Of its magnitudes, with the smallest and the largest value.
        calibration: Where the threshold lies: ``minmax`` clips nothing, ``entropy`` is that of
            `entropy_threshold`, ``percentile`` that of `percentile_threshold`. (``search`` tries
            percentiles, see `quantize_static`.)
        percentile: In (0, 100].
        activations: See `ClippingRange`.
    """
    if calibration == "entropy":
        threshold = entropy_threshold(histogram)
    else:
        threshold = percentile_threshold(
            histogram, 100.0 if calibration == "minmax" else percentile
        )
    low, high = max(histogram.low, -threshold), min(histogram.high, threshold)
    return ClippingRange(low, high, activations)
