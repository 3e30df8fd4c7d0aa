"""What each structure of an encoder costs on a target: measured there, at its final precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from targets.shapes import LayerShape

__all__ = ["LatencyTable", "Probe", "fit_table", "probe_shapes"]


class Probe(BaseModel):
    """One model that was timed."""

    model_config = ConfigDict(frozen=True)

    layers: tuple[LayerShape, ...]
    """Its layers; empty for the embeddings and the head alone."""
    median_ms: float = Field(gt=0)
    low_ms: float = Field(gt=0)
    high_ms: float = Field(gt=0)
    """95% interval of the median."""


class LatencyTable(BaseModel):
    """Time of one run as a sum over the structures of a model.

    In the way of Kurtic et al., "ZipLM: Inference-Aware Structured Pruning of Language Models",
    2023: a table of attention by heads and of the feed-forward part by width. Here the entries come
    from whole models, so that what a runtime fuses or overlaps is in them.
    """

    model_config = ConfigDict(frozen=True)

    target: str
    variant: str
    """The way into the precision, such as ``int8-dynamic``: of those that the target runs the
    fastest."""
    precision: str
    batch_size: int
    sequence_length: int
    threads: int
    base_ms: float
    """Of everything but the layers."""
    attention_ms: Mapping[int, float]
    """Heads of a layer -> time of its attention."""
    ffn_ms: Mapping[int, float]
    """Width of a layer -> time of its feed-forward part."""
    probes: tuple[Probe, ...]
    """What was measured."""

    def layer_ms(self, layer: LayerShape) -> float:
        """Time of one layer, in ms; between measured sizes it is interpolated."""
        return _between(self.attention_ms, layer.num_heads) + _between(self.ffn_ms, layer.ffn_width)

    def predict(self, layers: Sequence[LayerShape]) -> float:
        """Time of one run of a model with these layers, in ms."""
        return self.base_ms + sum(map(self.layer_ms, layers))

    @property
    def error(self) -> float:
        """Largest relative difference between a probe and what the table says of it."""
        return max(abs(self.predict(each.layers) / each.median_ms - 1) for each in self.probes)


def probe_shapes(
    heads: int, ffn: int, *, num_layers: int, multiple: int
) -> tuple[tuple[LayerShape, ...], ...]:
    """The models to time: heads and widths one at a time, and fewer layers for what is constant.

    Args:
        heads: Of a whole layer.
        ffn: Width of a whole layer.
        num_layers: Layers of a probe.
        multiple: Widths are multiples of it.
    """
    head_counts = sorted({max(1, round(heads * share)) for share in (1, 2 / 3, 1 / 2, 1 / 3)})
    head_counts = sorted({*head_counts, *(count for count in (1, 2, 3) if count <= heads)})
    shares = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
    widths = sorted(
        {min(ffn, max(multiple, round(ffn * share / multiple) * multiple)) for share in shares}
    )
    middle = LayerShape(head_counts[len(head_counts) // 2], widths[len(widths) // 2])
    shapes = [LayerShape(count, middle.ffn_width) for count in head_counts]
    shapes += [LayerShape(middle.num_heads, width) for width in widths if width != middle.ffn_width]
    return ((middle,), *((shape,) * num_layers for shape in shapes))


def fit_table(
    probes: Sequence[Probe],
    *,
    target: str,
    variant: str,
    precision: str,
    batch_size: int,
    sequence_length: int,
    threads: int,
) -> LatencyTable:
    """Fit the entries to the probes, so that more heads and wider parts never cost less.

    Least squares of the relative errors. What is constant in a layer cannot be told apart: it is
    shared out between its two parts, whose sum is what counts.
    """
    heads = sorted({layer.num_heads for each in probes for layer in each.layers})
    widths = sorted({layer.ffn_width for each in probes for layer in each.layers})
    # Steps between neighbouring sizes, all of them 0 or more, keep both curves from falling.
    columns = 1 + len(heads) + len(widths)
    matrix = np.zeros((len(probes), columns))
    for row, probe in enumerate(probes):
        matrix[row, 0] = 1
        for layer in probe.layers:
            matrix[row, 1 : 2 + heads.index(layer.num_heads)] += 1
            first = 1 + len(heads)
            matrix[row, first : first + 1 + widths.index(layer.ffn_width)] += 1
    times = np.array([each.median_ms for each in probes])
    found = _non_negative(matrix / times[:, None], np.ones(len(probes)))
    attention = np.cumsum(found[1 : 1 + len(heads)])
    ffn = np.cumsum(found[1 + len(heads) :])
    return LatencyTable(
        target=target,
        variant=variant,
        precision=precision,
        batch_size=batch_size,
        sequence_length=sequence_length,
        threads=threads,
        base_ms=float(found[0]),
        attention_ms=dict(zip(heads, attention.tolist(), strict=True)),
        ffn_ms=dict(zip(widths, ffn.tolist(), strict=True)),
        probes=tuple(probes),
    )


def _non_negative(matrix: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.optimize import nnls

    solution: NDArray[np.float64] = nnls(matrix, wanted)[0]
    return solution


def _between(table: Mapping[int, float], size: int) -> float:
    """Linear between entries; outside of them the nearest one."""
    sizes = sorted(table)
    return float(np.interp(size, sizes, [table[each] for each in sizes]))
