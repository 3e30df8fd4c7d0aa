"""Choose which units stay: pure arithmetic on scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["global_counts", "top_units"]

Array = NDArray[np.float64]


def top_units(scores: Array, count: int) -> tuple[int, ...]:
    """The ``count`` highest-scored units, in ascending order; of equal ones, the first."""
    order = np.argsort(-scores, kind="stable")
    return tuple(sorted(int(unit) for unit in order[:count]))


def global_counts(scores: Sequence[Array], total: int, *, multiple: int) -> tuple[int, ...]:
    """How many units each layer keeps when all layers compete for ``total`` places.

    Each layer's units are sorted and cut into blocks of ``multiple``; the blocks with the highest
    mean score win. A layer's first block always stays, so no layer is left with nothing, and every
    count is a multiple of ``multiple`` (or the layer's whole width).

    Args:
        scores: One array a layer, comparable between layers.
        total: Places to give away; the sum of the counts is the largest number of whole blocks
            that fits, or one block a layer where that is more.
        multiple: Units a block.
    """
    counts = [min(multiple, len(layer)) for layer in scores]
    rivals = []
    for index, layer in enumerate(scores):
        ordered = np.sort(layer)[::-1]
        for start in range(multiple, len(ordered), multiple):
            block = ordered[start : start + multiple]
            rivals.append((-float(block.mean()), index, start, len(block)))
    closed: set[int] = set()
    for _, index, _, size in sorted(rivals):
        # A layer's blocks win in order: once one does not fit, the worse ones behind it must wait.
        if index in closed or sum(counts) + size > total:
            closed.add(index)
            continue
        counts[index] += size
    return tuple(counts)
