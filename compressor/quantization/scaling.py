"""Scale the channels that matrix products read: activations down, and the weights up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.onnx_io import Graph, copy_model

__all__ = ["SMOOTHED", "Factors", "readers_of", "scale_channels"]

SMOOTHED = "_smoothed"
"""Behind the names of weights and scales that were changed."""

Factors = Mapping[str, NDArray[np.float32]]
"""Tensor -> what to divide its channels by, (K,) positive."""


def readers_of(graph: Graph, exclude: Collection[str]) -> dict[str, list[onnx.NodeProto]]:
    """The tensors that matrix products with weights read, each with those products.

    Args:
        graph: Of named nodes.
        exclude: Names of nodes to leave out.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.model.graph.node:
        if node.name not in exclude and graph.is_linear(node):
            readers.setdefault(node.input[0], []).append(node)
    return readers


def scale_channels(
    model: onnx.ModelProto, factors: Factors, *, exclude: Collection[str] = ()
) -> onnx.ModelProto:
    """Divide channels by factors, and multiply the weights of what reads them.

    The outputs stay what they were, but for rounding. The division goes into the normalisation in
    front when nothing else reads that, and is a ``Mul`` otherwise.

    Args:
        model: A float model with named nodes; stays as it is.
        factors: For some of the tensors that matrix products read.
        exclude: Names of nodes to leave out.
    """
    changed = copy_model(model)
    graph = Graph(changed)
    before: dict[str, onnx.NodeProto] = {}
    for tensor, readers in readers_of(graph, exclude).items():
        if tensor not in factors:
            continue
        divisors = factors[tensor]
        for node in readers:
            node.input[1] = graph.add_initializer(
                f"{node.input[1]}{SMOOTHED}", graph.weight(node.input[1]) * divisors[:, None]
            )
        if not _fold_into_normalisation(graph, tensor, readers, divisors):
            before[readers[0].name] = _divide(graph, tensor, readers, divisors)
    nodes: list[onnx.NodeProto] = []
    for node in changed.graph.node:
        if node.name in before:
            nodes.append(before[node.name])
        nodes.append(node)
    graph.replace_nodes(nodes)
    return changed


def _fold_into_normalisation(
    graph: Graph, tensor: str, readers: Sequence[onnx.NodeProto], factors: NDArray[np.float32]
) -> bool:
    producer = graph.producers.get(tensor)
    if producer is None:
        return False
    is_output = any(value.name == tensor for value in graph.model.graph.output)
    places = _scales(graph, producer)
    if is_output or not places or len(graph.consumers[tensor]) != len(readers):
        return False
    if not all(graph.weight(producer.input[place]).size == factors.size for place in places):
        return False
    for place in places:
        name = producer.input[place]
        scaled = graph.weight(name) / factors
        producer.input[place] = graph.add_initializer(f"{name}{SMOOTHED}", scaled)
    return True


def _scales(graph: Graph, producer: onnx.NodeProto) -> list[int]:
    """Which inputs of a node hold the scale of each channel, and what is added to it."""
    given = [place for place, name in enumerate(producer.input) if graph.is_weight(name)]
    if producer.op_type == "LayerNormalization" and given == list(range(1, len(producer.input))):
        return given
    if producer.op_type == "Mul" and len(given) == 1:  # the end of a normalisation by the RMS
        return given
    return []


def _divide(
    graph: Graph, tensor: str, readers: Sequence[onnx.NodeProto], factors: NDArray[np.float32]
) -> onnx.NodeProto:
    inverse = graph.add_initializer(f"{tensor}_smoothing", (1 / factors).astype(np.float32))
    output = graph.new_name(f"{tensor}{SMOOTHED}")
    for node in readers:
        node.input[0] = output
    name = graph.new_name(f"{tensor}_Smooth")
    return onnx.helper.make_node("Mul", [tensor, inverse], [output], name=name)
