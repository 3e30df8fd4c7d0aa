"""Find the nodes of an ONNX model that compute in a given number format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from targets.errors import UnsupportedModelError

if TYPE_CHECKING:
    import onnx

__all__ = ["nodes_with_types", "refuse_types"]

_MOST_NAMES = 8


def nodes_with_types(model: onnx.ModelProto, types: Mapping[str, str]) -> dict[str, str]:
    """Nodes of the main graph that read or write tensors of these types.

    Args:
        model: Stays as it is.
        types: ONNX type, such as ``DOUBLE`` -> what to call it, such as ``fp64``.

    Returns:
        Node name, or operator and first output where it has none -> what its type is called.
    """
    import onnx

    wanted = {onnx.TensorProto.DataType.Value(name): called for name, called in types.items()}
    elements = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # over 2 GB, or an operator that onnx does not know: what is written counts
        inferred = model.graph
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        elements[value.name] = value.type.tensor_type.elem_type
    found = {}
    for node in model.graph.node:
        own = {attribute.t.data_type for attribute in node.attribute if attribute.HasField("t")}
        if node.op_type == "Cast":
            own |= {attribute.i for attribute in node.attribute if attribute.name == "to"}
        own |= {elements.get(name, 0) for name in (*node.input, *node.output)}
        for element in sorted(own & set(wanted)):
            found[node.name or f"{node.op_type} -> {node.output[0]}"] = wanted[element]
    return found


def refuse_types(
    model: onnx.ModelProto, types: Mapping[str, str], *, path: Path, target: str, fix: str
) -> None:
    """Refuse a model with nodes of these types.

    Raises:
        UnsupportedModelError: Names the nodes.
    """
    found = nodes_with_types(model, types)
    if found:
        names = list(found)
        listed = ", ".join(f"{name} ({found[name]})" for name in names[:_MOST_NAMES])
        more = len(names) - _MOST_NAMES
        raise UnsupportedModelError(
            f"{target} does not run {' and '.join(sorted(set(found.values())))}",
            where=path,
            given=f"{listed} and {more} more" if more > 0 else listed,
            fix=fix,
        )
