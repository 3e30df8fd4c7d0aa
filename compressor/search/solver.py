"""The shape of a model that keeps the most of its importance within a latency."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from compressor.architecture import Architecture
from compressor.pruning.planning import KeptLayer
from compressor.search.latency import LatencyTable
from targets.shapes import LayerShape

__all__ = ["ImportanceCurves", "Room", "Solution", "shapes_within", "solve"]

NUM_BINS = 1000
"""Steps of latency that the solver tells apart."""
NUM_WIDTHS = 24
"""Widths of a layer that it looks at."""

PRICES = tuple(2.0**power for power in np.arange(-8, 12, 0.5))
"""Of a byte, where a size is limited, as multiples of the mean importance of a byte."""

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

    @property
    def total(self) -> float:
        """What is lost where all layers are."""
        return sum(self.lost(layer, None) for layer in range(len(self.heads)))

    def lost_by(self, kept: Sequence[KeptLayer]) -> float:
        """What is lost where these layers stay."""
        shapes = {each.layer: LayerShape(each.heads, each.ffn) for each in kept}
        return sum(self.lost(layer, shapes.get(layer)) for layer in range(len(self.heads)))

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


@dataclass(frozen=True)
class Room:
    """What the layers of a model may take of a file.

    Attributes:
        max_bytes: All of them together.
        layer_bytes: What one layer takes.
    """

    max_bytes: float
    layer_bytes: Callable[[LayerShape], float]

    def holds(self, kept: Sequence[KeptLayer]) -> bool:
        """Whether there is the room for these layers."""
        return sum(self.layer_bytes(LayerShape(each.heads, each.ffn)) for each in kept) <= (
            self.max_bytes
        )


def solve(
    architecture: Architecture,
    table: LatencyTable,
    curves: ImportanceCurves,
    *,
    limit_ms: float,
    multiple: int = 8,
    layers: Sequence[int] | None = None,
    room: Room | None = None,
) -> dict[int, Solution]:
    """The best shape for each number of layers that can meet the latency.

    A knapsack with one choice a layer: dropped, or some heads and some neurons. Solved by dynamic
    programming over latency in steps of a thousandth of the limit, rounded up, so that no solution
    exceeds it. How many layers are best is left to the caller: how well a model recovers in
    training depends on its depth, and importance does not tell.

    Where the size is limited as well, bytes have a price, the lowest at which the solution fits
    (Lagrangian relaxation): it keeps the most of all shapes that are as small as it is.

    Args:
        architecture: The model as it is.
        table: Of the target.
        curves: Of the model.
        limit_ms: Of a whole run.
        multiple: Widths are multiples of it.
        layers: Those that stay, neither more nor fewer; None leaves that to the solver.
        room: Limits the size of the layers.

    Returns:
        Number of layers -> solution; empty where even one small layer is too slow, or too large.
    """
    find = partial(
        _solve, architecture, table, curves, limit_ms=limit_ms, multiple=multiple, layers=layers
    )
    found = find(lambda _: 0.0)
    if room is None or all(room.holds(each.kept) for each in found.values()):
        return found
    smallest = sorted(
        min(map(room.layer_bytes, shapes_within(each, multiple))) for each in architecture.layers
    )
    mean = curves.total / sum(map(room.layer_bytes, architecture.layers))

    @cache
    def priced(place: int) -> dict[int, Solution]:
        """What is best where a byte has one of the prices."""
        of_byte = PRICES[place] * mean
        return find(lambda shape: of_byte * room.layer_bytes(shape))

    def fits(count: int, place: int) -> bool:
        return count in priced(place) and room.holds(priced(place)[count].kept)

    fitting: dict[int, Solution] = {}
    for count, free in found.items():
        if room.holds(free.kept):
            fitting[count] = free
        elif sum(smallest[:count]) <= room.max_bytes:
            place = bisect_left(range(len(PRICES)), True, key=partial(fits, count))
            if place < len(PRICES):
                fitting[count] = priced(place)[count]
    return fitting


def _solve(
    architecture: Architecture,
    table: LatencyTable,
    curves: ImportanceCurves,
    price: Callable[[LayerShape], float],
    *,
    limit_ms: float,
    multiple: int,
    layers: Sequence[int] | None,
) -> dict[int, Solution]:
    """The same, where a layer of a shape costs as much as it would lose of importance."""
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
        shapes = list(shapes_within(whole, multiple))
        steps = np.ceil([table.layer_ms(each) / room * NUM_BINS - 1e-9 for each in shapes])
        lost = np.array([curves.lost(layer, each) + price(each) for each in shapes])
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
    solutions = {}
    for count in range(1, num_layers + 1):
        end = int(np.argmin(cost[count]))
        if np.isfinite(cost[count, end]):
            kept = _trace(chosen, options, count, end, table, room)
            shape = [LayerShape(each.heads, each.ffn) for each in kept]
            lost_share = curves.lost_by(kept) / (curves.total or 1.0)
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


def shapes_within(whole: LayerShape, multiple: int) -> Iterator[LayerShape]:
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
