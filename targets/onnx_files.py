"""ONNX models as protobuf's messages, of 2 GiB at most: what is larger has its weights outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = [
    "SINGLE_FILE_LIMIT_BYTES",
    "copied",
    "drop_unread_constants",
    "save",
    "without_weights",
]

SINGLE_FILE_LIMIT_BYTES = 1_800_000_000
"""Protobuf refuses messages of 2 GiB; this leaves room for the graph and for rewriting it."""


def save(model: Any, path: Path) -> None:
    """Save a model; large weights go to a file beside it, of its name and ``.data``."""
    import onnx

    size_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size_bytes <= SINGLE_FILE_LIMIT_BYTES:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")


def copied(message: Any) -> Any:
    """A message that outlives the one that it was a part of."""
    found = type(message)()
    found.CopyFrom(message)
    return found


def drop_unread_constants(graph: Any) -> None:
    """Remove the initializers that no node reads and that the graph does not give, in place."""
    read = {name for node in graph.node for name in node.input}
    read |= {each.name for each in graph.output}
    for index in range(len(graph.initializer) - 1, -1, -1):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def without_weights(model: Any, *, larger_than_bytes: int = -1) -> Any:
    """A copy with the names, types and shapes of its initializers alone.

    Args:
        model: Any size.
        larger_than_bytes: Smaller ones keep their values: shapes and axes are constants too,
            without which no type behind them can be inferred.
    """
    import onnx

    slim = onnx.ModelProto()
    for part, value in model.ListFields():
        if part.name != "graph":
            _set(slim, part.name, value)
    for part, value in model.graph.ListFields():
        if part.name != "initializer":
            _set(slim.graph, part.name, value)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() > larger_than_bytes:
            slim.graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
        else:
            slim.graph.initializer.append(tensor)
    return slim


def _set(message: Any, name: str, value: Any) -> None:
    """Set a field of a protobuf message of any kind."""
    field = getattr(message, name)
    if hasattr(field, "CopyFrom"):
        field.CopyFrom(value)
    elif hasattr(field, "extend"):
        field.extend(value)
    else:
        setattr(message, name, value)
