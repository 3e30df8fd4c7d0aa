"""Weights alone as int8: small on disk, computed in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from compressor.onnx_io import Graph, load_model, save_model, set_opset
from compressor.quantization.channels import dequantized_weight
from compressor.quantization.gemm import split_gemms
from compressor.quantization.summary import QuantizationSummary
from compressor.quantization.tables import TableBits, quantize_tables

__all__ = ["quantize_weights"]


def quantize_weights(
    source: Path,
    destination: Path,
    *,
    exclude: Sequence[str] = (),
    table_bits: TableBits = 8,
) -> QuantizationSummary:
    """Store weights and embedding tables as int8; the arithmetic stays float32.

    Args:
        source: A float32 model; stays as it is.
        destination: Where to write the quantized one.
        exclude: Names of nodes whose weights stay float32.
        table_bits: Of large embedding tables.

    Raises:
        PassError: A name in ``exclude`` is no node's.
    """
    model = split_gemms(set_opset(load_model(source), 13), exclude)
    graph = Graph(model)
    nodes: list[onnx.NodeProto] = []
    stored: dict[tuple[str, int], str] = {}
    quantized: set[str] = set()
    for node in model.graph.node:
        is_conv = node.op_type == "Conv" and graph.is_weight(node.input[1])
        if node.name not in exclude and (is_conv or graph.is_linear(node)):
            key = (node.input[1], 0 if is_conv else 1)
            if key not in stored:
                dequantize, stored[key] = dequantized_weight(graph, key[0], axis=key[1])
                nodes.append(dequantize)
            node.input[1] = stored[key]
            quantized.add(node.name)
        nodes.append(node)
    graph.replace_nodes(nodes)
    tables = quantize_tables(model, exclude, bits=table_bits)
    save_model(model, destination)
    return QuantizationSummary.of(model, quantized, tables)
