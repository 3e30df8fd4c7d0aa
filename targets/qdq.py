"""Rewrite portable Q/DQ models into forms that one runtime runs faster, with the same results.

Works on ``onnx.ModelProto`` objects; onnx is imported when a function is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from targets.onnx_files import copied

if TYPE_CHECKING:
    import onnx

__all__ = [
    "activations_to_int8",
    "activations_to_uint8",
    "can_saturate",
    "gather_before_dequantize",
    "has_int8_weights",
    "join_as_floats",
    "narrow_weights",
    "quantizes_activations",
]

_UINT8_ZERO = 128
_SAFE_WEIGHT = 64
"""Two products of an uint8 and weights up to this fit into 16 bits: 2 * 255 * 64 < 32768."""
_NARROW_LEVELS = 63
_WIDE_LEVELS = 127
_MOVES = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_MATRIX_OPS = frozenset({"Conv", "ConvInteger", "Gemm", "MatMul", "MatMulInteger"})


def quantizes_activations(model: onnx.ModelProto) -> bool:
    """Whether the model quantizes values while it runs, not only its constants."""
    kinds = {"DynamicQuantizeLinear", "QuantizeLinear"}
    return any(node.op_type in kinds for node in model.graph.node)


def has_int8_weights(model: onnx.ModelProto) -> bool:
    """Whether constants are stored as int8."""
    from onnx import TensorProto

    return any(
        tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1
        for tensor in model.graph.initializer
    )


def can_saturate(model: onnx.ModelProto) -> bool:
    """Whether sums of int8 products can leave the 16 bits that CPUs without VNNI add them in."""
    from onnx import numpy_helper

    return any(
        int(np.abs(numpy_helper.to_array(tensor).astype(np.int16)).max(initial=0)) > _SAFE_WEIGHT
        for tensor in _matrix_weights(model)
    )


def narrow_weights(model: onnx.ModelProto) -> int:
    """Round int8 weights of matrix products to 7 bits and widen their scales, in place.

    The weights lose one bit, and the sums of their products can no longer leave 16 bits.

    Args:
        model: Is changed.

    Returns:
        How many weights were narrowed; those that were narrow already are left alone.
    """
    from onnx import numpy_helper

    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    count = 0
    done: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or not _feeds_matrix(model, node.output[0]):
            continue
        weight, scale = initializers.get(node.input[0]), initializers.get(node.input[1])
        if weight is None or scale is None or node.input[0] in done:
            continue
        values = numpy_helper.to_array(weight).astype(np.float32)
        if values.ndim < 2 or np.abs(values).max(initial=0) <= _SAFE_WEIGHT:
            continue
        ratio = np.float32(_NARROW_LEVELS / _WIDE_LEVELS)
        narrow = np.clip(np.rint(values * ratio), -_NARROW_LEVELS, _NARROW_LEVELS)
        weight.CopyFrom(numpy_helper.from_array(narrow.astype(np.int8), weight.name))
        widened = numpy_helper.to_array(scale) / ratio
        scale.CopyFrom(numpy_helper.from_array(widened.astype(np.float32), scale.name))
        done.add(node.input[0])
        count += 1
    return count


def _feeds_matrix(model: onnx.ModelProto, name: str) -> bool:
    return any(node.op_type in _MATRIX_OPS and name in node.input for node in model.graph.node)


def _matrix_weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Int8 constants that matrix products read, directly or dequantized."""
    from onnx import TensorProto

    read = {name for node in model.graph.node if node.op_type in _MATRIX_OPS for name in node.input}
    read |= {
        node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.output[0] in read
    }
    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.name in read and tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1
    ]


def activations_to_uint8(model: onnx.ModelProto) -> int:
    """Turn int8 activations with zero point 0 into uint8 ones with zero point 128, in place.

    The scale stays, and with it every value on the grid, but for -128, which symmetric int8 never
    uses on purpose: the results are the same bits. ONNX Runtime on x86-64 has fast kernels only for
    uint8 activations times int8 weights. Weights stay int8.

    Args:
        model: Is changed.

    Returns:
        How many ``QuantizeLinear`` nodes were turned.
    """
    from onnx import TensorProto, numpy_helper

    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    recoded: set[str] = set()
    zero_points: dict[str, str] = {}

    def uint8_zero(name: str) -> str:
        if name not in zero_points:
            shape = tuple(initializers[name].dims)
            zero_points[name] = f"{name}_uint8"
            value = np.full(shape, _UINT8_ZERO, np.uint8)
            model.graph.initializer.append(numpy_helper.from_array(value, zero_points[name]))
        return zero_points[name]

    def is_int8_zero(name: str) -> bool:
        tensor = initializers.get(name)
        if tensor is None:
            return False
        value = numpy_helper.to_array(tensor)
        return bool(value.dtype == np.int8 and not value.any())

    count = 0
    for node in model.graph.node:
        if len(node.input) < 3 or not is_int8_zero(node.input[2]):
            continue
        if node.op_type == "QuantizeLinear" and node.input[0] not in initializers:
            recoded.add(node.output[0])
            count += 1
        elif not (node.op_type == "DequantizeLinear" and node.input[0] in recoded):
            continue
        node.input[2] = uint8_zero(node.input[2])
    for value in model.graph.value_info:  # the shapes stay: runtimes need them to fuse
        if value.name in recoded:
            value.type.tensor_type.elem_type = TensorProto.UINT8
    return count


def activations_to_int8(model: onnx.ModelProto) -> int:
    """Turn uint8 activations into symmetric int8 ones whose range covers theirs, in place.

    For runtimes that take no other zero point than 0. The steps become up to twice as large.

    Args:
        model: Is changed.

    Returns:
        How many ``QuantizeLinear`` nodes were turned.
    """
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    recoded: dict[str, list[str]] = {}  # what was quantized -> its new scale and zero point
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants or len(node.input) < 3:
            continue
        given = [constants.get(name) for name in node.input[1:]]
        if None in given:
            continue
        scale, zero = (numpy_helper.to_array(each) for each in given)
        if zero.dtype != np.uint8 or zero.size != 1:
            continue
        largest = max(float(zero), 255 - float(zero)) * float(scale)
        names = [f"{node.output[0]}_{part}" for part in ("int8_scale", "int8_zero_point")]
        for name, value in zip(names, (np.float32(largest / 127), np.int8(0)), strict=True):
            array = np.asarray(value).reshape(scale.shape)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        recoded[node.output[0]] = names
        node.input[1], node.input[2] = names
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in recoded:
            node.input[1], node.input[2] = recoded[node.input[0]]
    for value in model.graph.value_info:
        if value.name in recoded:
            value.type.tensor_type.elem_type = TensorProto.INT8
    return len(recoded)


def gather_before_dequantize(model: onnx.ModelProto) -> int:
    """Look rows up in the int8 table and dequantize those, not the whole table, in place.

    A dequantized row is the integers times the scale of the row, or of all rows; both orders give
    the same bits. A runtime that keeps ``DequantizeLinear`` as it is would restore the whole table
    at every run, and one that folds it would hold the table as floats.

    Args:
        model: Is changed.

    Returns:
        How many tables were turned.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    tables: dict[str, tuple[str, str, bool]] = {}
    for node in graph.node:
        if _is_row_dequantize(node, initializers, readers):
            scales, column = numpy_helper.to_array(initializers[node.input[1]]), node.input[1]
            if scales.ndim:
                column = f"{column}_column"
                graph.initializer.append(numpy_helper.from_array(scales[:, None].copy(), column))
            tables[node.output[0]] = (node.input[0], column, bool(scales.ndim))
            continue
        if node.input and node.op_type == "Gather" and node.input[0] in tables:
            table, scale, by_rows = tables[node.input[0]]
            output, indices = node.output[0], node.input[1]
            parts = [f"{output}_{part}" for part in ("int8", "float", "row_scale")]
            nodes += [
                helper.make_node("Gather", [table, indices], [parts[0]], f"{node.name}_rows"),
                helper.make_node(
                    "Cast", [parts[0]], [parts[1]], f"{node.name}_cast", to=TensorProto.FLOAT
                ),
            ]
            if by_rows:
                nodes.append(
                    helper.make_node("Gather", [scale, indices], [parts[2]], f"{node.name}_scales")
                )
                scale = parts[2]
            nodes.append(helper.make_node("Mul", [parts[1], scale], [output], f"{node.name}_scale"))
            continue
        nodes.append(node)
    if tables:
        copies = [copied(node) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    return len(tables)


def join_as_floats(model: onnx.ModelProto) -> int:
    """Quantize no values that are joined with some that stay float, in place.

    Such as what a convolution makes of the patches of an image, beside the class token. OpenVINO
    (2026.4) carries the scale of those that are quantized over to the others: answers are far off.
    No kernel reads what is joined as integers anyway.

    Args:
        model: Is changed.

    Returns:
        How many pairs of ``QuantizeLinear`` and ``DequantizeLinear`` were passed by.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    passed: set[str] = set()  # what the pairs give
    for node in graph.node:
        if node.op_type != "Concat":
            continue
        pairs = [_pair_behind(makers, node, place) for place in range(len(node.input))]
        if all(pairs):
            continue
        for pair in filter(None, pairs):
            reader, place, quantize = pair
            passed.add(reader.input[place])
            reader.input[place] = quantize.input[0]
    for name in passed:
        dequantize = makers[name]
        for node in (dequantize, makers[dequantize.input[0]]):
            if not _is_read(graph, node):
                graph.node.remove(node)
    return len(passed)


def _is_read(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    read = {name for each in graph.node for name in each.input}
    read |= {output.name for output in graph.output}
    return not read.isdisjoint(node.output)


def _pair_behind(
    makers: dict[str, onnx.NodeProto], reader: onnx.NodeProto, place: int
) -> tuple[onnx.NodeProto, int, onnx.NodeProto] | None:
    """The quantization of an input of a node, but for what moves values about.

    Returns:
        Who reads what was dequantized, as which of its inputs, and the ``QuantizeLinear``.
    """
    maker = makers.get(reader.input[place])
    while maker is not None and maker.op_type in _MOVES:
        reader, place, maker = maker, 0, makers.get(maker.input[0])
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    quantize = makers.get(maker.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    return reader, place, quantize


def _is_row_dequantize(
    node: onnx.NodeProto,
    initializers: dict[str, onnx.TensorProto],
    readers: dict[str, list[onnx.NodeProto]],
) -> bool:
    """Whether a node dequantizes a symmetric table, and row look-ups alone read it.

    It has a scale for each row, or one for all.
    """
    from onnx import TensorProto, numpy_helper

    if node.op_type != "DequantizeLinear" or not set(node.input) <= set(initializers):
        return False
    table, scale = initializers[node.input[0]], initializers[node.input[1]]
    axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
    if table.data_type != TensorProto.INT8 or scale.data_type != TensorProto.FLOAT:
        return False
    by_rows = axis in (0, -2) and list(scale.dims) == [table.dims[0]]
    if len(table.dims) != 2 or not (by_rows or not scale.dims):
        return False
    if len(node.input) > 2 and numpy_helper.to_array(initializers[node.input[2]]).any():
        return False
    return all(
        reader.op_type == "Gather"
        and all(each.name != "axis" or each.i == 0 for each in reader.attribute)
        and node.output[0] not in list(reader.input)[1:]
        for reader in readers.get(node.output[0], ())
    )
