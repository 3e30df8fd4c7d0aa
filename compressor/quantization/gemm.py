"""Give a model the shape that quantization expects: named nodes, and MatMul + Add for Gemm."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from compressor.errors import PassError, nearest
from compressor.onnx_io import Graph, copy_model

__all__ = ["check_names", "name_nodes", "split_gemms"]


def split_gemms(model: onnx.ModelProto, exclude: Collection[str]) -> onnx.ModelProto:
    """Name all nodes and write each ``Gemm`` with constant weights as ``MatMul`` and ``Add``.

    ONNX Runtime runs a ``Gemm`` in int8 only when its bias is int32, which TensorRT does not
    accept. The ``MatMul`` keeps the name of the ``Gemm``.

    Args:
        model: Stays as it is.
        exclude: Names of nodes to leave as they are.

    Raises:
        PassError: A name in ``exclude`` is no node's.
    """
    changed = name_nodes(model)
    check_names(changed, exclude)
    graph = Graph(changed)
    nodes: list[onnx.NodeProto] = []
    for node in changed.graph.node:
        if node.op_type == "Gemm" and node.name not in exclude and _is_linear(graph, node):
            nodes += _matmul_and_add(graph, node)
        else:
            nodes.append(node)
    graph.replace_nodes(nodes)
    return changed


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which each node of the main graph has a name of its own."""
    named = copy_model(model)
    seen: set[str] = set()
    for node in named.graph.node:
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{node.output[0]}"
        seen.add(node.name)
    return named


def check_names(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Refuse names that no node has.

    Raises:
        PassError: Names the first of them and the nearest node.
    """
    known = {node.name for node in model.graph.node}
    for name in names:
        if name not in known:
            close = nearest(name, known)
            raise PassError(
                "the model has no node of that name",
                where="exclude",
                given=repr(name),
                fix=f"did you mean {close!r}?" if close else "take a name from the summary",
            )


def _is_linear(graph: Graph, node: onnx.NodeProto) -> bool:
    values = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    plain = values.get("alpha", 1.0) == 1.0 and values.get("beta", 1.0) == 1.0
    return plain and not values.get("transA", 0) and graph.is_weight(node.input[1])


def _matmul_and_add(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    name = node.input[1]
    if any(each.name == "transB" and each.i for each in node.attribute):
        name = graph.add_initializer(f"{name}_transposed", graph.weight(name).T)
    bias = node.input[2] if len(node.input) > 2 else ""
    product = graph.new_name(f"{node.output[0]}_product") if bias else node.output[0]
    make = onnx.helper.make_node
    nodes = [make("MatMul", [node.input[0], name], [product], name=node.name)]
    if bias:
        add = graph.new_name(f"{node.name}_Add")
        nodes.append(make("Add", [product, bias], [node.output[0]], name=add))
    return nodes
