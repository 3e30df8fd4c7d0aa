"""Keys and values that a language model keeps, as integers of 8 bits: a quarter of the memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx

from compressor.errors import PassError
from compressor.onnx_io import Graph, open_model, save_model
from compressor.quantization.gemm import name_nodes
from compressor.quantization.observe import observe
from targets.signature import Arrays, StateSpec

__all__ = ["quantize_cache"]

_LARGEST, _CENTRE = 127, 128  # unsigned: ONNX Runtime on x86 has kernels for that alone


def quantize_cache(
    source: Path,
    model: Path,
    state: Sequence[StateSpec],
    batches: Iterable[Arrays],
    *,
    threads: int = 1,
) -> tuple[StateSpec, ...]:
    """Keep the state of a model in 8 bits, with a scale for each channel of a head.

    What is new is rounded before it is joined to what was kept, and all of it is restored where
    attention reads it, so that nothing is rounded twice. The scales are the largest magnitudes on
    calibration data: keys differ most from channel to channel (Hooper et al., "KVQuant", NeurIPS
    2024; Liu et al., "KIVI", ICML 2024).

    Args:
        source: The float32 model, which is calibrated.
        model: The same one, perhaps with other weights; is changed.
        state: What it keeps, as float32.
        batches: Calibration inputs, by name, with the state before the first run.
        threads: CPU threads to calibrate with.

    Returns:
        What it keeps now.

    Raises:
        PassError: A part of the state is not joined to what was kept as keys and values are.
    """
    plain = name_nodes(open_model(source))
    parts = {spec.name: _joined(Graph(plain), spec)[1] for spec in state}
    observed = observe(plain, batches, channel_maxima=list(parts.values()), threads=threads)
    changed = open_model(model)
    graph = Graph(changed)
    types = {
        value.name: value.type.tensor_type
        for value in (*changed.graph.input, *changed.graph.output)
    }
    nodes = {node.output[0]: [node] for node in changed.graph.node}
    for spec in state:
        join, new = _joined(graph, spec)
        maxima = observed.channel_maxima[parts[spec.name]]
        scales = np.where(maxima > 0, maxima / _LARGEST, 1.0).astype(np.float32)
        scale = graph.add_initializer(f"{spec.name}_scale", scales)
        zero = graph.add_initializer(
            f"{spec.name}_zero_point", np.full(scales.shape, _CENTRE, np.uint8)
        )
        rounded, restored = (graph.new_name(f"{spec.output}_{part}") for part in ("uint8", "float"))
        for reader in graph.consumers[spec.output]:
            reader.input[:] = [restored if name == spec.output else name for name in reader.input]
        join.input[:] = [rounded if name == new else name for name in join.input]
        make = onnx.helper.make_node
        axis = len(spec.shape) - 1
        nodes[spec.output] = [
            make(
                "QuantizeLinear",
                [new, scale, zero],
                [rounded],
                name=graph.new_name(f"{new}_QuantizeLinear"),
                axis=axis,
            ),
            join,
            make(
                "DequantizeLinear",
                [spec.output, scale, zero],
                [restored],
                name=graph.new_name(f"{spec.output}_DequantizeLinear"),
                axis=axis,
            ),
        ]
        for name in (spec.name, spec.output):
            types[name].elem_type = onnx.TensorProto.UINT8
    graph.replace_nodes([node for group in nodes.values() for node in group])
    save_model(changed, model)
    return tuple(spec.model_copy(update={"dtype": "uint8"}) for spec in state)


def _joined(graph: Graph, spec: StateSpec) -> tuple[onnx.NodeProto, str]:
    """The node that joins what is new to what was kept, and the name of what is new."""
    node = graph.producers.get(spec.output)
    if (
        node is None
        or node.op_type != "Concat"
        or list(node.input)[:1] != [spec.name]
        or len(node.input) != 2
    ):
        raise PassError(
            "the model does not append its new keys and values to those it kept",
            where=spec.output,
            given="no such output" if node is None else f"made by {node.op_type}",
            fix="leave kv_cache out",
        )
    return node, node.input[1]
