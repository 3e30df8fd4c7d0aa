"""Widened kernels: the same results, and on CPUs with AMX the right ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from targets.convolutions import widen_kernels

Array = NDArray[np.float32]

HEIGHT, WIDTH = 20, 40


def make(
    channels: int, kernel: tuple[int, ...], *, in_int8: bool, groups: int = 1, **settings: Any
) -> onnx.ModelProto:
    """A convolution, of integers between two pairs of Q/DQ or of floats."""
    rng = np.random.default_rng(0)
    sizes = [WIDTH] if len(kernel) == 1 else [HEIGHT, WIDTH]
    weight = rng.integers(-63, 64, (8, channels, *kernel)).astype(np.int8)
    constants: dict[str, Any] = {"bias": rng.standard_normal(8).astype(np.float32)}
    nodes = []
    if in_int8:
        constants |= {"weight": weight, "scale": np.full(8, 0.01, np.float32)}
        constants |= {"zero": np.zeros(8, np.int8)}
        constants |= {"step": np.float32(0.02), "middle": np.uint8(100)}
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "step", "middle"], ["x_int8"]),
            helper.make_node("DequantizeLinear", ["x_int8", "step", "middle"], ["x_read"]),
            helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["w_read"], axis=0),
        ]
    else:
        constants["w_read"] = weight.astype(np.float32) * 0.01
    read = "x_read" if in_int8 else "x"
    nodes.append(
        helper.make_node("Conv", [read, "w_read", "bias"], ["y"], group=groups, **settings)
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels * groups, *sizes])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (2 + len(kernel)))
    tensors = [numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items()]
    graph = helper.make_graph(nodes, "one", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def feeds_of(model: onnx.ModelProto) -> dict[str, Array]:
    sizes = [each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim]
    values = np.random.default_rng(1).uniform(-2.0, 3.0, sizes)
    return {"x": values.astype(np.float32)}


def run(model: onnx.ModelProto) -> Array:
    onnx.checker.check_model(model, full_check=True)
    result: Array = ReferenceEvaluator(model).run(None, feeds_of(model))[0]
    return result


def kernels(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    return [tuple(each.dims) for each in model.graph.initializer if len(each.dims) > 2]


@pytest.mark.parametrize("in_int8", [False, True])
@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        ((8,), {}),
        ((8,), {"strides": [8]}),
        ((8,), {"pads": [3, 4], "dilations": [2]}),
        ((8,), {"groups": 2}),
        ((3, 8), {"strides": [2, 3], "pads": [1, 2, 0, 5]}),
        ((8, 8), {"strides": [8, 8], "kernel_shape": [8, 8]}),
    ],
)
def test_the_results_stay_the_same(
    in_int8: bool, kernel: tuple[int, ...], settings: dict[str, Any]
) -> None:
    model = make(16, kernel, in_int8=in_int8, **settings)
    before = run(model)
    assert widen_kernels(model) == 1
    assert kernels(model) == [(8, 16, *kernel[:-1], 9)]
    np.testing.assert_allclose(run(model), before, rtol=1e-5, atol=1e-5)
    assert widen_kernels(model) == 0


@pytest.mark.parametrize(
    ("channels", "width", "in_int8", "wide"),
    [
        (16, 4, True, 4),  # one tile of 64 bytes
        (16, 12, True, 13),
        (32, 4, True, 5),
        (32, 4, False, 4),  # a tile for each column
        (24, 4, False, 5),
        (24, 4, True, 4),  # one and a half
        (64, 8, True, 8),
        (3, 64, True, 64),  # not of four
        (8, 8, True, 8),
        (8, 8, False, 9),
    ],
)
def test_only_kernels_that_are_wrong_are_widened(
    channels: int, width: int, in_int8: bool, wide: int
) -> None:
    model = make(channels, (2, width) if width < 20 else (width,), in_int8=in_int8)
    assert widen_kernels(model) == int(wide > width)
    assert kernels(model)[0][-1] == wide


def test_a_kernel_that_another_convolution_reads_stays_for_that() -> None:
    model = make(16, (8,), in_int8=True)
    second = helper.make_node("Conv", ["x_read", "w_read"], ["z"], auto_pad="SAME_UPPER")
    model.graph.node.append(second)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 3))
    before = ReferenceEvaluator(model).run(None, feeds_of(model))
    assert widen_kernels(model) == 1
    assert sorted(kernels(model)) == [(8, 16, 8), (8, 16, 9)]
    onnx.checker.check_model(model, full_check=True)
    after = ReferenceEvaluator(model).run(None, feeds_of(model))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
@pytest.mark.parametrize(
    ("channels", "kernel", "strides"),
    [(16, (8,), [8]), (32, (4, 4), [4, 4]), (24, (4, 4), [4, 4]), (16, (3, 16), [1, 1])],
)
def test_openvino_gives_what_the_graph_says(
    precision: str,
    channels: int,
    kernel: tuple[int, ...],
    strides: list[int],
    tmp_path: Path,
) -> None:
    """It fails without the widening where the CPU has AMX, and only there."""
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    model = make(channels, kernel, in_int8=precision == "int8", strides=strides)
    expected = run(model)
    widen_kernels(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    hint = "f32" if precision == "int8" else "bf16"
    core = openvino.Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    given = compiled([feeds_of(model)["x"]])[0]
    np.testing.assert_allclose(given, expected, atol=0.03 * np.abs(expected).max())
