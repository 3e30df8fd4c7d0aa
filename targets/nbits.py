"""Products with weights alone as integers, in the operator for which ONNX Runtime has kernels.

Works on ``onnx.ModelProto`` objects; onnx is imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from targets.onnx_files import drop_unread_constants

if TYPE_CHECKING:
    import onnx

__all__ = ["multiply_by_integers"]

_DOMAIN = "com.microsoft"
_CENTRES = {4: 8, 8: 128}
"""Bits -> what is added to integers around 0; the operator takes it off again."""
_CHANNEL_BLOCK = 32
"""Inputs of a block where all of a channel share a scale: the operator wants blocks."""
_BY_INTEGERS = 4
"""Accuracy level: the inputs of a block are rounded to 8 bits, and integers are multiplied."""


def multiply_by_integers(model: onnx.ModelProto) -> int:
    """Multiply by the integers of weights, and not by the floats that they stand for, in place.

    ``DequantizeLinear`` and ``MatMul`` become ``MatMulNBits``, where the weight is a constant of 4
    bits with scales of groups, or of 8 with a scale for each output channel. What it reads is
    rounded to 8 bits inside of it, with a scale for each block. A table of 8 bits that is such a
    weight as well, of tokens that are read and written, is kept once.

    Args:
        model: Is changed.

    Returns:
        How many products were turned.
    """
    from onnx import helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    packed: dict[str, tuple[list[str], dict[str, int]] | None] = {}
    count = 0
    for node in graph.node:
        maker = makers.get(node.input[1]) if node.op_type == "MatMul" else None
        if maker is None:
            continue
        weight = maker.output[0]
        if weight not in packed:
            packed[weight] = _packed(graph, maker, constants)
        found = packed[weight]
        if found is None:
            continue
        names, sizes = found
        turned = helper.make_node(
            "MatMulNBits",
            [node.input[0], *names],
            list(node.output),
            node.name,
            domain=_DOMAIN,
            accuracy_level=_BY_INTEGERS,
            **sizes,
        )
        node.CopyFrom(turned)
        count += 1
    if count:
        if all(each.domain != _DOMAIN for each in model.opset_import):
            model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        _share_tables(graph, {found[0][0] for found in packed.values() if found is not None})
        _drop_unread(graph, packed)
    return count


def _packed(
    graph: onnx.GraphProto, maker: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> tuple[list[str], dict[str, int]] | None:
    """Add a weight as ``MatMulNBits`` reads it; None where it is of another form.

    Returns:
        The names of the integers and of the scales, and the attributes of the operator.
    """
    from onnx import TensorProto, helper, numpy_helper

    given = [constants[name] for name in maker.input if name in constants]
    if len(given) < len(maker.input):
        return None
    stored, scale, *zero = (numpy_helper.to_array(each) for each in given)
    attributes: dict[str, Any] = {
        each.name: helper.get_attribute_value(each) for each in maker.attribute
    }
    axis = attributes.get("axis", 1)
    if stored.ndim != 2 or any(each.any() for each in zero):
        return None
    if given[0].data_type == TensorProto.INT4 and attributes.get("block_size") and axis == 0:
        bits, block = 4, int(attributes["block_size"])
    elif given[0].data_type == TensorProto.INT8 and scale.ndim == 1 and axis == 1:
        bits, block = 8, _CHANNEL_BLOCK
        scale = np.repeat(scale[None], -(-len(stored) // block), axis=0)
    else:
        return None
    names = [f"{maker.output[0]}_{part}" for part in ("blocks", "block_scales")]
    arrays = (_blocks(stored, block, bits), np.ascontiguousarray(scale.T).reshape(-1))
    for name, array in zip(names, arrays, strict=True):
        graph.initializer.append(numpy_helper.from_array(array, name))
    inputs, outputs = stored.shape
    return names, {"K": inputs, "N": outputs, "bits": bits, "block_size": block}


def _blocks(stored: NDArray[Any], block: int, bits: int) -> NDArray[np.uint8]:
    """Integers as the operator has them: (outputs, blocks, bytes of a block).

    Args:
        stored: Around 0, (inputs, outputs); the last block is filled up with zeros.
        block: Inputs of a block.
        bits: 4 or 8; two integers of 4 bits share a byte, the first one in its lower half.
    """
    inputs, outputs = stored.shape
    number = -(-inputs // block)
    whole = np.full((outputs, number * block), _CENTRES[bits], dtype=np.uint8)
    whole[:, :inputs] = (stored.T.astype(np.int16) + _CENTRES[bits]).astype(np.uint8)
    if bits == 4:
        whole = whole[:, 0::2] | (whole[:, 1::2] << 4)
    return np.ascontiguousarray(whole.reshape(outputs, number, -1))


def _share_tables(graph: onnx.GraphProto, blocks: Collection[str]) -> None:
    """Look rows up in the integers of a product, where they are those of the table, in place.

    The blocks of an output channel stand side by side, as the values of a row of the table do.

    Args:
        graph: Its look-ups are those of `targets.qdq.gather_before_dequantize`.
        blocks: Names of the integers of products.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input}
    for index in range(len(graph.node) - 1, -1, -1):
        gather = graph.node[index]
        if gather.op_type != "Gather" or gather.input[1] not in ranks:
            continue
        table = constants.get(gather.input[0])
        same = next((name for name in blocks if _are_rows(constants[name], table)), None)
        casts = [node for node in graph.node if gather.output[0] in node.input]
        if table is None or same is None or any(node.op_type != "Cast" for node in casts):
            continue
        rows, parts = gather.output[0], f"{gather.output[0]}_blocks"
        given = {
            f"{rows}_shape": np.array([0] * ranks[gather.input[1]] + [-1], np.int64),
            f"{rows}_unit": np.array(1, np.float32),
            f"{rows}_centre": np.array(_CENTRES[8], np.uint8),
        }
        shape, *grid = given
        graph.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in given.items()
        )
        for cast in casts:
            cast.CopyFrom(
                helper.make_node("DequantizeLinear", [rows, *grid], list(cast.output), cast.name)
            )
        gather.input[0], gather.output[0] = same, parts
        graph.node.insert(
            index + 1, helper.make_node("Reshape", [parts, shape], [rows], f"{gather.name}_joined")
        )


def _are_rows(blocks: onnx.TensorProto, table: onnx.TensorProto | None) -> bool:
    """Whether blocks of 8 bits hold the integers of a table of int8, row by row."""
    from onnx import TensorProto, numpy_helper

    if table is None or table.data_type != TensorProto.INT8 or len(table.dims) != 2:
        return False
    rows, number, size = blocks.dims
    if list(table.dims) != [rows, number * size]:
        return False
    stored = numpy_helper.to_array(table).view(np.uint8) ^ np.uint8(_CENTRES[8])
    return bool(np.array_equal(stored, numpy_helper.to_array(blocks).reshape(stored.shape)))


def _drop_unread(graph: onnx.GraphProto, turned: Collection[str]) -> None:
    """Remove weights in their old form, where nothing reads them any more."""
    read = {name for node in graph.node for name in node.input}
    for index in range(len(graph.node) - 1, -1, -1):
        name = graph.node[index].output[0]
        if name in turned and name not in read:
            del graph.node[index]
    drop_unread_constants(graph)
