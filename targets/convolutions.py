"""Convolutions in a form that a runtime computes rightly, with the same results."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["widen_kernels"]

_TILE_BYTES = 64
_GROUP_BYTES = 4
"""Products of AMX are of groups of so many bytes."""
_INT8_BYTES, _FLOAT_BYTES = 1, 2
"""Of a number that is multiplied; floats are where they are bf16."""


def widen_kernels(model: onnx.ModelProto) -> int:
    """Add columns of zeros to kernels that OpenVINO gets wrong on CPUs with AMX, in place.

    There (OpenVINO 2026.4) a convolution whose kernel reads two or more whole tiles of 64 bytes of
    a row, while its channels alone do not fill one, is off by several times what it gives: in int8,
    for example, one of 16 channels and 8 columns, in bf16 one of 16 channels and 4. Convolutions
    of other CPUs are right, so that it would not show where a bundle is built. As much padding as
    there are new columns keeps the results as they are.

    Args:
        model: Is changed. Convolutions with ``auto_pad`` stay as they are.

    Returns:
        How many convolutions were widened.
    """
    import onnx
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    wider: dict[int, onnx.NodeProto] = {}  # place of a convolution -> what dequantizes its weight
    replaced: set[str] = set()
    count = 0
    for place, node in enumerate(graph.node):
        if node.op_type != "Conv":
            continue
        reads, dequantize = (_dequantize(makers.get(name)) for name in node.input[:2])
        weight = constants.get(node.input[1] if dequantize is None else dequantize.input[0])
        settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if weight is None or settings.get("auto_pad", b"NOTSET") != b"NOTSET":
            continue
        extra = _missing_columns(weight.dims, _INT8_BYTES if reads else _FLOAT_BYTES)
        if not extra:
            continue
        count += 1
        values = numpy_helper.to_array(weight)
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, extra)])
        name = f"{node.output[0]}_wide"
        graph.initializer.append(numpy_helper.from_array(values, name))
        replaced |= {node.input[1], weight.name}
        if dequantize is not None:
            wider[place] = copied = onnx.NodeProto()
            copied.CopyFrom(dequantize)
            copied.name, copied.input[0], copied.output[0] = f"{name}_scaled", name, f"{name}_float"
        node.input[1] = name if dequantize is None else f"{name}_float"
        axes = values.ndim - 2
        pads = list(settings.get("pads", [0] * 2 * axes))
        pads[-1] += extra * list(settings.get("dilations", [1] * axes))[-1]
        settings |= {"kernel_shape": list(values.shape[2:]), "pads": pads}
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(*each) for each in settings.items())
    for place, node in sorted(wider.items(), reverse=True):
        graph.node.insert(place, node)
    _drop_unread(graph, replaced)
    return count


def _dequantize(maker: onnx.NodeProto | None) -> onnx.NodeProto | None:
    """A node where it is a ``DequantizeLinear``."""
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _missing_columns(weight: list[int], number_bytes: int) -> int:
    """How many columns a kernel needs more; the sizes are (out, in of a group, *kernel)."""
    channels, width = number_bytes * weight[1], weight[-1]
    return next(
        extra for extra in itertools.count() if not _is_wrong(channels, channels * (width + extra))
    )


def _is_wrong(channel_bytes: int, row_bytes: int) -> bool:
    """Whether a kernel reads too many whole tiles of a row."""
    is_narrow = channel_bytes < _TILE_BYTES and channel_bytes % _GROUP_BYTES == 0
    return is_narrow and row_bytes > _TILE_BYTES and row_bytes % _TILE_BYTES == 0


def _drop_unread(graph: onnx.GraphProto, names: set[str]) -> None:
    """Remove those kernels that nothing reads any more, and what dequantized them."""
    unread = names - {name for node in graph.node for name in node.input}
    for node in [each for each in graph.node if not unread.isdisjoint(each.output)]:
        graph.node.remove(node)
    unread = names - {name for node in graph.node for name in node.input}
    for tensor in [each for each in graph.initializer if each.name in unread]:
        graph.initializer.remove(tensor)
