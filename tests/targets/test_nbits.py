"""Products with the integers of weights give what those with the restored weights give."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from targets.nbits import multiply_by_integers
from targets.qdq import gather_before_dequantize

ROWS = 5


def weight_node(kind: str, inputs: int, outputs: int) -> tuple[onnx.NodeProto, list[Any]]:
    """A weight as the quantization writes it: groups of 4 bits, or channels of 8."""
    generator = np.random.default_rng(0)
    if kind == "int4":
        stored = generator.integers(-8, 8, (inputs, outputs)).astype(ml_dtypes.int4)
        scales = generator.uniform(0.01, 0.1, (inputs // 32, outputs)).astype(np.float32)
        settings = {"axis": 0, "block_size": 32}
    else:
        stored = generator.integers(-127, 128, (inputs, outputs)).astype(np.int8)
        scales = generator.uniform(0.001, 0.01, outputs).astype(np.float32)
        settings = {"axis": 1}
    names = ["stored", "scales"]
    constants = [
        onnx.numpy_helper.from_array(array, name)
        for array, name in zip((stored, scales), names, strict=True)
    ]
    if kind == "int8":
        names.append("zeros")
        constants.append(onnx.numpy_helper.from_array(np.zeros(outputs, np.int8), "zeros"))
    return onnx.helper.make_node("DequantizeLinear", names, ["weight"], **settings), constants


def make_model(kind: str, inputs: int, outputs: int, *, readers: int = 1) -> onnx.ModelProto:
    maker, constants = weight_node(kind, inputs, outputs)
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    names = [f"y{number}" for number in range(readers)]
    graph = onnx.helper.make_graph(
        [maker, *(make("MatMul", ["x", "weight"], [name], f"product {name}") for name in names)],
        "products",
        [info("x", onnx.TensorProto.FLOAT, ["batch", ROWS, inputs])],
        [info(name, onnx.TensorProto.FLOAT, ["batch", ROWS, outputs]) for name in names],
        constants,
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, **feeds: NDArray[Any]) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return [np.asarray(each) for each in session.run(None, feeds)]


@pytest.mark.parametrize(
    ("kind", "inputs"), [("int4", 64), ("int4", 96), ("int8", 64), ("int8", 40), ("int8", 20)]
)
def test_the_products_are_those_of_the_restored_weights(kind: str, inputs: int) -> None:
    model = make_model(kind, inputs, 48)
    x = np.random.default_rng(1).standard_normal((2, ROWS, inputs)).astype(np.float32)
    [expected] = run(model, x=x)
    assert multiply_by_integers(model) == 1
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits"]
    [found] = run(model, x=x)
    # Inputs of a block are rounded to 8 bits: a half of 1/127 of the largest, at most.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    exact = model.graph.node[0].attribute
    next(each for each in exact if each.name == "accuracy_level").i = 1
    np.testing.assert_allclose(run(model, x=x)[0], expected, atol=1e-4 * np.abs(expected).max())


def test_products_of_one_weight_share_it_and_the_old_form_goes() -> None:
    model = make_model("int8", 64, 48, readers=2)
    x = np.random.default_rng(1).standard_normal((1, ROWS, 64)).astype(np.float32)
    assert multiply_by_integers(model) == 2
    assert [each.name for each in model.graph.initializer] == [
        "weight_blocks",
        "weight_block_scales",
    ]
    first, second = run(model, x=x)
    np.testing.assert_array_equal(first, second)


def test_a_weight_that_something_else_reads_stays_for_that() -> None:
    model = make_model("int8", 64, 48)
    model.graph.node.append(onnx.helper.make_node("Transpose", ["weight"], ["turned"], "turn"))
    info = onnx.helper.make_tensor_value_info("turned", onnx.TensorProto.FLOAT, None)
    model.graph.output.append(info)
    x = np.ones((1, ROWS, 64), np.float32)
    expected = run(model, x=x)[1]
    assert multiply_by_integers(model) == 1
    np.testing.assert_array_equal(run(model, x=x)[1], expected)


def make_tied(width: int, *, other: bool = False) -> onnx.ModelProto:
    """A table of int8 that tokens are looked up in, and that gives the scores of tokens."""
    generator = np.random.default_rng(0)
    table = generator.integers(-127, 128, (48, width)).astype(np.int8)
    scales = generator.uniform(0.001, 0.01, 48).astype(np.float32)
    turned = np.ascontiguousarray(table.T)
    turned[0, 0] += other
    constants = {"table": table, "scales": scales, "turned": turned}
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            make("DequantizeLinear", ["table", "scales"], ["rows"], "rows", axis=0),
            make("Gather", ["rows", "ids"], ["x"], "look up"),
            make("DequantizeLinear", ["turned", "scales"], ["head"], "head", axis=1),
            make("MatMul", ["x", "head"], ["y"], "product"),
        ],
        "tied",
        [info("ids", onnx.TensorProto.INT64, ["batch", "sequence"])],
        [info(name, onnx.TensorProto.FLOAT, ["batch", "sequence", None]) for name in ("x", "y")],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(
    ("width", "other", "is_shared"), [(64, False, True), (64, True, False), (40, False, False)]
)
def test_a_table_that_is_a_weight_as_well_is_kept_once(
    width: int, other: bool, is_shared: bool
) -> None:
    model = make_tied(width, other=other)
    gather_before_dequantize(model)
    ids = np.array([[0, 3, 47], [7, 7, 1]])
    plain = onnx.ModelProto.FromString(model.SerializeToString())
    expected, scores = run(plain, ids=ids)
    assert multiply_by_integers(model) == 1
    onnx.checker.check_model(model)
    large = [each.name for each in model.graph.initializer if len(each.raw_data) >= 48 * width]
    assert large == (["head_blocks"] if is_shared else ["table", "head_blocks"])
    found, found_scores = run(model, ids=ids)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found_scores - scores).max() < 0.02 * np.abs(scores).max()


def test_other_weights_are_left(make_encoder: Any) -> None:
    model = make_encoder()
    before = model.SerializeToString()
    assert multiply_by_integers(model) == 0
    assert model.SerializeToString() == before
    shifted = make_model("int8", 64, 48)
    zeros = next(each for each in shifted.graph.initializer if each.name == "zeros")
    zeros.CopyFrom(onnx.numpy_helper.from_array(np.full(48, 3, np.int8), "zeros"))
    assert multiply_by_integers(shifted) == 0
