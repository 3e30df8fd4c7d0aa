from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets import onnx_files


def model() -> onnx.ModelProto:
    """(N, 40) -> (N, 4, 10), by a product and the shape of a constant."""
    weights = [
        numpy_helper.from_array(np.ones((40, 40), np.float32), "weight"),
        numpy_helper.from_array(np.array([0, 4, 10], np.int64), "shape"),
    ]
    nodes = [
        helper.make_node("MatMul", ["input", "weight"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], ["output"]),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 40])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [given], [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_shapes_follow_without_the_values_of_large_weights() -> None:
    whole = model()
    slim = onnx_files.without_weights(whole, larger_than_bytes=1024)
    assert [each.name for each in slim.graph.initializer] == ["weight", "shape"]
    assert [len(each.raw_data) for each in slim.graph.initializer] == [0, 24]
    assert len(whole.graph.initializer[0].raw_data) == 6400  # it stays as it is
    expected, found = (onnx.shape_inference.infer_shapes(each).graph for each in (whole, slim))
    assert found.value_info == expected.value_info
    assert found.output == expected.output
    dims = found.output[0].type.tensor_type.shape.dim
    assert [each.dim_param or each.dim_value for each in dims] == ["batch", 4, 10]
    bare = onnx_files.without_weights(whole)
    assert [len(each.raw_data) for each in bare.graph.initializer] == [0, 0]
    assert bare.opset_import == whole.opset_import


@pytest.mark.parametrize(("limit_bytes", "files"), [(10_000, 1), (6_000, 2)])
def test_weights_beyond_the_limit_lie_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_bytes: int, files: int
) -> None:
    monkeypatch.setattr(onnx_files, "SINGLE_FILE_LIMIT_BYTES", limit_bytes)
    whole = model()
    onnx_files.save(whole, tmp_path / "model.onnx")
    names = ["model.onnx", "model.onnx.data"][:files]
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    found = onnx.load(tmp_path / "model.onnx")
    weight = numpy_helper.to_array(found.graph.initializer[0])
    np.testing.assert_array_equal(weight, np.ones((40, 40)))
