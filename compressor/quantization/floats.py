"""Narrower floats: fp16 in the model itself, and bf16 as a request that each target grants."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import onnx

from compressor.onnx_io import (
    Graph,
    infer_shapes,
    load_model,
    open_model,
    save_model,
    sort_nodes,
)
from compressor.quantization.gemm import check_names, name_nodes
from compressor.quantization.summary import QUANTIZABLE, QuantizationSummary

__all__ = ["FP16_BLOCKED_OPS", "PRECISION_KEY", "convert_fp16", "request_bf16"]

PRECISION_KEY = "compressor.precision"
"""Key of the metadata property with the precision that a model asks for."""

FP16_BLOCKED_OPS = (
    "Exp",
    "LayerNormalization",
    "Pow",
    "RMSNormalization",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "Softmax",
)
"""Operators that add up or raise values, and pass the largest fp16 (65504) where others do not."""


_AFTER_A_MEAN = frozenset({"Add", "Sqrt", "Reciprocal"})
"""Operators between the mean of squares and the quotient of a norm."""


def convert_fp16(
    source: Path, destination: Path, *, exclude: Sequence[str] = ()
) -> QuantizationSummary:
    """Turn weights and arithmetic into fp16; inputs and outputs keep their types.

    Normalisation, softmax and sums stay float32, and so do the angles of rotary embeddings, which
    grow with the length of a text, and the operators whose fp16 form ONNX does not define.
    Constants outside of the range of fp16, such as attention masks, become its limits.

    Args:
        source: A float32 model; stays as it is.
        destination: Where to write the fp16 one.
        exclude: Names of nodes to leave in float32.

    Raises:
        PassError: A name in ``exclude`` is no node's.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = name_nodes(load_model(source))
    check_names(model, exclude)
    names = {node.name for node in model.graph.node if node.op_type in QUANTIZABLE}
    own = {node.name for node in model.graph.node}
    converted = convert_float_to_float16(
        infer_shapes(model),
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FP16_BLOCKED_OPS],
        node_block_list=[*exclude, *_in_float32(Graph(model))],
    )
    del converted.graph.value_info[:]
    _join_float32(converted, own)
    sort_nodes(converted)  # the converter puts its casts at the end
    _set_metadata(converted, "fp16")
    save_model(converted, destination)
    return QuantizationSummary.of(model, names - set(exclude))


def _in_float32(graph: Graph) -> set[str]:
    """Names of nodes whose values fp16 does not hold, beside those of certain operators."""
    found: set[str] = set()
    for node in graph.model.graph.node:
        if node.op_type in ("ReduceMean", "ReduceSum") and _squares(graph, node):
            found |= _to_the_quotient(graph, node)
        elif node.op_type in ("Cos", "Sin"):
            above = _above(graph, node)
            # Of what a network computes from its inputs the angles alone.
            is_of_places = not any(graph.is_linear(each) for each in above)
            found |= {node.name, *(each.name for each in above if is_of_places)}
    return found


def _squares(graph: Graph, node: onnx.NodeProto) -> bool:
    made_by = graph.producers.get(node.input[0])
    if made_by is None:
        return False
    is_product = made_by.op_type == "Mul" and made_by.input[0] == made_by.input[1]
    return bool(is_product or made_by.op_type == "Pow")


def _to_the_quotient(graph: Graph, mean: onnx.NodeProto) -> set[str]:
    """What makes a norm of a mean of squares: the square, and all up to x / sqrt(mean + eps)."""
    found = {graph.producers[mean.input[0]].name}
    waiting = list(mean.output)
    while waiting:
        for reader in graph.consumers.get(waiting.pop(), ()):
            if reader.op_type in _AFTER_A_MEAN and reader.name not in found:
                waiting += reader.output
            if reader.op_type in _AFTER_A_MEAN | {"Div"}:
                found.add(reader.name)
    return found


def _above(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """All that a node is computed from."""
    found: dict[str, onnx.NodeProto] = {}
    waiting = list(node.input)
    while waiting:
        made_by = graph.producers.get(waiting.pop())
        if made_by is not None and made_by.name not in found:
            found[made_by.name] = made_by
            waiting += made_by.input
    return list(found.values())


def _join_float32(model: onnx.ModelProto, own: Collection[str]) -> None:
    """Let nodes that are float32 read each other without fp16 in between, in place.

    Args:
        model: As the converter made it.
        own: Names of the nodes that it had before: the other casts are the converter's.
    """
    widened: dict[str, str] = {}
    narrowed: dict[str, str] = {}
    casts = {onnx.TensorProto.FLOAT: widened, onnx.TensorProto.FLOAT16: narrowed}
    for node in model.graph.node:
        to = next((each.i for each in node.attribute if each.name == "to"), None)
        if node.op_type == "Cast" and to in casts and node.name not in own:
            casts[to][node.output[0]] = node.input[0]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if widened.get(name) in narrowed:
                node.input[index] = narrowed[widened[name]]
    read = {name for node in model.graph.node for name in node.input}
    read |= {value.name for value in model.graph.output}
    kept = [
        each for each in model.graph.node if each.name in own or not read.isdisjoint(each.output)
    ]
    Graph(model).replace_nodes(kept)


def request_bf16(source: Path, destination: Path) -> QuantizationSummary:
    """Copy a float32 model and note in it that its products may run in bf16.

    bf16 has the range of float32, so that a target can narrow on its own without overflow;
    OpenVINO does so by a hint, and ONNX Runtime has no CPU kernels for a model written in bf16.

    Args:
        source: A float32 model; stays as it is.
        destination: Where to write the copy.
    """
    model = open_model(source)
    _set_metadata(model, "bf16")
    save_model(model, destination)
    names = {node.name for node in model.graph.node if node.op_type in QUANTIZABLE}
    return QuantizationSummary.of(model, names)


def _set_metadata(model: onnx.ModelProto, precision: str) -> None:
    kept = {each.key: each.value for each in model.metadata_props} | {PRECISION_KEY: precision}
    onnx.helper.set_model_props(model, kept)
