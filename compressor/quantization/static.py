"""Static int8: ranges of activations fixed by calibration, written as portable Q/DQ nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.onnx_io import Graph, copy_model, open_model, save_model, set_opset
from compressor.quantization.channels import WeightBits, dequantized_weight
from compressor.quantization.gemm import split_gemms
from compressor.quantization.observe import Observations, observe
from compressor.quantization.ranges import (
    Activations,
    Calibration,
    ClippingRange,
    clipping_range,
)
from compressor.quantization.sensitivity import output_errors
from compressor.quantization.smooth import smooth
from compressor.quantization.summary import QuantizationSummary
from compressor.quantization.tables import TableBits, quantize_tables
from targets.signature import Arrays

__all__ = ["insert_qdq", "quantize_static"]

_MATRIX_OPS = ("MatMul", "Conv")
_OPSET = 13
"""The first opset with per-channel Q/DQ."""
_MOST_BATCHES = 4
"""On which outputs are compared."""
_PERCENTILES = (100.0, 99.999, 99.99, 99.9)
"""Among which the calibration ``search`` chooses; of equals the first."""


@dataclass(frozen=True)
class _Site:
    """One operand of one node that becomes int8."""

    node: str
    operand: int
    tensor: str
    is_factor: bool = False
    """Whether the other operand is an activation too."""


def quantize_static(
    source: Path,
    destination: Path,
    batches: Iterable[Arrays],
    *,
    calibration: Calibration = "search",
    percentile: float = 99.99,
    activations: Activations = "uint8",
    smooth_quant: float | None = None,
    weight_bits: WeightBits = 8,
    exclude: Sequence[str] = (),
    keep_float: int = 0,
    activation_matmuls: bool = False,
    tables: bool = True,
    table_bits: TableBits = 8,
    threads: int = 1,
) -> QuantizationSummary:
    """Quantize a float32 model to int8 with ranges fixed by calibration.

    The result is the one form that every target takes: symmetric int8 weights with a scale for each
    output channel, Q/DQ on the inputs of MatMul (and inputs and outputs of Conv), bias,
    normalisation, softmax and activation functions in float32. ``Gemm`` becomes ``MatMul`` and
    ``Add``.

    How far activations are clipped matters most: in networks with few layers and large outliers,
    clipping one value in ten thousand cost three points of accuracy, and none of it nothing.

    Args:
        source: A float32 model; stays as it is.
        destination: Where to write the quantized one.
        batches: Calibration inputs, by name.
        calibration: How the clipping range of an activation follows from what was seen; see
            `clipping_range`. ``search`` takes, of four percentiles up to 100, the one with which
            the outputs of the model change least on some of the batches.
        percentile: In (0, 100], used by ``percentile`` calibration.
        activations: ``uint8`` spends all levels on the values that there are; targets that take
            symmetric int8 alone widen the ranges. ``int8`` is what those compute with. Products of
            two activations have ``int8`` ranges anyway.
        smooth_quant: Migration strength in [0, 1] of SmoothQuant, or None to leave it out.
        weight_bits: 8, or 7 to rule out saturation on CPUs that add int8 products in 16 bits.
        exclude: Names of nodes to leave in float32.
        keep_float: How many more to leave: those that change the outputs most when they alone are
            quantized, on up to four batches from the whole of them.
        activation_matmuls: Also quantize products of two activations, as in attention.
        tables: Also store embedding tables as integers.
        table_bits: Of the large ones among them.
        threads: CPU threads to calibrate with.

    Returns:
        Which nodes are int8 now, which stay float32, and the clipping ranges.

    Raises:
        PassError: No calibration data, values that are not finite, or an unknown name in
            ``exclude``.
    """
    model = split_gemms(set_opset(open_model(source), _OPSET), exclude)
    inputs = list(batches) if smooth_quant is not None else batches
    if smooth_quant is not None:
        model = smooth(model, inputs, strength=smooth_quant, exclude=exclude, threads=threads)
    sites = _sites(Graph(model), exclude, activation_matmuls)
    some = _Some(inputs)
    observed = observe(
        model,
        some,
        histograms=list(dict.fromkeys(site.tensor for site in sites)),
        threads=threads,
    )

    def clipped(percentile: float) -> onnx.ModelProto:
        ranges = _ranges(observed, sites, "percentile", percentile, activations)
        return insert_qdq(model, sites, ranges, weight_bits)

    chosen: float | None = None
    if calibration == "search":
        by_clipping = output_errors(model, _PERCENTILES, clipped, some.kept, threads=threads)
        chosen = min(_PERCENTILES, key=by_clipping.__getitem__)
        calibration, percentile = "percentile", chosen
    ranges = _ranges(observed, sites, calibration, percentile, activations)
    if keep_float:

        def rounded(node: str) -> onnx.ModelProto:
            return insert_qdq(model, _of_nodes(sites, {node}), ranges, weight_bits)

        products = dict.fromkeys(site.node for site in sites)
        errors = output_errors(model, products, rounded, some.kept, threads=threads)
        kept = sorted(products, key=errors.__getitem__)[-keep_float:]
        # What follows a product that stays float reads floats, and is quantized where it reads.
        sites = _sites(Graph(model), [*exclude, *kept], activation_matmuls)
    quantized = insert_qdq(model, sites, ranges, weight_bits)
    table_names = quantize_tables(quantized, exclude, bits=table_bits) if tables else ()
    save_model(quantized, destination)
    nodes = {site.node for site in sites}
    return QuantizationSummary.of(model, nodes, table_names, ranges, chosen)


def _ranges(
    observed: Observations,
    sites: Sequence[_Site],
    calibration: Calibration,
    percentile: float,
    activations: Activations,
) -> dict[str, ClippingRange]:
    """The range of each tensor that becomes int8."""
    factors = {site.tensor for site in sites if site.is_factor}
    return {
        name: clipping_range(
            histogram,
            calibration,
            percentile=percentile,
            activations="int8" if name in factors else activations,
        )
        for name, histogram in observed.histograms.items()
    }


class _Some:
    """Passes batches on and keeps some, evenly from the whole of them: lengths may be sorted.

    Attributes:
        kept: At most `_MOST_BATCHES`, and at least half as many where there were enough.
    """

    def __init__(self, batches: Iterable[Arrays]) -> None:
        self._batches = batches
        self.kept: list[Arrays] = []

    def __iter__(self) -> Iterator[Arrays]:
        step = 1
        for number, batch in enumerate(self._batches):
            if number % step == 0:
                self.kept.append(batch)
            if len(self.kept) > _MOST_BATCHES:
                self.kept, step = self.kept[::2], 2 * step
            yield batch


def insert_qdq(
    model: onnx.ModelProto,
    sites: Sequence[_Site],
    ranges: Mapping[str, ClippingRange],
    weight_bits: WeightBits,
) -> onnx.ModelProto:
    """Put Q/DQ pairs around the given operands, and int8 weights in the place of float ones.

    Args:
        model: A float model; stays as it is.
        sites: Operands to quantize. Operand -1 is the node's output.
        ranges: Tensor name -> the values that its eight bits will hold.
        weight_bits: Bits of the weights.
    """
    quantized = copy_model(model)
    graph = Graph(quantized)
    by_node: dict[str, list[_Site]] = {}
    for site in sites:
        by_node.setdefault(site.node, []).append(site)
    nodes: list[onnx.NodeProto] = []
    pairs: dict[str, str] = {}
    weights: dict[tuple[str, int], tuple[onnx.NodeProto, str]] = {}
    for node in quantized.graph.node:
        read = node.input[0] if node.input else ""
        after: list[onnx.NodeProto] = []
        for site in by_node.get(node.name, ()):
            if site.operand < 0:
                name = node.output[0]
                node.output[0] = graph.new_name(f"{name}_float")
                after = _qdq(graph, node.output[0], ranges[name], output=name)
            else:
                if site.tensor not in pairs:
                    pair = _qdq(graph, site.tensor, ranges[site.tensor])
                    pairs[site.tensor] = pair[-1].output[0]
                    nodes += pair
                node.input[site.operand] = pairs[site.tensor]
        if node.name in by_node and graph.is_weight(node.input[1]):
            key = (node.input[1], 0 if node.op_type == "Conv" else 1)
            if key not in weights:
                least = _least_scales(graph, node, ranges.get(read))
                weights[key] = dequantized_weight(
                    graph, key[0], axis=key[1], bits=weight_bits, least=least
                )
                nodes.append(weights[key][0])
            node.input[1] = weights[key][1]
        nodes += [node, *after]
    graph.replace_nodes(nodes)
    return quantized


def _least_scales(
    graph: Graph, node: onnx.NodeProto, read: ClippingRange | None
) -> NDArray[np.float32] | None:
    """Scales with which the bias of a convolution fits into 32 bits, as runtimes store it.

    Its unit is the product of the scales of input and weights: that of a channel whose weights are
    next to nothing would be too small for what the channel gives, its bias.
    """
    has_bias = len(node.input) > 2 and graph.is_weight(node.input[2])
    if node.op_type != "Conv" or not has_bias or read is None:
        return None
    bias = np.abs(graph.weight(node.input[2]))
    return (1.001 * bias / (read.scale * _LARGEST_SUM)).astype(np.float32)


_LARGEST_SUM = 2**31 - 1


def _sites(graph: Graph, exclude: Sequence[str], activation_matmuls: bool) -> list[_Site]:
    """Operands to quantize, in the order of the graph."""
    sites: list[_Site] = []
    made_int8: set[str] = set()
    for node in graph.model.graph.node:
        if node.op_type not in _MATRIX_OPS or node.name in exclude:
            continue
        if node.op_type == "Conv" and graph.is_weight(node.input[1]):
            sites.append(_Site(node.name, -1, node.output[0]))
            made_int8.add(node.output[0])
            operands = [0]
        elif graph.is_linear(node):
            operands = [0]
        elif activation_matmuls and not any(name in graph.initializers for name in node.input):
            operands = [0, 1]
        else:
            continue
        sites += [
            _Site(node.name, operand, node.input[operand], is_factor=len(operands) > 1)
            for operand in operands
            if node.input[operand] not in made_int8
        ]
    return sites


def _of_nodes(sites: Sequence[_Site], nodes: Collection[str]) -> list[_Site]:
    return [site for site in sites if site.node in nodes]


def _qdq(
    graph: Graph, tensor: str, clipped: ClippingRange, *, output: str | None = None
) -> list[onnx.NodeProto]:
    """A QuantizeLinear and a DequantizeLinear behind ``tensor``."""
    names = [
        graph.add_initializer(f"{tensor}_scale", np.asarray(clipped.scale)),
        graph.add_initializer(f"{tensor}_zero_point", clipped.zero_point),
    ]
    quantized = graph.new_name(f"{tensor}_quantized")
    restored = output or graph.new_name(f"{tensor}_dequantized")
    make = onnx.helper.make_node
    quantize = graph.new_name(f"{tensor}_QuantizeLinear")
    dequantize = graph.new_name(f"{tensor}_DequantizeLinear")
    return [
        make("QuantizeLinear", [tensor, *names], [quantized], name=quantize),
        make("DequantizeLinear", [quantized, *names], [restored], name=dequantize),
    ]
