"""Round weights to int8 with one scale for each channel, and write them into a graph."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.onnx_io import Graph

__all__ = ["WeightBits", "dequantized_weight", "largest_level", "quantize_channels"]

WeightBits = Literal[7, 8]

_VALUES_AT_ONCE = 2**22


def largest_level(bits: WeightBits) -> int:
    """The largest integer that weights are rounded to: 127, or 63 with 7 bits."""
    return 127 if bits == 8 else 63


def quantize_channels(
    weight: NDArray[np.float32],
    *,
    axis: int,
    bits: WeightBits = 8,
    least: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round an array to symmetric int8 with one scale for each index of ``axis``.

    Args:
        weight: Any shape, finite.
        axis: The axis of the channels.
        bits: 8 uses -127 to 127; 7 uses -63 to 63.
        least: The smallest scale of each channel, (weight.shape[axis],).

    Returns:
        The integers, of the same shape, and the scales, (weight.shape[axis],).
    """
    largest = largest_level(bits)
    integers = np.empty(weight.shape, np.int8)
    scales = np.empty(weight.shape[axis], np.float32)
    # Some channels at a time: what is in between would take several times the memory of a table.
    step = max(1, _VALUES_AT_ONCE * weight.shape[axis] // max(weight.size, 1))
    by_channel, rounded = np.moveaxis(weight, axis, 0), np.moveaxis(integers, axis, 0)
    for begin in range(0, len(scales), step):
        part = by_channel[begin : begin + step]
        maxima = np.abs(part).max(axis=tuple(range(1, part.ndim)))
        smallest = np.finfo(np.float32).tiny  # below it a scale loses digits, and then is 0
        found = np.where(maxima > 0, np.maximum(maxima / largest, smallest), 1.0)
        if least is not None:
            found = np.maximum(found, least[begin : begin + step])
        scales[begin : begin + step] = found
        levels = part / scales[begin : begin + step].reshape(-1, *[1] * (part.ndim - 1))
        np.rint(levels, out=levels)
        rounded[begin : begin + step] = np.clip(levels, -largest, largest, out=levels)
    return integers, scales


def dequantized_weight(
    graph: Graph,
    name: str,
    *,
    axis: int,
    bits: WeightBits = 8,
    least: NDArray[np.float32] | None = None,
) -> tuple[onnx.NodeProto, str]:
    """Add an int8 form of a float initializer and the node that turns it back into floats.

    Args:
        graph: The model, which is changed.
        name: The initializer.
        axis: That of its channels.
        bits: See `quantize_channels`.
        least: The same.

    Returns:
        The ``DequantizeLinear`` node, and the name of its output.
    """
    integers, scales = quantize_channels(graph.weight(name), axis=axis, bits=bits, least=least)
    inputs = [
        graph.add_initializer(f"{name}_quantized", integers),
        graph.add_initializer(f"{name}_scale", scales),
        graph.add_initializer(f"{name}_zero_point", np.zeros(scales.shape, np.int8)),
    ]
    output = graph.new_name(f"{name}_dequantized")
    node = onnx.helper.make_node(
        "DequantizeLinear",
        inputs,
        [output],
        name=graph.new_name(f"{name}_DequantizeLinear"),
        axis=axis,
    )
    return node, output
