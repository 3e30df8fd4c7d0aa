"""Weights of 4 bits: groups with a scale and a centre, and the products that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from numpy.typing import NDArray

from compressor.onnx_io import Graph
from compressor.quantization import quantize_weights
from compressor.quantization.gemm import split_gemms
from compressor.quantization.groups import GroupedProducts, quantize_groups
from targets.runtimes.onnxruntime import create_session
from targets.signature import Arrays

MakeFeeds = Callable[..., Arrays]


def restored(
    integers: NDArray[Any], scales: NDArray[Any], centres: NDArray[Any]
) -> NDArray[np.float64]:
    groups = integers.reshape(len(scales), -1, integers.shape[1]).astype(np.float64)
    return np.asarray(groups * scales[:, None] + centres[:, None]).reshape(integers.shape)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_weights_that_lie_on_such_a_grid_already_are_kept() -> None:
    generator = np.random.default_rng(0)
    grid = generator.integers(-8, 8, (4, 32, 24))
    grid[:, 0], grid[:, 1] = -8, 7  # as formats of 4 bits leave them: both ends are taken
    weight = grid * generator.uniform(0.01, 1, (4, 1, 24)) + generator.normal(0, 1, (4, 1, 24))
    weight = weight.reshape(128, 24).astype(np.float32)
    integers, scales, centres = quantize_groups(weight, size=32)
    np.testing.assert_array_equal(integers, grid.reshape(128, 24))
    np.testing.assert_allclose(restored(integers, scales, centres), weight, atol=1e-5)


def test_the_fit_lowers_the_error_of_the_plain_range_in_every_group() -> None:
    weight = normal(128, 50)
    found = restored(*quantize_groups(weight, size=32))
    groups = weight.reshape(4, 32, 50)
    low, step = groups.min(axis=1), np.ptp(groups, axis=1) / 15
    plain = np.rint((groups - low[:, None]) / step[:, None]) * step[:, None] + low[:, None]
    ours = ((found.reshape(groups.shape) - groups) ** 2).sum(axis=1)
    theirs = ((plain - groups) ** 2).sum(axis=1)
    assert (ours <= theirs * 1.0001).all()
    assert ours.sum() < 0.95 * theirs.sum()


def test_groups_of_one_value_are_exact() -> None:
    weight = np.repeat(normal(4, 3), 16, axis=0)
    found = quantize_groups(weight, size=16)
    np.testing.assert_array_equal(restored(*found), weight)
    assert all(np.isfinite(each).all() for each in found)
    integers, _, centres = found
    assert not integers.any()  # some runtimes round what is multiplied by them, not by the centre
    np.testing.assert_array_equal(centres, weight[::16])


def outputs(path: Path, feeds: Arrays, optimization: Any) -> NDArray[np.float32]:
    session = create_session(path, optimization=optimization)
    return np.asarray(session.run(None, feeds)[0])


def distance(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def with_rounded_weights(path: Path, size: int) -> onnx.ModelProto:
    """The float model with the values that 4 bits leave of its weights."""
    model = split_gemms(onnx.load(path), ())
    constants = {each.name: each for each in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    for node in products[:-1]:  # the head keeps 8 bits
        if node.input[1] in constants:
            tensor = constants[node.input[1]]
            weight = onnx.numpy_helper.to_array(tensor)
            values = restored(*quantize_groups(weight, size=size)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model


def test_every_runtime_multiplies_by_the_rounded_weights(
    encoder_path: Path, tmp_path: Path, make_feeds: MakeFeeds
) -> None:
    int4, wanted = tmp_path / "int4.onnx", tmp_path / "wanted.onnx"
    quantize_weights(encoder_path, int4, bits=4, group_size=16)
    onnx.checker.check_model(onnx.load(int4), full_check=True)
    onnx.save(with_rounded_weights(encoder_path, 16), wanted)
    feeds = make_feeds(seed=3)
    expected = outputs(wanted, feeds, "none")
    # The table has 8 bits: a hundredth.
    assert distance(outputs(int4, feeds, "none"), expected) < 0.02
    # Kernels of 4 bits round the activations to 8 bits as well.
    assert distance(outputs(int4, feeds, "all"), expected) < 0.04
    compiled = openvino.compile_model(int4, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert distance(next(iter(compiled(feeds).values())), expected) < 0.04
    assert distance(outputs(encoder_path, feeds, "all"), expected) > 0.04  # 4 bits are few


@pytest.mark.parametrize("behind", ["bias", "softcap", "norm"])
def test_the_head_keeps_8_bits_whatever_follows_it(tmp_path: Path, behind: str) -> None:
    """As in Marian and BART (a bias), Gemma 2 (a soft limit); a norm is none of a head."""
    make = onnx.helper.make_node
    tails = {
        "bias": [make("Add", ["product", "vector"], ["y"], "add")],
        "softcap": [
            make("Div", ["product", "vector"], ["divided"], "div"),
            make("Tanh", ["divided"], ["tanh"], "tanh"),
            make("Mul", ["tanh", "vector"], ["y"], "mul"),
        ],
        "norm": [make("LayerNormalization", ["product", "vector"], ["y"], "norm")],
    }
    nodes = [make("MatMul", ["x", "weight"], ["product"], "head"), *tails[behind]]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [value("x", onnx.TensorProto.FLOAT, ["rows", 32])],
        [value("y", onnx.TensorProto.FLOAT, ["rows", 16])],
        [
            onnx.numpy_helper.from_array(normal(32, 16), "weight"),
            onnx.numpy_helper.from_array(np.full(16, 3, np.float32), "vector"),
        ],
    )
    opset = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.save(model, tmp_path / "float.onnx")
    quantize_weights(tmp_path / "float.onnx", tmp_path / "int4.onnx", bits=4, group_size=16)
    kinds = {each.data_type for each in onnx.load(tmp_path / "int4.onnx").graph.initializer}
    has_4_bits = bool(kinds & {onnx.TensorProto.INT4, onnx.TensorProto.UINT4})
    assert has_4_bits == (behind == "norm")


def test_products_that_keep_8_bits_are_told(encoder_path: Path, tmp_path: Path) -> None:
    """Their inputs do not fall into groups of this size."""
    model = split_gemms(onnx.load(encoder_path), ())
    shapes = {each.name: list(each.dims) for each in model.graph.initializer}
    inputs = [
        shapes[node.input[1]][0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in shapes
    ]
    summary = quantize_weights(encoder_path, tmp_path / "int4.onnx", bits=4, group_size=128)
    uneven = [size for size in inputs if size % 128]
    assert len(summary.wider) == len(uneven) > 0
    assert f"NOTE: {len(uneven)} of them to 8 bits" in summary.note
    summary = quantize_weights(encoder_path, tmp_path / "even.onnx", bits=4, group_size=16)
    assert summary.wider == ()
    assert "8 bits" not in summary.note


def test_products_of_one_tensor_share_the_sums_of_its_groups(
    encoder_path: Path, tmp_path: Path
) -> None:
    summary = quantize_weights(encoder_path, tmp_path / "int4.onnx", bits=4, group_size=16)
    model = onnx.load(tmp_path / "int4.onnx")
    sums = [node for node in model.graph.node if node.name.endswith("_add_up")]
    centres = [node for node in model.graph.node if node.name.endswith("_centres")]
    assert len({node.input[0] for node in sums}) == len(sums) < len(centres)
    names = {node.name for node in onnx.load(encoder_path).graph.node}
    assert set(summary.quantized_nodes) | set(summary.float_nodes) <= names


@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_weight_that_layers_share_is_stored_once(is_weighted: bool) -> None:
    """Unless the errors of its channels count otherwise in each."""
    body = """
        <ir_version: 10, opset_import: ["" : 21]>
        main (float[n, 32] x) => (float[n, 32] y) { a = MatMul(x, w) y = MatMul(a, w) }
    """
    model = onnx.parser.parse_model(body)
    weight = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    importance = {"a": np.arange(1.0, 33.0)} if is_weighted else {}
    products = GroupedProducts(Graph(model), 16, importance)
    for node in model.graph.node:
        products.product(node)
    stored = [each.name for each in model.graph.initializer if "int4" in each.name]
    assert len(stored) == 1 + is_weighted


@pytest.mark.parametrize("size", [16, 128])
def test_what_does_not_fall_into_groups_has_8_bits(
    encoder_path: Path, tmp_path: Path, size: int
) -> None:
    quantize_weights(encoder_path, tmp_path / "int4.onnx", bits=4, group_size=size)
    model = onnx.load(tmp_path / "int4.onnx")
    kinds = {each.name: each.data_type for each in model.graph.initializer}
    int4 = [name for name, kind in kinds.items() if kind == onnx.TensorProto.INT4]
    assert bool(int4) == (size == 16)
    assert onnx.TensorProto.INT8 in kinds.values()


def test_what_gives_an_output_has_8_bits(tmp_path: Path) -> None:
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [make("MatMul", ["x", "w1"], ["h"], "inner"), make("MatMul", ["h", "w2"], ["y"], "head")],
        "two products",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 32])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [onnx.numpy_helper.from_array(normal(32, 32), "w1"),
         onnx.numpy_helper.from_array(normal(32, 8), "w2")],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), tmp_path / "float.onnx")
    summary = quantize_weights(tmp_path / "float.onnx", tmp_path / "int4.onnx", bits=4)
    assert summary.quantized_nodes == ("inner", "head")
    kinds = {
        each.name: each.data_type
        for each in onnx.load(tmp_path / "int4.onnx").graph.initializer
        if each.data_type != onnx.TensorProto.FLOAT
    }
    assert kinds["w1_int4"] == onnx.TensorProto.INT4
    assert kinds["w2_quantized"] == onnx.TensorProto.INT8


def test_excluded_products_stay_as_they_were(encoder_path: Path, tmp_path: Path) -> None:
    [first, *_] = [
        node for node in onnx.load(encoder_path).graph.node
        if node.op_type == "MatMul" and node.name not in ("scores", "mixed")
    ]  # fmt: skip
    path = tmp_path / "int4.onnx"
    summary = quantize_weights(encoder_path, path, bits=4, group_size=16, exclude=[first.name])
    assert first.name in summary.float_nodes
    again = next(node for node in onnx.load(path).graph.node if node.name == first.name)
    assert again == first


def test_errors_count_by_importance() -> None:
    weight = normal(64, 30)
    importance = np.where(np.arange(64) % 8 == 0, 100.0, 1.0).astype(np.float32)

    def error(**settings: Any) -> NDArray[np.float64]:
        change = restored(*quantize_groups(weight, size=32, **settings)) - weight
        return np.asarray((importance[:, None] * change**2).sum(axis=1)).reshape(2, 32).sum(axis=1)

    assert (error(importance=importance) < 0.8 * error()).all()
    np.testing.assert_allclose(error(importance=importance), error(importance=7 * importance))
    np.testing.assert_array_equal(error(importance=np.zeros(64, np.float32)), error())


def test_without_rounds_groups_have_their_plain_range() -> None:
    weight = normal(32, 10)
    _, scales, centres = quantize_groups(weight, size=32, rounds=0)
    np.testing.assert_allclose(scales[0], np.ptp(weight, axis=0) / 15, rtol=1e-5)
    np.testing.assert_allclose(centres[0] - 8 * scales[0], weight.min(axis=0), atol=1e-5)
