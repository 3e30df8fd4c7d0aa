"""Weights alone as integers of 8 or 4 bits: small on disk, computed in floats."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.onnx_io import Graph, open_model, save_model, set_opset
from compressor.quantization.awq import scale_salient
from compressor.quantization.channels import dequantized_weight
from compressor.quantization.gemm import split_gemms
from compressor.quantization.groups import GROUP_OPSET, GroupedProducts
from compressor.quantization.observe import observe
from compressor.quantization.scaling import readers_of
from compressor.quantization.summary import QuantizationSummary
from compressor.quantization.tables import TableBits, quantize_tables
from targets.signature import Arrays

__all__ = ["quantize_weights"]


def quantize_weights(
    source: Path,
    destination: Path,
    batches: Iterable[Arrays] = (),
    *,
    exclude: Sequence[str] = (),
    bits: Literal[4, 8] = 8,
    group_size: int = 32,
    awq: bool = False,
    scale_estimation: bool = False,
    threads: int = 1,
    table_bits: TableBits = 8,
) -> QuantizationSummary:
    """Store weights and embedding tables as integers; the arithmetic stays that of floats.

    With 4 bits convolutions, products whose weights do not fall into even groups, and those that
    give an output of the model keep 8: of a language model that is the one over the vocabulary.

    Args:
        source: A float32 model; stays as it is.
        destination: Where to write the quantized one.
        batches: Calibration inputs, by name, where some are needed.
        exclude: Names of nodes whose weights stay float32.
        bits: Of the weights of matrix products.
        group_size: Inputs that share a scale and a centre, with 4 bits.
        awq: Scale the inputs that matter most before weights are rounded to 4 bits, by calibration.
        scale_estimation: Let errors of 4 bits count as much as the inputs that they are multiplied
            by, by calibration: the mean square of each.
        threads: CPU threads to calibrate with.
        table_bits: Of large embedding tables.

    Raises:
        PassError: A name in ``exclude`` is no node's.
    """
    opset = GROUP_OPSET if bits == 4 else 13
    model = split_gemms(set_opset(open_model(source), opset), exclude)
    outputs = {each.name for each in model.graph.output}

    def fits(graph: Graph, node: onnx.NodeProto) -> bool:
        return is_even(graph, node) and not _gives(graph, node.output[0], outputs)

    def is_even(graph: Graph, node: onnx.NodeProto) -> bool:
        return bool(graph.weight(node.input[1]).shape[0] % group_size == 0)

    batches = list(batches)
    if awq:
        model = scale_salient(
            model, batches, size=group_size, fits=fits, exclude=exclude, threads=threads
        )
    importance = _mean_squares(model, batches, exclude, threads) if scale_estimation else {}
    graph = Graph(model)
    grouped = GroupedProducts(graph, group_size, importance) if bits == 4 else None
    nodes: list[onnx.NodeProto] = []
    stored: dict[tuple[str, int], str] = {}
    quantized: set[str] = set()
    wider: list[str] = []
    for node in model.graph.node:
        is_linear = node.name not in exclude and graph.is_linear(node)
        if grouped is not None and is_linear and fits(graph, node):
            nodes += grouped.product(node)
            quantized.add(node.name)
            continue
        if grouped is not None and is_linear and not is_even(graph, node):
            wider.append(node.name)
        is_conv = node.op_type == "Conv" and graph.is_weight(node.input[1])
        if is_linear or (is_conv and node.name not in exclude):
            key = (node.input[1], 0 if is_conv else 1)
            if key not in stored:
                dequantize, stored[key] = dequantized_weight(graph, key[0], axis=key[1])
                nodes.append(dequantize)
            node.input[1] = stored[key]
            quantized.add(node.name)
        nodes.append(node)
    summary = QuantizationSummary.of(model, quantized)
    graph.replace_nodes(nodes)
    tables = quantize_tables(model, exclude, bits=table_bits)
    save_model(model, destination)
    return replace(summary, tables=tables, wider=tuple(wider))


def _gives(graph: Graph, name: str, outputs: Collection[str]) -> bool:
    """Whether a value is an output of the model, but for a bias, a scale or the like."""
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in outputs:
            return True
        readers = graph.consumers.get(name, ())
        waiting += [
            output for node in readers if node.op_type in _BEHIND_A_HEAD for output in node.output
        ]
    return False


_BEHIND_A_HEAD = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Tanh"})


def _mean_squares(
    model: onnx.ModelProto, batches: Sequence[Arrays], exclude: Sequence[str], threads: int
) -> Mapping[str, NDArray[np.float32]]:
    """Of each channel of the tensors that matrix products read."""
    names = list(readers_of(Graph(model), exclude))
    found = observe(model, batches, samples=names, threads=threads).samples
    return {name: (rows**2).mean(axis=0) for name, rows in found.items()}
