"""Cutting a graph in two by what follows from the context alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets.context import split_context
from targets.errors import UnsupportedModelError

FLOAT = TensorProto.FLOAT


def tensor(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def model(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    """Reads ``sound`` (N, 4) and ``ids`` (N, 3), gives ``logits`` (N, 3)."""
    sound = helper.make_tensor_value_info("sound", FLOAT, ["batch", 4])
    ids = helper.make_tensor_value_info("ids", FLOAT, ["batch", 3])
    logits = helper.make_tensor_value_info("logits", FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "graph", [sound, ids], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def check(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Both parts one after the other give what the whole gives."""
    before = proto.SerializeToString()
    encoder, decoder = split_context(proto, ("sound",))
    assert proto.SerializeToString() == before
    random = np.random.default_rng(0)
    sound, ids = (random.normal(size=(2, size)).astype(np.float32) for size in (4, 3))
    expected = run(proto, {"sound": sound, "ids": ids})["logits"]
    border = run(encoder, {"sound": sound})
    np.testing.assert_array_equal(run(decoder, {"ids": ids, **border})["logits"], expected)
    return encoder, decoder


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


WEIGHTS = [tensor("w", np.arange(12, dtype=np.float32).reshape(4, 3) / 10)]
KEYS = helper.make_node("MatMul", ["sound", "w"], ["keys"], "keys")


def test_what_follows_from_the_context_is_computed_once() -> None:
    scores = helper.make_node("Mul", ["keys", "ids"], ["logits"], "scores")
    encoder, decoder = check(model([KEYS, scores], WEIGHTS))
    assert (ops(encoder), ops(decoder)) == (["MatMul"], ["Mul"])
    assert not decoder.graph.initializer
    assert [value.name for value in decoder.graph.input] == ["ids", "keys"]


def test_an_input_of_the_encoder_that_the_decoder_reads_too_goes_along() -> None:
    nodes = [
        KEYS,
        helper.make_node("ReduceSum", ["sound", "axis"], ["loud"], "loud"),
        helper.make_node("MatMul", ["sound", "w"], ["other"], "other"),
        helper.make_node("Gather", ["sound", "places"], ["cut"], "cut", axis=1),
        helper.make_node("Add", ["cut", "ids"], ["sum"], "sum"),
        helper.make_node("Concat", ["ids", "sound"], ["both"], "both", axis=1),
        helper.make_node("Gather", ["both", "places"], ["some"], "some", axis=1),
        helper.make_node("Add", ["some", "sum"], ["logits"], "last"),
    ]
    weights = [*WEIGHTS, tensor("axis", [1]), tensor("places", [0, 1, 2])]
    encoder, decoder = check(model(nodes, weights))
    assert [value.name for value in encoder.graph.output] == ["cut", "sound_kept"]
    assert "ReduceSum" not in ops(encoder)  # nothing reads it
    assert [each.name for each in decoder.graph.initializer] == ["places"]


def test_weights_and_what_follows_from_them_are_in_each_part_that_reads_them() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["table", "scale"], ["t"], "table"),
        helper.make_node("MatMul", ["sound", "w"], ["keys"], "keys"),
        helper.make_node("Add", ["keys", "t"], ["shifted"], "shifted"),
        helper.make_node("Mul", ["ids", "t"], ["scaled"], "scaled"),
        helper.make_node("Add", ["shifted", "scaled"], ["logits"], "last"),
    ]
    table = [tensor("table", np.array([3, -2, 7], np.int8)), tensor("scale", np.float32(0.1))]
    encoder, decoder = check(model(nodes, [*WEIGHTS, *table]))
    assert ops(encoder) == ["DequantizeLinear", "MatMul", "Add"]
    assert ops(decoder) == ["DequantizeLinear", "Mul", "Add"]


def test_what_was_quantized_travels_as_integers() -> None:
    """So that the decoder has the dequantization beside the product that it fuses with."""
    scale, zero = tensor("scale", np.float32(0.05)), tensor("zero", np.int8(0))
    nodes = [
        KEYS,
        helper.make_node("QuantizeLinear", ["keys", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], "dq"),
        helper.make_node("Mul", ["dq", "ids"], ["logits"], "scores"),
    ]
    encoder, decoder = check(model(nodes, [*WEIGHTS, scale, zero]))
    assert ops(decoder) == ["DequantizeLinear", "Mul"]
    [border] = encoder.graph.output
    assert border.type.tensor_type.elem_type == TensorProto.INT8


def test_a_value_of_an_unknown_type_is_refused_by_name() -> None:
    nodes = [
        helper.make_node("Strange", ["sound"], ["strange"], "strange", domain="elsewhere"),
        helper.make_node("Mul", ["strange", "ids"], ["logits"], "scores"),
    ]
    proto = model(nodes, [])
    proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    with pytest.raises(UnsupportedModelError, match="the types of some values") as caught:
        split_context(proto, ("sound",))
    assert caught.value.given == "strange"
