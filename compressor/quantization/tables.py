"""Embedding tables as integers: they are half of the bytes of a small language model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.onnx_io import Graph
from compressor.quantization.channels import dequantized_weight

__all__ = ["TableBits", "quantize_rows_to_4_bits", "quantize_tables"]

TableBits = Literal[4, 8]

SMALLEST_TABLE = 16_384
"""Tables with fewer values stay float: they weigh nothing, and token types are 2 rows."""
SMALLEST_TABLE_IN_4_BITS = 1_000_000
"""Tables with fewer values keep 8 bits: positions lie in every text, and weigh little."""
CLIPPINGS = np.linspace(0.5, 1.0, 21, dtype=np.float32)
"""Shares of a row's largest magnitude to try as the end of its range of 4 bits."""


def quantize_tables(
    model: onnx.ModelProto, exclude: Collection[str] = (), *, bits: TableBits = 8
) -> tuple[str, ...]:
    """Store the tables that rows are looked up in as integers with a scale for each row, in place.

    Written as ``DequantizeLinear`` in front of ``Gather``, the only order that TensorRT accepts;
    targets that would restore the whole table at each run turn it around
    (``targets.qdq.gather_before_dequantize``).

    Args:
        model: Is changed; its nodes have names.
        exclude: Names of ``Gather`` nodes whose tables stay float32.
        bits: Of the large tables; see `quantize_rows_to_4_bits`. Others have 8.

    Returns:
        Names of the tables.
    """
    graph = Graph(model)
    restored: dict[str, str] = {}
    packed: dict[str, tuple[onnx.NodeProto, str]] = {}
    tables: list[str] = []
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        table = node.input[0] if node.input else ""
        if node.op_type != "Gather" or not _is_table(graph, table, exclude):
            nodes.append(node)
            continue
        if table not in tables:
            tables.append(table)
        if bits == 4 and _fits_4_bits(graph.weight(table)):
            if table not in packed:
                packed[table] = _packed(graph, table)
                nodes.append(packed[table][0])
            nodes += _look_up(graph, node, *packed[table])
            continue
        if table not in restored:
            dequantize, restored[table] = dequantized_weight(graph, table, axis=0)
            nodes.append(dequantize)
        node.input[0] = restored[table]
        nodes.append(node)
    if tables:
        graph.replace_nodes(nodes)
    return tuple(tables)


def quantize_rows_to_4_bits(
    table: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round each row to the integers -8 to 7 times its scale.

    The scale is, of 21 that clip the row's largest values more or less, the one with the smallest
    squared error (as the clipping of Banner et al., 2019, chosen by trial).

    Args:
        table: (V, H), finite.

    Returns:
        The integers, (V, H), and the scales, (V, 1).
    """
    largest = np.abs(table).max(axis=1, keepdims=True)
    largest = np.maximum(largest, np.finfo(np.float32).tiny * 16)
    best = np.full(largest.shape, np.inf, np.float32)
    scales = largest
    for share in CLIPPINGS:
        tried = share * largest / np.float32(7.5)
        error = ((_levels(table, tried) * tried - table) ** 2).sum(axis=1, keepdims=True)
        scales = np.where(error < best, tried, scales)
        best = np.minimum(best, error)
    return _levels(table, scales).astype(np.int8), scales.astype(np.float32)


def _levels(table: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    levels: NDArray[np.float32] = np.clip(np.rint(table / scales), -8, 7)
    return levels


def _packed(graph: Graph, name: str) -> tuple[onnx.NodeProto, str]:
    """Add a table with two integers in each byte: 16 times one of the right half, one of the left.

    Returns:
        The node that gives a sixteenth of every byte, (V, H / 2), and the name of the scales,
        (V, 1).
    """
    integers, scales = quantize_rows_to_4_bits(graph.weight(name))
    left, right = np.split(integers, 2, axis=1)
    output = graph.new_name(f"{name}_sixteenths")
    node = onnx.helper.make_node(
        "DequantizeLinear",
        [
            graph.add_initializer(f"{name}_packed", 16 * right + (left + 8)),
            graph.add_initializer(f"{name}_sixteenth", np.array(1 / 16, np.float32)),
        ],
        [output],
        name=graph.new_name(f"{name}_DequantizeLinear"),
    )
    return node, graph.add_initializer(f"{name}_scale", scales)


def _look_up(
    graph: Graph, gather: onnx.NodeProto, packed: onnx.NodeProto, scales: str
) -> list[onnx.NodeProto]:
    """Rows of a packed table, unpacked with arithmetic that every runtime has."""
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, *inputs: str, output: str | None = None, **attributes: int) -> str:
        base = f"{gather.output[0]}_{operator}"
        made = output or graph.new_name(base)
        name = graph.new_name(f"{gather.name}_{operator}")
        nodes.append(onnx.helper.make_node(operator, inputs, [made], name=name, **attributes))
        return made

    def constant(value: float) -> str:
        return graph.add_initializer(f"{gather.output[0]}_constant", np.array(value, np.float32))

    ids = gather.input[1]
    sixteenths = add("Gather", packed.output[0], ids)
    right = add("Floor", sixteenths)
    rest = add("Mul", add("Sub", sixteenths, right), constant(16))
    levels = add("Concat", add("Sub", rest, constant(8)), right, axis=-1)
    add("Mul", levels, add("Gather", scales, ids), output=gather.output[0])
    return nodes


def _fits_4_bits(table: NDArray[np.float32]) -> bool:
    return table.size >= SMALLEST_TABLE_IN_4_BITS and table.shape[1] % 2 == 0


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
