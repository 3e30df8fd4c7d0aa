"""Embedding tables in 4 bits: two integers a byte, unpacked with what every runtime has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressor.onnx_io import set_opset
from compressor.quantization import quantize_weights
from compressor.quantization.tables import quantize_rows_to_4_bits, quantize_tables
from targets import qdq

IDS = np.array([[0, 3, 4095], [7, 7, 1]])


def lookup(*tables: NDArray[np.float32]) -> onnx.ModelProto:
    """A model that looks the same ids up in some tables."""
    names = [f"table{number}" for number in range(len(tables))]
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Gather", [name, "ids"], [f"{name}_rows"], f"{name}_gather")
                for name in names
            ],
            "lookup",
            [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", "l"])],
            [
                helper.make_tensor_value_info(
                    f"{name}_rows", onnx.TensorProto.FLOAT, ["n", "l", each.shape[1]]
                )
                for each, name in zip(tables, names, strict=True)
            ],
            [numpy_helper.from_array(each, name) for each, name in zip(tables, names, strict=True)],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    return set_opset(model, 13)


def table(rows: int = 4096, width: int = 256, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def run_onnxruntime(model: onnx.ModelProto) -> list[NDArray[np.float32]]:
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=providers)
    return list(session.run(None, {"ids": IDS}))


def run_openvino(model: onnx.ModelProto, path: Path) -> list[NDArray[np.float32]]:
    onnx.save(model, path)
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(each) for each in compiled({"ids": IDS}).values()]


def types(model: onnx.ModelProto) -> dict[str, int]:
    return {each.name: each.data_type for each in model.graph.initializer}


@pytest.mark.parametrize("turned", [False, True])
def test_rows_are_the_integers_times_their_scales_on_every_runtime(
    tmp_path: Path, turned: bool
) -> None:
    values = table()
    integers, scales = quantize_rows_to_4_bits(values)
    model = lookup(values)
    assert quantize_tables(model, bits=4) == ("table0",)
    if turned:
        assert qdq.gather_before_dequantize(model) == 1
        assert not [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    onnx.checker.check_model(model, full_check=True)
    wanted = (integers * scales)[IDS]
    np.testing.assert_array_equal(run_onnxruntime(model)[0], wanted)
    np.testing.assert_array_equal(run_openvino(model, tmp_path / "m.onnx")[0], wanted)


def test_a_table_takes_half_the_bytes_of_int8() -> None:
    int8, int4 = lookup(table()), lookup(table())
    quantize_tables(int8)
    quantize_tables(int4, bits=4)
    assert int4.ByteSize() < 0.52 * int8.ByteSize()


def test_small_and_odd_tables_keep_8_bits_and_excluded_ones_their_floats() -> None:
    model = lookup(table(rows=4100, width=255), table(width=128), table(), table())
    assert quantize_tables(model, ["table3_gather"], bits=4) == ("table0", "table1", "table2")
    found = types(model)
    assert {"table0_quantized", "table1_quantized", "table2_packed", "table3"} <= set(found)
    assert found["table3"] == onnx.TensorProto.FLOAT


def test_two_look_ups_share_one_table() -> None:
    model = lookup(table())
    again = helper.make_node("Gather", ["table0", "ids"], ["again"], "again")
    model.graph.node.append(again)
    shape = ["n", "l", 256]
    model.graph.output.append(helper.make_tensor_value_info("again", onnx.TensorProto.FLOAT, shape))
    assert quantize_tables(model, bits=4) == ("table0",)
    first, second = run_onnxruntime(model)
    np.testing.assert_array_equal(first, second)
    assert sum(name.endswith("_packed") for name in types(model)) == 1


def errors(table: NDArray[np.float32], scales: Iterable[float]) -> float:
    """The smallest squared error of a row over some scales, by trial."""
    return min(
        float((((np.clip(np.rint(table / each), -8, 7) * each) - table) ** 2).sum())
        for each in scales
    )


def test_the_scale_clips_where_that_costs_least() -> None:
    values = table(rows=20)
    integers, scales = quantize_rows_to_4_bits(values)
    assert (integers.min(), integers.max()) == (-8, 7)
    clipped = []
    for row, ints, scale in zip(values, integers, scales, strict=True):
        largest = np.abs(row).max() / 7.5
        found = float(((ints * scale - row) ** 2).sum())
        assert found <= errors(row, largest * np.linspace(0.5, 1, 21)) * 1.001
        clipped.append(float(scale[0]) < 0.99 * largest)
    assert np.mean(clipped) > 0.5  # normal values have tails


def test_a_row_of_zeros_stays_so() -> None:
    integers, scales = quantize_rows_to_4_bits(np.zeros((2, 4), np.float32))
    assert not integers.any()
    assert np.isfinite(scales).all()


def test_int8_weights_go_with_tables_in_4_bits(tmp_path: Path) -> None:
    onnx.save(lookup(table()), tmp_path / "float.onnx")
    summary = quantize_weights(tmp_path / "float.onnx", tmp_path / "out.onnx", table_bits=4)
    assert summary.tables == ("table0",)
    assert "table0_packed" in types(onnx.load(tmp_path / "out.onnx"))
