"""Embedding tables as int8: they are half of the bytes of a small language model."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from compressor.onnx_io import Graph
from compressor.quantization.channels import dequantized_weight

__all__ = ["quantize_tables"]

SMALLEST_TABLE = 16_384
"""Tables with fewer values stay float: they weigh nothing, and token types are 2 rows."""


def quantize_tables(model: onnx.ModelProto, exclude: Collection[str] = ()) -> tuple[str, ...]:
    """Store the tables that rows are looked up in as int8 with a scale for each row, in place.

    Written as ``DequantizeLinear`` in front of ``Gather``, the only order that TensorRT accepts;
    targets that would restore the whole table at each run turn it around
    (``targets.qdq.gather_before_dequantize``).

    Args:
        model: Is changed; its nodes have names.
        exclude: Names of ``Gather`` nodes whose tables stay float32.

    Returns:
        Names of the tables.
    """
    graph = Graph(model)
    restored: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Gather" and _is_table(graph, node.input[0], exclude):
            table = node.input[0]
            if table not in restored:
                dequantize, restored[table] = dequantized_weight(graph, table, axis=0)
                nodes.append(dequantize)
            node.input[0] = restored[table]
        nodes.append(node)
    if restored:
        graph.replace_nodes(nodes)
    return tuple(restored)


def _is_table(graph: Graph, name: str, exclude: Collection[str]) -> bool:
    """Whether ``name`` is a large float table that nothing but row look-ups reads."""
    if not graph.is_weight(name, rank=2) or graph.weight(name).size < SMALLEST_TABLE:
        return False
    return all(
        reader.op_type == "Gather"
        and reader.name not in exclude
        and name not in list(reader.input)[1:]
        and all(each.name != "axis" or each.i == 0 for each in reader.attribute)
        for reader in graph.consumers[name]
    )
