"""SmoothQuant: move the outliers of activations into the weights, where they do less harm."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.onnx_io import Graph, copy_model
from compressor.quantization.observe import observe
from targets.signature import Arrays

__all__ = ["smooth", "smoothing_factors"]

_SMALLEST = 1e-5


def smooth(
    model: onnx.ModelProto,
    batches: Iterable[Arrays],
    *,
    strength: float,
    exclude: Collection[str] = (),
    threads: int = 1,
) -> onnx.ModelProto:
    """Scale the inputs of matrix products down and their weights up, channel by channel.

    The model's outputs stay what they were, but for rounding. Products that read one tensor share
    one set of factors. The division goes into the normalisation in front when nothing else reads
    that, and is a ``Mul`` otherwise.

    Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models", ICML 2023.

    Args:
        model: A float model with named nodes; stays as it is.
        batches: Calibration inputs, by name.
        strength: In [0, 1]; 0 leaves all difficulty in the activations, 1 moves it to the weights.
        exclude: Names of nodes to leave out.
        threads: CPU threads to calibrate with.
    """
    changed = copy_model(model)
    graph = Graph(changed)
    groups: dict[str, list[onnx.NodeProto]] = {}
    for node in changed.graph.node:
        if node.name not in exclude and graph.is_linear(node):
            groups.setdefault(node.input[0], []).append(node)
    observed = observe(model, batches, channel_maxima=list(groups), threads=threads)
    before: dict[str, onnx.NodeProto] = {}
    for tensor, readers in groups.items():
        weights = [graph.weight(node.input[1]) for node in readers]
        factors = smoothing_factors(
            observed.channel_maxima[tensor],
            np.max([np.abs(weight).max(1) for weight in weights], axis=0),
            strength,
        )
        for node, weight in zip(readers, weights, strict=True):
            node.input[1] = graph.add_initializer(
                f"{node.input[1]}_smoothed", weight * factors[:, None]
            )
        if not _fold_into_normalisation(graph, tensor, readers, factors):
            before[readers[0].name] = _divide(graph, tensor, readers, factors)
    nodes: list[onnx.NodeProto] = []
    for node in changed.graph.node:
        if node.name in before:
            nodes.append(before[node.name])
        nodes.append(node)
    graph.replace_nodes(nodes)
    return changed


def smoothing_factors(
    activation_maxima: NDArray[np.float32], weight_maxima: NDArray[np.float32], strength: float
) -> NDArray[np.float32]:
    """Factors that activations are divided and weights multiplied by.

    Args:
        activation_maxima: (K,) largest magnitude in each channel.
        weight_maxima: (K,) largest magnitude in each row of all weights that read the channel.
        strength: In [0, 1].

    Returns:
        (K,) positive; 1 for channels in which nothing was seen.
    """
    activations = np.maximum(activation_maxima.astype(np.float64), _SMALLEST)
    weights = np.maximum(weight_maxima.astype(np.float64), _SMALLEST)
    factors = activations**strength / weights ** (1 - strength)
    seen = (activation_maxima > _SMALLEST) & (weight_maxima > _SMALLEST)
    return np.where(seen, factors, 1.0).astype(np.float32)


def _fold_into_normalisation(
    graph: Graph, tensor: str, readers: list[onnx.NodeProto], factors: NDArray[np.float32]
) -> bool:
    producer = graph.producers.get(tensor)
    if producer is None or producer.op_type != "LayerNormalization":
        return False
    is_output = any(value.name == tensor for value in graph.model.graph.output)
    names = list(producer.input)[1:]
    if is_output or len(graph.consumers[tensor]) != len(readers):
        return False
    if not all(graph.is_weight(name) and graph.weight(name).size == factors.size for name in names):
        return False
    for index, name in enumerate(names, start=1):
        producer.input[index] = graph.add_initializer(
            f"{name}_smoothed", graph.weight(name) / factors
        )
    return True


def _divide(
    graph: Graph, tensor: str, readers: list[onnx.NodeProto], factors: NDArray[np.float32]
) -> onnx.NodeProto:
    inverse = graph.add_initializer(f"{tensor}_smoothing", (1 / factors).astype(np.float32))
    output = graph.new_name(f"{tensor}_smoothed")
    for node in readers:
        node.input[0] = output
    name = graph.new_name(f"{tensor}_Smooth")
    return onnx.helper.make_node("Mul", [tensor, inverse], [output], name=name)
