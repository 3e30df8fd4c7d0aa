"""Dynamic int8: ranges of activations taken from the values themselves at every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from compressor.onnx_io import Graph, open_model, save_model, set_opset
from compressor.quantization.channels import WeightBits, quantize_channels
from compressor.quantization.gemm import split_gemms
from compressor.quantization.summary import QuantizationSummary
from compressor.quantization.tables import TableBits, quantize_tables

__all__ = ["quantize_dynamic"]


def quantize_dynamic(
    source: Path,
    destination: Path,
    *,
    weight_bits: WeightBits = 8,
    exclude: Sequence[str] = (),
    table_bits: TableBits = 8,
) -> QuantizationSummary:
    """Quantize a float32 model to int8 without calibration, for ONNX Runtime on CPUs.

    Activations become uint8 with a scale and zero point taken from each tensor at every run;
    weights become symmetric int8 with a scale for each output channel. Products that read one
    tensor share its quantization. TensorRT does not run the result.

    Args:
        source: A float32 model; stays as it is.
        destination: Where to write the quantized one.
        weight_bits: 8, or 7 to rule out saturation on CPUs that add int8 products in 16 bits.
        exclude: Names of nodes to leave in float32.
        table_bits: Of large embedding tables.

    Raises:
        PassError: A name in ``exclude`` is no node's.
    """
    model = split_gemms(set_opset(open_model(source), 13), exclude)
    graph = Graph(model)
    nodes: list[onnx.NodeProto] = []
    quantized: set[str] = set()
    activations: dict[str, tuple[str, str, str]] = {}
    weights: dict[str, tuple[str, str, str]] = {}
    for node in model.graph.node:
        if node.name in exclude or not graph.is_linear(node):
            nodes.append(node)
            continue
        tensor = node.input[0]
        if tensor not in activations:
            names = [graph.new_name(f"{tensor}_{part}") for part in ("uint8", "scale", "zero")]
            activations[tensor] = (names[0], names[1], names[2])
            name = graph.new_name(f"{tensor}_DynamicQuantizeLinear")
            nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", [tensor], names, name=name))
        weight = node.input[1]
        if weight not in weights:  # layers may share one
            weights[weight] = _integers(graph, weight, weight_bits)
        nodes += _integer_product(graph, node, activations[tensor], weights[weight])
        quantized.add(node.name)
    graph.replace_nodes(nodes)
    tables = quantize_tables(model, exclude, bits=table_bits)
    save_model(model, destination)
    return QuantizationSummary.of(open_model(source), quantized, tables)


def _integers(graph: Graph, weight: str, bits: WeightBits) -> tuple[str, str, str]:
    """The names of a quantized weight, its scales and its zero points."""
    integers, scales = quantize_channels(graph.weight(weight), axis=1, bits=bits)
    return (
        graph.add_initializer(f"{weight}_quantized", integers),
        graph.add_initializer(f"{weight}_scale", scales),
        graph.add_initializer(f"{weight}_zero_point", np.zeros(scales.shape, np.int8)),
    )


def _integer_product(
    graph: Graph,
    node: onnx.NodeProto,
    activation: tuple[str, str, str],
    weight: tuple[str, str, str],
) -> list[onnx.NodeProto]:
    """MatMulInteger and the scaling behind it, in the shape that ONNX Runtime fuses into one."""
    integers, weight_scales, weight_zeros = weight
    values, scale, zero = activation
    product, cast, scaling = (
        graph.new_name(f"{node.output[0]}_{part}") for part in ("int32", "float", "scale")
    )
    make = onnx.helper.make_node
    inputs = [values, integers, zero, weight_zeros]
    return [
        make("MatMulInteger", inputs, [product], name=node.name),
        make("Cast", [product], [cast], name=f"{node.name}_cast", to=onnx.TensorProto.FLOAT),
        make("Mul", [scale, weight_scales], [scaling], name=f"{node.name}_scales"),
        make("Mul", [cast, scaling], [node.output[0]], name=f"{node.name}_scale"),
    ]
