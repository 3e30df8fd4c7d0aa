"""Cut a model in two: what follows from the context alone, and all the rest.

Works on ``onnx.ModelProto`` objects; onnx is imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from targets.errors import UnsupportedModelError
from targets.onnx_files import without_weights

if TYPE_CHECKING:
    import onnx

__all__ = ["split_context"]

LARGE_BYTES = 1024
"""Of a weight, whose values say nothing of shapes."""
_KEPT = "{}_kept"
"""What an input of the encoder is called where the decoder reads it too."""


def split_context(
    model: onnx.ModelProto, context: Collection[str]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The encoder, which runs once, and the decoder, which runs for every token.

    Whatever follows from the context alone is the encoder's: beside the hidden states of its last
    layer the keys and values of every cross-attention. What it gives are inputs of the decoder,
    under the same names. What follows from constants is in each part that reads it. A value that
    was quantized travels as integers: the ``DequantizeLinear`` after it is the decoder's, whose
    runtime fuses it with what reads it.

    Args:
        model: Stays as it is; its weights are in it.
        context: Names of the inputs that are read once.

    Returns:
        Encoder and decoder; the latter has the outputs of the model.

    Raises:
        UnsupportedModelError: It is not known of which type a value at the border is.
    """
    from onnx import helper

    graph = model.graph
    constants, known = {tensor.name for tensor in graph.initializer}, set(context)
    fixed, early, late = [], [], []
    for node in _with_sizes_of_context(graph, context):
        read = set(_read(node))
        if read <= constants:
            fixed.append(node)
            constants |= set(node.output)
        elif read <= constants | known:
            early.append(node)
            known |= set(node.output)
        else:
            late.append(node)
    makers = {name: node for node in early for name in node.output}
    wanted = [name for node in late for name in _read(node)]
    wanted += [value.name for value in graph.output]
    moved, border = [], []
    for name in dict.fromkeys(each for each in wanted if each in known):
        maker = makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            moved.append(maker)
            border += [each for each in _read(maker) if each in known]
        else:
            border.append(name)
    names = {
        name: _KEPT.format(name) if name in context else name for name in dict.fromkeys(border)
    }
    copies = [
        helper.make_node("Identity", [name], [kept], f"{kept}_copy")
        for name, kept in names.items()
        if name != kept
    ]
    values = _typed(model, names)
    inputs = [value for value in graph.input if value.name in context]
    others = [value for value in graph.input if value.name not in context]
    return (
        _part(model, [*fixed, *early, *copies], inputs, values),
        _part(model, [*fixed, *moved, *late], [*others, *values], list(graph.output), names),
    )


def _with_sizes_of_context(
    graph: onnx.GraphProto, context: Collection[str]
) -> Iterator[onnx.NodeProto]:
    """The nodes, of which those that ask for the batch ask the context.

    An exporter takes the batch from any of the inputs that have it, and the encoder would need
    one of the decoder's for that.
    """
    from onnx import NodeProto

    first = {
        value.name: value.type.tensor_type.shape.dim[0].dim_param
        for value in graph.input
        if value.type.tensor_type.shape.dim
    }
    for node in graph.node:
        asked = node.input[0] if node.op_type == "Shape" and node.input else ""
        same = [
            name for name in sorted(context) if first.get(asked) and first[name] == first[asked]
        ]
        bounds = {each.name: each.i for each in node.attribute}
        if same and asked not in context and bounds == {"start": 0, "end": 1}:
            turned = NodeProto()
            turned.CopyFrom(node)
            turned.input[0] = same[0]
            yield turned
        else:
            yield node


def _typed(model: onnx.ModelProto, names: Mapping[str, str]) -> list[onnx.ValueInfoProto]:
    """The values at the border with their types, under their names there."""
    from onnx import helper, shape_inference

    slim = without_weights(model, larger_than_bytes=LARGE_BYTES)  # protobuf may refuse the whole
    found = shape_inference.infer_shapes(slim).graph
    types = {each.name: each.type for each in (*found.value_info, *found.input, *found.output)}
    unknown = [name for name in names if name not in types]
    if unknown:
        raise UnsupportedModelError(
            "the types of some values between encoder and decoder are unknown",
            where=model.graph.name,
            given=", ".join(unknown[:3]),
            fix="use operators of the ONNX standard, whose types can be inferred",
        )
    return [helper.make_value_info(kept, types[name]) for name, kept in names.items()]


def _part(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    renamed: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """A model of those nodes that its outputs need, in their order, with their weights.

    Args:
        model: What it is a part of.
        nodes: In an order in which they can run.
        inputs: Of the part.
        outputs: Of the part.
        renamed: What its nodes read under another name than those of the model.
    """
    from onnx import helper

    needed = {value.name for value in outputs}
    kept = []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(_read(node))
            kept.append(node)
    graph = helper.make_graph(
        list(reversed(kept)),
        model.graph.name,
        inputs,
        outputs,
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
    )
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = (renamed or {}).get(name, name)
    part: onnx.ModelProto = helper.make_model(graph, opset_imports=model.opset_import)
    part.ir_version = model.ir_version
    return part


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, those of its inner graphs too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            inner = {name for each in graph.node for name in each.output}
            inner |= {value.name for value in (*graph.input, *graph.initializer)}
            for each in graph.node:
                yield from (name for name in _read(each) if name not in inner)
