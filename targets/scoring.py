"""How good predictions are: accuracy with its interval. Pure functions over arrays."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

__all__ = ["Z_95", "Accuracy", "accuracy", "wilson_interval"]

Z_95 = 1.959963984540054  # standard normal quantile for a two-sided 95% interval


class Accuracy(BaseModel):
    """Share of right answers in [0, 1] with its 95% Wilson interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    low: float
    high: float
    num_rows: int

    def __str__(self) -> str:
        """Such as ``93.8% (92.1 to 95.1, 1000 rows)``."""
        return (
            f"{100 * self.value:.1f}% ({100 * self.low:.1f} to {100 * self.high:.1f}, "
            f"{self.num_rows} rows)"
        )


def accuracy(correct: NDArray[np.bool_]) -> Accuracy:
    """Share of right answers with its 95% interval.

    Args:
        correct: (N,) whether each row is right; N >= 1.
    """
    hits, count = int(correct.sum()), len(correct)
    low, high = wilson_interval(hits, count)
    return Accuracy(value=hits / count, low=low, high=high, num_rows=count)


def wilson_interval(hits: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of a proportion that holds near 0 and 1 and for small samples (Wilson, 1927)."""
    share = hits / count
    center = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    low, high = (center - spread) / scale, (center + spread) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding must not leave it out
