"""What TensorRT takes of an ONNX model: what it refuses, what is rewritten, what to expect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from targets import onnx_files
from targets.errors import UnsupportedModelError

__all__ = ["expected_products", "load_structure", "offenders", "rewrite", "save", "stored_types"]

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
TRANSPARENT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
"""The builder moves Q/DQ through these."""

REFUSED_OPS = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
REFUSED_TYPES = ("UINT8", "INT16", "UINT16", "INT32", "UINT4")
"""Types that Q/DQ nodes of other runtimes use."""

FLOAT_NAMES = {"FLOAT": "Float", "FLOAT16": "Half", "BFLOAT16": "BFloat16"}
MAX_SMALL_SIZE = 4096
"""Elements of a constant that is read even where the weights are not needed."""


def load_structure(path: Path) -> Any:
    """Load a model without the weights that lie in files of their own, but for the small ones.

    Shapes and axes are constants too: without their values no type behind them can be inferred.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    data = onnx.external_data_helper
    for tensor in model.graph.initializer:
        if data.uses_external_data(tensor) and np.prod(tensor.dims) <= MAX_SMALL_SIZE:
            data.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return model


def save(model: Any, path: Path, *, weights: Path) -> None:
    """Save a model with all its weights; large ones go to a file beside it.

    Args:
        model: As ``load_structure`` gave it; its weights are read into it.
        path: Where to write it.
        weights: Folder with the files that the model's weights lie in.
    """
    import onnx

    onnx.external_data_helper.load_external_data_for_model(model, str(weights))
    onnx_files.save(model, path)


def stored_types(model: Any) -> dict[str, str]:
    """Tensor -> ONNX data type, as far as it can be inferred.

    Raises:
        UnsupportedModelError: A node of the model contradicts its operator's definition.
    """
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError as error:
        raise UnsupportedModelError("the model is not valid ONNX", given=error) from error
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return {name: onnx.TensorProto.DataType.Name(number) for name, number in types.items()}


def offenders(model: Any, folder: Path) -> list[str]:
    """Name what TensorRT does not take.

    Args:
        model: The model, with or without its external weights.
        folder: Where external weights lie.
    """
    types, constants = stored_types(model), _constants(model)
    double = [f"{name} is float64" for name, kind in types.items() if kind == "DOUBLE"]
    double += [
        f"{_name(node)} holds float64"
        for node in _all_nodes(model)
        if "DOUBLE" in _attribute_types(node)
    ]
    local = {function.domain for function in model.functions}
    found = []
    for node in _all_nodes(model):
        label = f"{node.op_type} {_name(node)}"
        if node.domain not in ("", "ai.onnx", *local):
            found.append(f"{label} is of the domain {node.domain}")
        elif node.op_type in REFUSED_OPS or node.op_type.startswith("QLinear"):
            found.append(label)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += [f"{label} {reason}" for reason in _bad_grid(node, types, constants, folder)]
    return found + _bare_tables(model) + double


def rewrite(model: Any, *, bf16: bool) -> list[str]:
    """Put a model, in place, into the form that TensorRT takes; the numbers stay what they are.

    An int8 table has to be dequantized before it is gathered from, not after. For ``bf16``, casts
    are put around each matrix product.

    Returns:
        A line for each thing done.
    """
    notes = []
    moved = [_dequantize_first(model, gather) for gather in _movable_gathers(model)]
    if moved:
        notes.append(f"dequantized before the lookup instead of after it: {', '.join(moved)}")
    if bf16:
        notes.append(f"{_cast_products(model)} matrix products were cast to bf16")
    return notes


def expected_products(model: Any) -> dict[str, str]:
    """Matrix product -> the data type that the model's Q/DQ nodes and casts give it.

    A product is int8 where both operands come out of a DequantizeLinear; one with a single such
    operand runs in the type that it is dequantized to.
    """
    types = stored_types(model)
    producers = {output: node for node in model.graph.node for output in node.output}
    products = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            quantized = all(_is_int8(name, producers, types) for name in node.input[:2])
            kind = "Int8" if quantized else FLOAT_NAMES.get(types.get(node.input[0], ""))
            if kind is not None:
                products[_name(node)] = kind
    return products


def _is_int8(name: str, producers: dict[str, Any], types: dict[str, str]) -> bool:
    """Whether a tensor comes out of a DequantizeLinear of int8."""
    node = producers.get(name)
    while node is not None and node.op_type in TRANSPARENT:
        node = producers.get(node.input[0])
    return (
        node is not None
        and node.op_type == "DequantizeLinear"
        and types.get(node.input[0]) == "INT8"
    )


def _name(node: Any) -> str:
    """The name of a node, or the one that TensorRT's parser gives it."""
    return node.name or f"node_of_{node.output[0]}"


def _all_nodes(model: Any) -> Iterator[Any]:
    """The nodes of the graph, its subgraphs and the model's functions."""
    waiting = [*model.graph.node, *(node for each in model.functions for node in each.node)]
    while waiting:
        node = waiting.pop(0)
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                waiting.extend(graph.node)


def _constants(model: Any) -> dict[str, Any]:
    """Name -> tensor of the initializers and Constant nodes."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _attribute_types(node: Any) -> set[str]:
    """Data types of the tensors in a node's attributes, and of what it casts to."""
    import onnx

    name = onnx.TensorProto.DataType.Name
    found = {name(attribute.t.data_type) for attribute in node.attribute if attribute.HasField("t")}
    return found | {name(a.i) for a in node.attribute if node.op_type == "Cast" and a.name == "to"}


def _bad_grid(
    node: Any, types: dict[str, str], constants: dict[str, Any], folder: Path
) -> Iterator[str]:
    """What is wrong with the integer grid of a Q/DQ node."""
    zero_point = node.input[2] if len(node.input) > 2 else ""
    if node.op_type == "DequantizeLinear":
        kind = types.get(node.input[0], types.get(zero_point, ""))
    else:
        kind = types.get(zero_point) or types.get(node.output[0], "UINT8")
    if kind in REFUSED_TYPES:
        yield f"uses {kind.lower()}"
    elif zero_point and zero_point not in constants:
        yield "has a zero point that is no constant"
    elif zero_point and np.any(_array(constants[zero_point], folder)):
        yield "has a zero point that is not 0"


def _array(tensor: Any, folder: Path) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor, base_dir=str(folder))


def _int8_tables(model: Any) -> set[str]:
    return {t.name for t in model.graph.initializer if t.data_type == 3}  # TensorProto.INT8


def _bare_tables(model: Any) -> list[str]:
    """Int8 constants that go anywhere but into a Q/DQ node."""
    tables, movable = _int8_tables(model), {_name(node) for node in _movable_gathers(model)}
    return [
        f"{node.op_type} {_name(node)} takes the int8 constant {name}"
        for node in model.graph.node
        for name in node.input
        if name in tables
        and node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        and _name(node) not in movable
    ]


def _movable_gathers(model: Any) -> list[Any]:
    """Gathers of an int8 table whose one reader dequantizes with scales that move along."""
    tables, ranks = _int8_tables(model), {t.name: len(t.dims) for t in model.graph.initializer}
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[0] in tables:
            after = readers.get(node.output[0], [])
            if len(after) == 1 and after[0].op_type == "DequantizeLinear":
                per_tensor = sizes.get(after[0].input[1]) == 1
                per_column = ranks[node.input[0]] == 2 and _axis(after[0], 1) == -1
                if per_tensor or (per_column and _axis(node, 0) == 0):
                    found.append(node)
    return found


def _axis(node: Any, default: int) -> int:
    return int(next((a.i for a in node.attribute if a.name == "axis"), default))


def _dequantize_first(model: Any, gather: Any) -> str:
    """Swap Gather -> DequantizeLinear; returns the name of the table."""
    import onnx

    nodes = list(model.graph.node)
    after = next(node for node in nodes if gather.output[0] in node.input)
    table, dequantized = gather.input[0], f"{gather.input[0]}_dequantized"
    index = nodes.index(gather)
    nodes[index] = onnx.helper.make_node(
        "DequantizeLinear", [table, *after.input[1:]], [dequantized], name=after.name, axis=-1
    )
    nodes[nodes.index(after)] = onnx.helper.make_node(
        "Gather",
        [dequantized, gather.input[1]],
        list(after.output),
        name=gather.name,
        axis=_axis(gather, 0),
    )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return str(table)


def _cast_products(model: Any) -> int:
    """Put casts to bf16 before, and back to float after, each fp32 matrix product."""
    import onnx

    types, nodes, casts, count = stored_types(model), [], {}, 0
    for node in model.graph.node:
        floats = [name for name in node.input if types.get(name) == "FLOAT"]
        if node.op_type not in PRODUCTS or not floats:
            nodes.append(node)
            continue
        for name in floats:
            if name not in casts:
                casts[name] = f"{name}_bf16"
                to = onnx.TensorProto.BFLOAT16
                nodes.append(onnx.helper.make_node("Cast", [name], [casts[name]], to=to))
        out, count = node.output[0], count + 1
        cast = onnx.NodeProto()
        cast.CopyFrom(node)
        cast.name = _name(node)
        cast.input[:] = [casts.get(name, name) for name in node.input]
        cast.output[0] = f"{out}_bf16_product"
        to = onnx.TensorProto.FLOAT
        nodes += [cast, onnx.helper.make_node("Cast", [cast.output[0]], [out], to=to)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return count
