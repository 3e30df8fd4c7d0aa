"""The shape of a model that keeps the most of its importance within a latency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.architecture import Architecture
from compressor.pruning.planning import KeptLayer
from compressor.search.latency import LatencyTable
from targets.shapes import LayerShape

__all__ = ["ImportanceCurves", "Solution", "solve"]

NUM_BINS = 1000
"""Steps of latency that the solver tells apart."""
NUM_WIDTHS = 24
"""Widths of a layer that it looks at."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ImportanceCurves:
    """What is lost of each layer by how much of it stays.

    The importance of units adds up: an estimate that holds for small cuts, and that ranks large
    ones (LeCun et al., "Optimal Brain Damage", 1989; Molchanov et al., 2019).

    Attributes:
        heads: One array a layer; entry n is what is lost with n heads left.
        ffn: The same by neurons.
    """

    heads: tuple[Array, ...]
    ffn: tuple[Array, ...]

    @classmethod
    def of(cls, heads: Sequence[Array], ffn: Sequence[Array]) -> ImportanceCurves:
        """From the scores of all units; see `compressor.pruning.importance.Scores`."""
        return cls(tuple(map(_lost, heads)), tuple(map(_lost, ffn)))

    def lost(self, layer: int, shape: LayerShape | None) -> float:
        """What is lost of a layer that gets a shape; None drops it."""
        heads, width = (0, 0) if shape is None else (shape.num_heads, shape.ffn_width)
        return float(self.heads[layer][heads] + self.ffn[layer][width])


@dataclass(frozen=True)
class Solution:
    """A shape within the latency.

    Attributes:
        kept: The layers that stay, with their sizes.
        latency_ms: What the table says of it.
        lost: Importance that is lost, as a share of all.
    """

    kept: tuple[KeptLayer, ...]
    latency_ms: float
    lost: float


def solve(
    architecture: Architecture,
    table: LatencyTable,
    curves: ImportanceCurves,
    *,
    limit_ms: float,
    multiple: int = 8,
    layers: Sequence[int] | None = None,
) -> dict[int, Solution]:
    """The best shape for each number of layers that can meet the latency.

    A knapsack with one choice a layer: dropped, or some heads and some neurons. Solved by dynamic
    programming over latency in steps of a thousandth of the limit, rounded up, so that no solution
    exceeds it. How many layers are best is left to the caller: how well a model recovers in
    training depends on its depth, and importance does not tell.

    Args:
        architecture: The model as it is.
        table: Of the target.
        curves: Of the model.
        limit_ms: Of a whole run.
        multiple: Widths are multiples of it.
        layers: Those that stay, neither more nor fewer; None leaves that to the solver.

    Returns:
        Number of layers -> solution; empty where even one small layer is too slow.
    """
    room = limit_ms - table.base_ms
    if room <= 0:
        return {}
    num_layers = len(architecture.layers)
    bins = NUM_BINS + 1
    # cost[k, b]: least that is lost by the layers so far, k of them kept, in at most b steps.
    cost = np.full((num_layers + 1, bins), np.inf)
    cost[0, 0] = 0.0
    chosen: list[NDArray[np.int64]] = []
    options: list[list[LayerShape]] = []
    for layer, whole in enumerate(architecture.layers):
        shapes = list(_shapes(whole, multiple))
        steps = np.ceil([table.layer_ms(each) / room * NUM_BINS - 1e-9 for each in shapes])
        lost = np.array([curves.lost(layer, each) for each in shapes])
        best = cost + curves.lost(layer, None)  # dropped
        if layers is not None and layer in layers:
            best = np.full(cost.shape, np.inf)
        which = np.full(cost.shape, -1, dtype=np.int64)
        for index, (step, loss) in enumerate(zip(steps.astype(int), lost, strict=True)):
            if step >= bins or (layers is not None and layer not in layers):
                continue
            found = np.full(cost.shape, np.inf)
            found[1:, step:] = cost[:-1, : bins - step] + loss
            better = found < best
            best[better], which[better] = found[better], index
        cost = best
        chosen.append(which)
        options.append(shapes)
    total = sum(curves.lost(layer, None) for layer in range(num_layers)) or 1.0
    solutions = {}
    for count in range(1, num_layers + 1):
        end = int(np.argmin(cost[count]))
        if np.isfinite(cost[count, end]):
            kept = _trace(chosen, options, count, end, table, room)
            shape = [LayerShape(each.heads, each.ffn) for each in kept]
            lost_share = float(cost[count, end]) / total
            solutions[count] = Solution(kept, table.predict(shape), lost_share)
    return solutions


def _trace(
    chosen: Sequence[NDArray[np.int64]],
    options: Sequence[Sequence[LayerShape]],
    count: int,
    end: int,
    table: LatencyTable,
    room: float,
) -> tuple[KeptLayer, ...]:
    """Walk back from the best end to what was chosen in each layer."""
    kept = []
    for layer in range(len(chosen) - 1, -1, -1):
        index = int(chosen[layer][count, end])
        if index < 0:
            continue
        shape = options[layer][index]
        kept.append(KeptLayer(layer=layer, heads=shape.num_heads, ffn=shape.ffn_width))
        count -= 1
        end -= int(np.ceil(table.layer_ms(shape) / room * NUM_BINS - 1e-9))
    return tuple(reversed(kept))


def _shapes(whole: LayerShape, multiple: int) -> Iterator[LayerShape]:
    """What a layer can be cut to."""
    unit = max(multiple, -(-whole.ffn_width // (NUM_WIDTHS * multiple)) * multiple)
    widths = sorted({*range(unit, whole.ffn_width, unit), whole.ffn_width})
    for heads in range(1, whole.num_heads + 1):
        for width in widths:
            yield LayerShape(heads, width)


def _lost(scores: Array) -> Array:
    """Entry n: the sum of all scores but the n largest."""
    ordered = np.sort(scores)[::-1]
    return np.concatenate([[ordered.sum()], ordered.sum() - np.cumsum(ordered)])
