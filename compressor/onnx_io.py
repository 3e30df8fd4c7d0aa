"""Load, save and look into ONNX models; the one place that knows protobuf's limit of 2 GB."""

from __future__ import annotations

import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from compressor.errors import CheckpointError
from targets.onnx_files import SINGLE_FILE_LIMIT_BYTES, without_weights
from targets.scratch import ScratchFolder

__all__ = [
    "DATA_SUFFIX",
    "Graph",
    "copy_model",
    "infer_shapes",
    "load_model",
    "node_types",
    "open_model",
    "prune_unused",
    "save_model",
    "set_opset",
    "sort_nodes",
    "weights_size_bytes",
]

DATA_SUFFIX = ".data"
"""Weights of a model above the limit lie in a file of the model's name with this behind it."""

_SMALLEST_OUTSIDE = 1024  # bytes; smaller tensors, such as the shapes of others, stay in the graph
_ALIGNMENT = 4096  # where tensors begin in a file of weights, so that it can be mapped


def load_model(path: Path) -> onnx.ModelProto:
    """Load a model with its external weights.

    Raises:
        CheckpointError: The file is absent or is no ONNX model.
    """
    return _read(path, external=True)


def open_model(path: Path) -> onnx.ModelProto:
    """Load a model whose external weights stay where they are; `Graph.weight` reads them.

    They are not in memory but where one is looked at: a model may be larger than that. Copies of
    the model share them, and `save_model` copies them from file to file. The file has to stay.

    Raises:
        CheckpointError: The file is absent or is no ONNX model.
    """
    model = _read(path, external=False)
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            found = ExternalDataInfo(tensor)
            place = path.parent.resolve() / found.location
            _refer(tensor, str(place), found.offset or 0, found.length)
    return model


def _read(path: Path, *, external: bool) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=external)
    except Exception as error:  # protobuf's DecodeError has no public, stable home
        raise CheckpointError(
            "this is not an ONNX model that can be read",
            where=path,
            given=error,
            fix="export the model again",
        ) from error


def save_model(
    model: onnx.ModelProto, path: Path, *, single_file_limit_bytes: int = SINGLE_FILE_LIMIT_BYTES
) -> None:
    """Save a model: one file, or above the limit a second one with the weights beside it.

    Args:
        model: The model; stays as it is.
        path: Where to write the graph. The weights go to ``path`` + ``.data``.
        single_file_limit_bytes: Weights above this many bytes go to a file of their own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_name(path.name + DATA_SUFFIX)
    if weights_size_bytes(model) <= single_file_limit_bytes:
        whole = model
        if any(map(uses_external_data, model.graph.initializer)):
            whole = copy_model(model)
            for tensor in whole.graph.initializer:
                if uses_external_data(tensor):
                    tensor.CopyFrom(numpy_helper.from_array(_value(tensor), tensor.name))
        path.write_bytes(whole.SerializeToString())
        data.unlink(missing_ok=True)
        return
    slim = without_weights(model)
    written = data.with_name(data.name + ".tmp")  # what the model reads may be the file itself
    with written.open("wb") as stream:
        for tensor, full in zip(slim.graph.initializer, model.graph.initializer, strict=True):
            if not _lies_outside(full):
                tensor.CopyFrom(full)
                continue
            stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
            begin = stream.tell()
            stream.write(_bytes(full))
            _refer(tensor, data.name, begin, stream.tell() - begin)
    os.replace(written, data)
    path.write_bytes(slim.SerializeToString())


def _refer(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor without values have those in a file, of a length in bytes."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _lies_outside(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor is large enough for the file of weights, where there is one."""
    return uses_external_data(tensor) or len(tensor.raw_data) >= _SMALLEST_OUTSIDE


def _bytes(tensor: onnx.TensorProto) -> Any:
    """The values of a tensor as they lie in a file."""
    if not uses_external_data(tensor):
        return tensor.raw_data
    found = ExternalDataInfo(tensor)
    return np.memmap(found.location, np.uint8, "r", offset=found.offset or 0, shape=(found.length,))


def _value(tensor: onnx.TensorProto) -> NDArray[Any]:
    """The values of a tensor; of those outside of the model a view of their file."""
    if not uses_external_data(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    values: NDArray[Any] = _bytes(tensor).view(dtype).reshape(tuple(tensor.dims))
    return values


def weights_size_bytes(model: onnx.ModelProto) -> int:
    """Size of all initializers of the main graph."""
    total = 0
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            total += ExternalDataInfo(tensor).length or 0
        elif tensor.raw_data:
            total += len(tensor.raw_data)
        else:
            total += numpy_helper.to_array(tensor).nbytes
    return total


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that shares nothing with the original."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def node_types(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator occurs in the main graph."""
    return Counter(node.op_type for node in model.graph.node)


def set_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """A model of at least this opset; the same object when it is one already."""
    current = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if current >= version:
        return model
    return onnx.version_converter.convert_version(model, version)


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the types and shapes of inner values, whatever the model's size."""
    if weights_size_bytes(model) <= SINGLE_FILE_LIMIT_BYTES:
        return onnx.shape_inference.infer_shapes(model)
    with ScratchFolder("shapes") as folder:
        path = folder.path / "model.onnx"
        save_model(model, path)
        onnx.shape_inference.infer_shapes_path(path, path)
        return onnx.load(path)


def sort_nodes(model: onnx.ModelProto) -> None:
    """Bring the nodes of the main graph into topological order, in place; keep it where it is."""
    graph = model.graph
    made_by = {name: index for index, node in enumerate(graph.node) for name in node.output}
    needs = [
        {made_by[name] for name in _all_inputs(node) if name in made_by} for node in graph.node
    ]
    readers: list[list[int]] = [[] for _ in needs]
    for index, before in enumerate(needs):
        for producer in before:
            readers[producer].append(index)
    ready = [index for index, before in enumerate(needs) if not before]
    order = []
    while ready:  # a heap: of what is ready, what came first goes first
        order.append(heapq.heappop(ready))
        for reader in readers[order[-1]]:
            needs[reader].discard(order[-1])
            if not needs[reader]:
                heapq.heappush(ready, reader)
    if order != list(range(len(needs))):
        nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)


@dataclass
class Graph:
    """Look-up tables over a model's main graph, and the ways in which passes change it.

    Attributes:
        model: The model that is being changed.
    """

    model: onnx.ModelProto
    initializers: dict[str, onnx.TensorProto] = field(init=False)
    producers: dict[str, onnx.NodeProto] = field(init=False)
    consumers: dict[str, list[onnx.NodeProto]] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.consumers = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.consumers[name].append(node)
        self._names = (
            set(self.initializers)
            | set(self.producers)
            | {value.name for value in (*graph.input, *graph.output)}
            | {node.name for node in graph.node}
        )

    def is_weight(self, name: str, *, rank: int | None = None) -> bool:
        """Whether ``name`` is a float32 initializer (of that rank)."""
        tensor = self.initializers.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return False
        return rank is None or len(tensor.dims) == rank

    def weight(self, name: str) -> NDArray[np.float32]:
        """Value of a float32 initializer."""
        return np.asarray(_value(self.initializers[name]), dtype=np.float32)

    def is_linear(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a ``MatMul`` with a constant (K, N) matrix on its right."""
        return node.op_type == "MatMul" and self.is_weight(node.input[1], rank=2)

    def new_name(self, wanted: str) -> str:
        """A name that no value and no node of the graph has."""
        name, number = wanted, 1
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name

    def add_initializer(self, wanted: str, array: NDArray[np.generic]) -> str:
        """Add a constant; returns its name."""
        name = self.new_name(wanted)
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
        self.model.graph.initializer.append(tensor)
        self.initializers[name] = self.model.graph.initializer[-1]
        return name

    def replace_nodes(self, nodes: list[onnx.NodeProto]) -> None:
        """Put these nodes, in topological order, in the place of all nodes; drop what is unused."""
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.model.graph.node[:]
        self.model.graph.node.extend(copies)
        prune_unused(self.model)


def prune_unused(model: onnx.ModelProto) -> None:
    """Remove initializers that nothing reads, and type information of values that are gone."""
    graph = model.graph
    read = {name for node in graph.node for name in _all_inputs(node)}
    read |= {value.name for value in graph.output}
    made = {name for node in graph.node for name in node.output}
    _keep(graph.initializer, read)
    _keep(graph.value_info, made)


def _keep(field: Any, names: Collection[str]) -> None:
    """Leave the entries with these names in a repeated protobuf field, where they are.

    Protobuf frees no memory before the whole message goes: copies of weights would stay.
    """
    for index in range(len(field) - 1, -1, -1):
        if field[index].name not in names:
            del field[index]


def _all_inputs(node: onnx.NodeProto) -> set[str]:
    """Inputs of a node and of the subgraphs in its attributes."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                names |= _all_inputs(inner)
    return names
