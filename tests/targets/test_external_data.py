"""Weights outside of an ONNX file are found wherever they hide, and only listed files are read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from targets.errors import BundleError
from targets.external_data import check_external_data, external_locations


def outside(name: str, location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(name: str, *, nodes: Any = (), tensors: Any = (), sparse: Any = ()) -> Any:
    made = helper.make_graph(list(nodes), name, [], [], initializer=list(tensors))
    made.sparse_initializer.extend(sparse)
    return made


def write(path: Path, root: Any, functions: Any = ()) -> Path:
    model = helper.make_model(root, functions=list(functions))
    path.write_bytes(model.SerializeToString())
    return path


def test_every_place_where_a_tensor_can_stand_is_searched(tmp_path: Path) -> None:
    inner = graph("inner", tensors=[outside("a", "branch.bin")])
    branch = helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=graph("empty"))
    constant = helper.make_node("Constant", [], ["k"], value=outside("b", "constant.bin"))
    many = helper.make_node("Many", [], ["m"])
    many.attribute.append(
        onnx.AttributeProto(
            name="tensors", type=onnx.AttributeProto.TENSORS, tensors=[outside("l", "list.bin")]
        )
    )
    sparse = onnx.SparseTensorProto(
        values=outside("v", "values.bin"), indices=outside("i", "indices.bin")
    )
    function = helper.make_function(
        "own", "F", [], ["k"], [constant], [helper.make_opsetid("", 17)]
    )
    root = graph(
        "root",
        nodes=[branch, many],
        tensors=[outside("w", "weights.bin"), numpy_helper.from_array(np.ones(3), "inside")],
        sparse=[sparse],
    )
    path = write(tmp_path / "model.onnx", root, [function])
    assert external_locations(path) == {
        "branch.bin",
        "constant.bin",
        "list.bin",
        "values.bin",
        "indices.bin",
        "weights.bin",
    }


def test_a_model_in_one_file_points_nowhere(encoder_path: Path) -> None:
    assert external_locations(encoder_path) == set()
    check_external_data(encoder_path, {})


def test_files_that_onnx_itself_writes_are_found(encoder_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(
        onnx.load(encoder_path), path, save_as_external_data=True, location="w.data",
        size_threshold=0,
    )  # fmt: skip
    assert external_locations(path) == {"w.data"}
    check_external_data(path, {"w.data": None, "external.onnx": None})


@pytest.mark.parametrize(
    "location", ["../../etc/passwd", "/etc/passwd", "other.bin", "./weights.bin", "", "a/../b"]
)
def test_a_location_that_is_not_listed_is_refused_by_name(tmp_path: Path, location: str) -> None:
    path = write(tmp_path / "model.onnx", graph("g", tensors=[outside("w", location)]))
    with pytest.raises(BundleError, match="does not belong to the bundle") as caught:
        check_external_data(path, {"weights.bin": None, "model.onnx": None})
    assert caught.value.given == location
    assert str(path) in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_clean_answer(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "model.onnx"
    path.write_bytes(content)
    with suppress(BundleError):  # and nothing else
        external_locations(path)


@given(st.data())
def test_a_damaged_model_gives_a_clean_answer(
    encoder_path_once: bytes, tmp_path_factory: Any, data: st.DataObject
) -> None:
    content = bytearray(encoder_path_once)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("fuzz") / "model.onnx"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(BundleError):  # and nothing else
        external_locations(path)


@pytest.fixture(scope="module")
def encoder_path_once() -> bytes:
    inner = graph("inner", tensors=[outside("a", "branch.bin")])
    branch = helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=graph("empty"))
    root = graph("root", nodes=[branch], tensors=[outside("w", "weights.bin")])
    return bytes(helper.make_model(root).SerializeToString())
