"""Int8 products and attention as operators of ONNX Runtime's own, which it does not make of Q/DQ.

It fuses a product that reads int8 on both sides, but neither with its bias nor, where its weights
are int8, with the attention around it. Works on ``onnx.ModelProto`` objects; onnx is imported when
a function is called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from targets.onnx_files import copied, drop_unread_constants

if TYPE_CHECKING:
    import onnx

__all__ = ["ATTENTION", "PRODUCT", "fuse_attention", "fuse_products"]

DOMAIN = "com.microsoft"
PRODUCT = "MatMulIntegerToFloat"
ATTENTION = "QAttention"
_NEVER = -1e4
"""What is added to the scores of tokens that are not attended to, or less."""


def fuse_products(model: onnx.ModelProto) -> int:
    """Make one node of a product of int8 values with constant int8 weights and its bias, in place.

    Args:
        model: In Q/DQ form; is changed.

    Returns:
        How many products were fused.
    """
    from onnx import helper

    graph = _Graph(model)
    fused: dict[int, onnx.NodeProto] = {}  # place of the node that it takes the place of
    gone: set[int] = set()
    for node in graph.nodes:
        if node.op_type != "MatMul":
            continue
        values, weights = (graph.maker(name, "DequantizeLinear") for name in node.input)
        if values is None or weights is None or not graph.are_columns(weights):
            continue
        if values.input[0] in graph.constants or not graph.is_scalar(values.input[1]):
            continue
        inputs = _sides(values, weights)
        columns = graph.constants[weights.input[0]].dims[1]
        last, bias = node, graph.bias_of(node, columns)
        if bias is not None:
            last, name = bias
            inputs.append(name)
            gone.add(id(node))
        fused[id(last)] = helper.make_node(
            PRODUCT, inputs, [last.output[0]], node.name, domain=DOMAIN
        )
    graph.replace(fused, gone)
    return len(fused)


def _sides(values: onnx.NodeProto, weights: onnx.NodeProto) -> list[str]:
    """The inputs of a product: both sides, their scales, their zero points."""
    zeros = [each.input[2] if len(each.input) > 2 else "" for each in (values, weights)]
    return [values.input[0], weights.input[0], values.input[1], weights.input[1], *zeros]


@dataclass(frozen=True)
class _Attention:
    """What a node of attention is made of.

    Attributes:
        products: Those of query, key and value, in the form of `fuse_products`.
        num_heads: As many.
        mask: The input with ones for the tokens that are attended to, (N, L); None for all.
        never: What is added to the scores of the others.
        last: The node that gives the result.
    """

    products: tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]
    num_heads: int
    mask: str | None
    never: float
    last: onnx.NodeProto


def fuse_attention(model: onnx.ModelProto) -> int:
    """Make one node of attention and the products of query, key and value before it, in place.

    Args:
        model: After :func:`fuse_products`; is changed.

    Returns:
        How many were fused: those whose mask is an input of the model, or that have none.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = _Graph(model)
    fused: dict[int, onnx.NodeProto] = {}
    masks: dict[str, str] = {}
    joined: dict[tuple[str, ...], dict[str, str]] = {}  # layers may share their weights
    for node in graph.nodes:
        found = _read_attention(graph, node) if node.op_type == "Softmax" else None
        if found is None:
            continue
        query = found.products[0]
        own = tuple(
            name
            for each in found.products
            for name in (each.input[1], each.input[3], *each.input[5:])
        )
        if own not in joined:
            parts = {
                "weight": np.concatenate(
                    [graph.array(each.input[1]) for each in found.products], 1
                ),
                "bias": np.concatenate([graph.bias(each) for each in found.products]),
                "scale": np.concatenate([graph.columns(each, 3) for each in found.products]),
                "zero_point": np.concatenate([graph.columns(each, 5) for each in found.products]),
            }
            joined[own] = {name: f"{node.name or node.output[0]}_{name}" for name in parts}
            for name, value in parts.items():
                model.graph.initializer.append(numpy_helper.from_array(value, joined[own][name]))
        names = joined[own]
        if found.mask is not None:
            masks.setdefault(found.mask, f"{found.mask}_int32")
        inputs = [
            query.input[0], names["weight"], names["bias"], query.input[2], names["scale"],
            masks[found.mask] if found.mask is not None else "",
            query.input[4], names["zero_point"],
        ]  # fmt: skip
        fused[id(found.last)] = helper.make_node(
            ATTENTION,
            inputs,
            [found.last.output[0]],
            node.name,
            domain=DOMAIN,
            num_heads=found.num_heads,
            mask_filter_value=found.never,
        )
    casts = [
        helper.make_node("Cast", [name], [cast], cast, to=TensorProto.INT32)
        for name, cast in masks.items()
    ]
    graph.replace(fused, set(), first=casts)
    return len(fused)


def _read_attention(graph: _Graph, softmax: onnx.NodeProto) -> _Attention | None:
    """The attention around the softmax of its scores; None where it is of another kind."""
    scores = graph.maker(softmax.input[0])
    if scores is None or graph.attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    mask, never = None, _NEVER
    if scores.op_type == "Add":
        added = [graph.maker(name) for name in scores.input]
        scored = [place for place, each in enumerate(added) if each and each.op_type == "Mul"]
        others = [scores.input[1 - place] for place in scored]
        found = [graph.mask(name) for name in others]
        known = [(place, each) for place, each in zip(scored, found, strict=True) if each]
        if len(known) != 1:
            return None
        [(place, (mask, never))] = known
        scores = added[place]
    if scores is None or scores.op_type != "Mul":
        return None
    scales = [name for name in scores.input if name in graph.constants]
    products = [each for name in scores.input if (each := graph.maker(name, "MatMul"))]
    if len(scales) != 1 or len(products) != 1 or not graph.is_scalar(scales[0]):
        return None
    [product] = products
    query = graph.heads(product.input[0], (0, 2, 1, 3))
    key = graph.heads(product.input[1], (0, 2, 3, 1))
    mixed = graph.only_reader(softmax.output[0], "MatMul")
    if query is None or key is None or mixed is None or mixed.input[0] != softmax.output[0]:
        return None
    value = graph.heads(mixed.input[1], (0, 2, 1, 3))
    turned = graph.only_reader(mixed.output[0], "Transpose")
    if value is None or turned is None or graph.axes(turned) != (0, 2, 1, 3):
        return None
    last = graph.only_reader(turned.output[0], "Reshape")
    if last is None or key[1:] != query[1:] or value[1:] != query[1:]:
        return None
    _, num_heads, size = query
    sides = (query[0], key[0], value[0])
    same = {(each.input[0], each.input[2], each.input[4]) for each in sides}
    if not graph.is_uint8(sides[0].input[4]):
        return None
    if len(same) != 1 or not math.isclose(float(graph.array(scales[0])), size**-0.5, rel_tol=1e-5):
        return None
    joined = graph.array(last.input[1]).tolist() if last.input[1] in graph.constants else []
    if not _keeps_rows(joined) or joined[2:] not in ([-1], [num_heads * size]):
        return None
    return _Attention(sides, num_heads, mask, never, last)


def _keeps_rows(shape: list[int]) -> bool:
    """Whether a ``Reshape`` of inputs and tokens leaves both as they are: (N, L, ...)."""
    return shape[:2] == [0, 0] or (shape[:1] == [-1] and len(shape) > 1 and shape[1] > 0)


class _Graph:
    """A graph with who makes and who reads each value.

    Args:
        model: Its nodes are replaced by :meth:`replace`.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        if any(each.HasField("g") for node in self.nodes for each in node.attribute):
            self.nodes = []  # what inner graphs read is not looked at: nothing is fused
        self.constants = {each.name: each for each in model.graph.initializer}
        self._makers = {name: node for node in self.nodes for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {each.name for each in model.graph.output}
        self._inputs = {each.name: each.type.tensor_type for each in model.graph.input}

    def maker(self, name: str, kind: str | None = None) -> onnx.NodeProto | None:
        """Who makes a value, if a node of the kind does."""
        found = self._makers.get(name)
        return found if found is None or kind in (None, found.op_type) else None

    def only_reader(self, name: str, kind: str) -> onnx.NodeProto | None:
        """Who alone reads a value, if a node of the kind does."""
        readers = self._readers.get(name, [])
        if len(readers) != 1 or name in self._outputs or readers[0].op_type != kind:
            return None
        return readers[0]

    def array(self, name: str) -> NDArray[Any]:
        """The value of a constant."""
        from onnx import numpy_helper

        found: NDArray[Any] = numpy_helper.to_array(self.constants[name])
        return found

    def is_uint8(self, name: str) -> bool:
        """Whether a constant has that type."""
        from onnx import TensorProto

        return name in self.constants and self.constants[name].data_type == TensorProto.UINT8

    def is_scalar(self, name: str) -> bool:
        """Whether a constant is one number."""
        return name in self.constants and not self.constants[name].dims

    def attribute(self, node: onnx.NodeProto, name: str, default: int) -> int:
        """A whole number."""
        return next((each.i for each in node.attribute if each.name == name), default)

    def axes(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """How a ``Transpose`` turns what it reads."""
        return next((tuple(each.ints) for each in node.attribute if each.name == "perm"), ())

    def are_columns(self, node: onnx.NodeProto) -> bool:
        """Whether a ``DequantizeLinear`` reads constant int8 weights, (inner, columns), with one
        scale for all or one a column."""
        from onnx import TensorProto

        if not all(name in self.constants for name in node.input):
            return False
        weights, scale = (self.constants[name] for name in node.input[:2])
        if weights.data_type != TensorProto.INT8 or len(weights.dims) != 2:
            return False
        by_column = self.attribute(node, "axis", 1) in (1, -1)
        return not scale.dims or (by_column and list(scale.dims) == [weights.dims[1]])

    def bias_of(self, node: onnx.NodeProto, columns: int) -> tuple[onnx.NodeProto, str] | None:
        """The addition of a constant to each column of a product, if that alone reads it."""
        from onnx import TensorProto

        add = self.only_reader(node.output[0], "Add")
        if add is None:
            return None
        [other] = [name for name in add.input if name != node.output[0]] or [""]
        tensor = self.constants.get(other)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            return None
        return (add, other) if list(tensor.dims) == [columns] else None

    def bias(self, product: onnx.NodeProto) -> NDArray[np.float32]:
        """That of a fused product, (columns,); zeros where it has none."""
        if len(product.input) > 6:
            return self.array(product.input[6])
        return np.zeros(self.constants[product.input[1]].dims[1], np.float32)

    def columns(self, product: onnx.NodeProto, place: int) -> NDArray[Any]:
        """An input of a fused product that says something of its weights, (columns,)."""
        count = self.constants[product.input[1]].dims[1]
        if not product.input[place]:
            return np.zeros(count, np.int8)
        return np.broadcast_to(self.array(product.input[place]), (count,))

    def heads(self, name: str, axes: tuple[int, ...]) -> tuple[onnx.NodeProto, int, int] | None:
        """The fused product whose columns are cut into heads, how many, and the size of each."""
        turned = self.maker(name, "Transpose")
        if turned is None or self.axes(turned) != axes:
            return None
        cut = self.maker(turned.input[0], "Reshape")
        product = None if cut is None else self.maker(cut.input[0], PRODUCT)
        if cut is None or product is None or cut.input[1] not in self.constants:
            return None
        shape = self.array(cut.input[1]).tolist()
        if len(shape) != 4 or not _keeps_rows(shape) or shape[3] < 1:
            return None
        count, rest = divmod(int(self.constants[product.input[1]].dims[1]), shape[3])
        return None if rest or shape[2] not in (count, -1) else (product, count, shape[3])

    def mask(self, name: str) -> tuple[str, float] | None:
        """The input of ones and zeros behind what is added to the scores, and what zeros add.

        That is ``(1 - mask) * never``, (N, 1, 1, L).
        """
        spread = self.maker(name, "Unsqueeze")
        if spread is None or spread.input[1] not in self.constants:
            return None
        node = self.maker(spread.input[0], "Mul")
        if node is None or self.array(spread.input[1]).tolist() != [1, 2]:
            return None
        never = [each for each in node.input if self.is_scalar(each)]
        [absent, *_] = [self.maker(each, "Sub") for each in node.input if each not in never] or [
            None
        ]
        if len(never) != 1 or absent is None or not self.is_scalar(absent.input[0]):
            return None
        cast = self.maker(absent.input[1], "Cast")
        given = None if cast is None else self._inputs.get(cast.input[0])
        if cast is None or given is None or len(given.shape.dim) != 2:
            return None
        value = float(self.array(never[0]))
        is_mask = float(self.array(absent.input[0])) == 1 and value <= _NEVER
        return (cast.input[0], value) if is_mask else None

    def replace(
        self,
        new: dict[int, onnx.NodeProto],
        gone: set[int],
        *,
        first: list[onnx.NodeProto] | None = None,
    ) -> None:
        """Put nodes in the place of others, and leave out what nobody reads any more.

        Args:
            new: By the identity of the node that each takes the place of.
            gone: Identities of nodes that go.
            first: Nodes that come before all others.
        """
        from onnx import helper

        if not new:
            return
        nodes = [
            *(first or []),
            *(new.get(id(node), node) for node in self.nodes if id(node) not in gone),
        ]
        read = set(self._outputs)
        kept = []
        for node in reversed(nodes):
            if not read.isdisjoint(node.output):
                read.update(node.input)
                kept.append(copied(node))
        graph = self.model.graph
        del graph.node[:]
        graph.node.extend(reversed(kept))
        drop_unread_constants(graph)
        if all(each.domain != DOMAIN for each in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
