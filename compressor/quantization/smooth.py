"""SmoothQuant: move the outliers of activations into the weights, where they do less harm."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.onnx_io import Graph
from compressor.quantization.observe import observe
from compressor.quantization.scaling import readers_of, scale_channels
from targets.signature import Arrays

__all__ = ["smooth", "smoothing_factors"]

_SMALLEST = 1e-5


def smooth(
    model: onnx.ModelProto,
    batches: Iterable[Arrays],
    *,
    strength: float,
    exclude: Collection[str] = (),
    threads: int = 1,
) -> onnx.ModelProto:
    """Scale the inputs of matrix products down and their weights up, channel by channel.

    Products that read one tensor share one set of factors; see
    :func:`compressor.quantization.scaling.scale_channels`.

    Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models", ICML 2023.

    Args:
        model: A float model with named nodes; stays as it is.
        batches: Calibration inputs, by name.
        strength: In [0, 1]; 0 leaves all difficulty in the activations, 1 moves it to the weights.
        exclude: Names of nodes to leave out.
        threads: CPU threads to calibrate with.
    """
    graph = Graph(model)
    readers = readers_of(graph, exclude)
    observed = observe(model, batches, channel_maxima=list(readers), threads=threads)
    factors = {}
    for tensor, nodes in readers.items():
        weights = [np.abs(graph.weight(node.input[1])).max(1) for node in nodes]
        maxima = observed.channel_maxima[tensor]
        factors[tensor] = smoothing_factors(maxima, np.max(weights, axis=0), strength)
    return scale_channels(model, factors, exclude=exclude)


def smoothing_factors(
    activation_maxima: NDArray[np.float32], weight_maxima: NDArray[np.float32], strength: float
) -> NDArray[np.float32]:
    """Factors that activations are divided and weights multiplied by.

    Args:
        activation_maxima: (K,) largest magnitude in each channel.
        weight_maxima: (K,) largest magnitude in each row of all weights that read the channel.
        strength: In [0, 1].

    Returns:
        (K,) positive; 1 for channels in which nothing was seen.
    """
    activations = np.maximum(activation_maxima.astype(np.float64), _SMALLEST)
    weights = np.maximum(weight_maxima.astype(np.float64), _SMALLEST)
    factors = activations**strength / weights ** (1 - strength)
    seen = (activation_maxima > _SMALLEST) & (weight_maxima > _SMALLEST)
    return np.where(seen, factors, 1.0).astype(np.float32)
