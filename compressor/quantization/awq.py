"""AWQ: give the channels that matter more of the grid, before weights are rounded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.onnx_io import Graph
from compressor.quantization.groups import quantize_groups, restore_groups
from compressor.quantization.observe import observe
from compressor.quantization.scaling import readers_of, scale_channels
from targets.signature import Arrays

__all__ = ["salience_factors", "scale_salient"]

_EXPONENTS = tuple(np.linspace(0.1, 1.0, 10))
_SMALLEST = 1e-5

Array = NDArray[np.float32]


def scale_salient(
    model: onnx.ModelProto,
    batches: Iterable[Arrays],
    *,
    size: int,
    fits: Callable[[Graph, onnx.NodeProto], bool],
    exclude: Collection[str] = (),
    threads: int = 1,
) -> onnx.ModelProto:
    """Scale weights up where their inputs are large, and the inputs down.

    Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
    MLSys 2024. As there, factors are a power of the mean magnitude of a channel, and the power is
    the one of a grid under which the outputs change least. Unlike there, nothing is folded into the
    product in front: what no normalisation takes is one multiplication of the inputs.

    Args:
        model: A float model with named nodes; stays as it is.
        batches: Calibration inputs, by name.
        size: Inputs of a group; see `quantize_groups`.
        fits: Whether the weights of a product will have 4 bits.
        exclude: Names of nodes to leave out.
        threads: CPU threads to calibrate with.
    """
    graph = Graph(model)
    readers = {
        tensor: nodes
        for tensor, nodes in readers_of(graph, exclude).items()
        if all(fits(graph, node) for node in nodes)
    }
    observed = observe(model, batches, samples=list(readers), threads=threads)
    factors = {}
    for tensor, nodes in readers.items():
        weights = [graph.weight(node.input[1]) for node in nodes]
        found = salience_factors(observed.samples[tensor], weights, size=size)
        if found is not None:
            factors[tensor] = found
    return scale_channels(model, factors, exclude=exclude)


def salience_factors(inputs: Array, weights: Sequence[Array], *, size: int) -> Array | None:
    """What to divide the inputs of products by, so that their rounded weights change least.

    Args:
        inputs: Some that were seen, (S, K).
        weights: Of all products that read them, (K, N) each.
        size: Inputs of a group.

    Returns:
        (K,) positive; None where nothing is gained.
    """
    magnitudes = np.maximum(np.abs(inputs).mean(axis=0, dtype=np.float64), _SMALLEST)
    tried = []
    for exponent in _EXPONENTS:
        powers = magnitudes**exponent
        factors = (powers / np.sqrt(powers.max() * powers.min())).astype(np.float32)
        tried.append((_error(inputs, weights, factors, size=size, rounds=0), factors))
    _, best = min(tried, key=lambda each: each[0])
    none = np.ones_like(best)
    gained = _error(inputs, weights, best, size=size) < _error(inputs, weights, none, size=size)
    return best if gained else None


def _error(
    inputs: Array, weights: Sequence[Array], factors: Array, *, size: int, rounds: int | None = None
) -> float:
    """The squared change of the outputs by rounding."""
    error = 0.0
    for weight in weights:
        scaled = weight * factors[:, None]
        rounded = restore_groups(*quantize_groups(scaled, size=size, rounds=rounds))
        change = inputs @ ((rounded - scaled) / factors[:, None])
        error += float((change.astype(np.float64) ** 2).sum())
    return error
