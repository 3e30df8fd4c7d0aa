"""Dynamic int8, int8 weights, fp16 and bf16."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compressor.errors import PassError
from compressor.onnx_io import load_model, node_types, save_model
from compressor.quantization import convert_fp16, quantize_dynamic, quantize_weights, request_bf16
from compressor.quantization.floats import PRECISION_KEY
from targets.runtimes.onnxruntime import create_session

FORMATS = {
    "dynamic": (quantize_dynamic, 0.03),
    "weights": (quantize_weights, 0.03),
    "fp16": (convert_fp16, 3e-3),
}


@pytest.mark.parametrize("name", FORMATS)
def test_stays_close_to_the_float_model_on_padded_rows(name, encoder_path, tmp_path, make_feeds):
    function, tolerance = FORMATS[name]
    function(encoder_path, tmp_path / "new.onnx")
    feeds = make_feeds(seed=3)
    run = [
        ReferenceEvaluator(onnx.load(path)).run(None, feeds)[0]
        for path in (encoder_path, tmp_path / "new.onnx")
    ]
    assert run[1].dtype == np.float32
    assert np.linalg.norm(run[1] - run[0]) < tolerance * np.linalg.norm(run[0])


@pytest.mark.parametrize("name", FORMATS)
def test_excluded_products_stay_float(name, encoder_path, tmp_path):
    summary = FORMATS[name][0](encoder_path, tmp_path / "new.onnx", exclude=("up",))
    assert "up" in summary.float_nodes
    assert "down" in summary.quantized_nodes


@pytest.mark.parametrize("name", FORMATS)
def test_unknown_excluded_names_are_refused(name, encoder_path, tmp_path):
    with pytest.raises(PassError, match="no node of that name"):
        FORMATS[name][0](encoder_path, tmp_path / "new.onnx", exclude=("nothing",))


def test_dynamic_products_that_read_one_tensor_quantize_it_once(encoder_path, tmp_path):
    quantize_dynamic(encoder_path, tmp_path / "new.onnx")
    types = node_types(load_model(tmp_path / "new.onnx"))
    assert types["MatMulInteger"] == 7
    assert types["DynamicQuantizeLinear"] == 5  # query, key and value read one tensor


def test_a_weight_that_several_products_share_is_stored_once(encoder_path, tmp_path, make_feeds):
    """As the layers of ALBERT do."""
    model = load_model(encoder_path)
    named = {node.name: node for node in model.graph.node}
    named["key"].input[1] = named["value"].input[1] = named["query"].input[1]
    save_model(model, tmp_path / "shared.onnx")
    quantize_dynamic(tmp_path / "shared.onnx", tmp_path / "new.onnx")
    found = load_model(tmp_path / "new.onnx")
    products = [node for node in found.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 7
    assert len({node.input[1] for node in products}) == 5
    stored = [each for each in found.graph.initializer if "query" in each.name]
    assert len([each for each in stored if each.name.endswith("_quantized")]) == 1
    feeds = make_feeds(seed=3)
    before, after = (
        ReferenceEvaluator(onnx.load(tmp_path / name)).run(None, feeds)[0]
        for name in ("shared.onnx", "new.onnx")
    )
    assert np.linalg.norm(after - before) < 0.03 * np.linalg.norm(before)


def test_weights_leave_activations_float(encoder_path, tmp_path):
    summary = quantize_weights(encoder_path, tmp_path / "new.onnx")
    types = node_types(load_model(tmp_path / "new.onnx"))
    assert types["QuantizeLinear"] == 0
    assert types["DequantizeLinear"] == 8
    assert len(summary.quantized_nodes) == 7


def test_fp16_keeps_sums_in_float32_and_halves_the_weights(encoder_path, tmp_path):
    convert_fp16(encoder_path, tmp_path / "new.onnx")
    model = load_model(tmp_path / "new.onnx")
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    outputs = {node.op_type: types.get(node.output[0]) for node in model.graph.node}
    assert outputs["Softmax"] == outputs["LayerNormalization"] == onnx.TensorProto.FLOAT
    assert outputs["MatMul"] == onnx.TensorProto.FLOAT16
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    assert table.data_type == onnx.TensorProto.FLOAT16


def saved_graph(path, nodes, constants, inputs, size):
    """A float model of these nodes, whose output y has that many values."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, ["rows", each]) for name, kind, each in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", size])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


@pytest.mark.parametrize("largest", [1e-4, 1.0, 3000.0])
def test_fp16_normalizes_by_the_root_of_a_mean_square_that_it_does_not_hold(tmp_path, largest):
    """As in Llama and T5: the squares of large states are beyond 65504, those of small ones 0."""
    constants = {
        "two": np.float32(2), "epsilon": np.float32(1e-12), "axis": np.array([-1]),
        "weight": np.eye(16, dtype=np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["states"], "product"),
        helper.make_node("Pow", ["states", "two"], ["squares"], "square"),
        helper.make_node("ReduceMean", ["squares", "axis"], ["mean"], "mean"),
        helper.make_node("Add", ["mean", "epsilon"], ["shifted"], "shift"),
        helper.make_node("Sqrt", ["shifted"], ["root"], "root"),
        helper.make_node("Div", ["states", "root"], ["normal"], "quotient"),
        helper.make_node("MatMul", ["normal", "weight"], ["y"], "product_2"),
    ]
    saved_graph(tmp_path / "a.onnx", nodes, constants, [("x", TensorProto.FLOAT, 16)], 16)
    convert_fp16(tmp_path / "a.onnx", tmp_path / "b.onnx")
    x = largest * np.random.default_rng(0).uniform(-1, 1, (4, 16)).astype(np.float32)
    expected = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-12)
    (found,) = create_session(tmp_path / "b.onnx", optimization="none").run(None, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3)


def test_fp16_turns_by_angles_that_it_does_not_hold(tmp_path):
    """Rotary embeddings: at place 3000 neighbours in fp16 are 2 apart."""
    frequencies = (1 / 10000 ** (np.arange(8) / 8)).astype(np.float32)[None]
    nodes = [
        helper.make_node("Cast", ["places"], ["floats"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "frequencies"], ["angles"], "angle"),
        helper.make_node("Cos", ["angles"], ["turns"], "cos"),
        helper.make_node("MatMul", ["turns", "weight"], ["y"], "product"),
    ]
    constants = {"frequencies": frequencies, "weight": np.eye(8, dtype=np.float32)}
    saved_graph(tmp_path / "a.onnx", nodes, constants, [("places", TensorProto.INT64, 1)], 8)
    convert_fp16(tmp_path / "a.onnx", tmp_path / "b.onnx")
    places = np.array([[3], [511], [3001]])
    session = create_session(tmp_path / "b.onnx", optimization="none")
    (found,) = session.run(None, {"places": places})
    np.testing.assert_allclose(found, np.cos(places * frequencies), atol=2e-3)


def test_fp16_mask_constants_stay_finite(encoder_path, tmp_path):
    convert_fp16(encoder_path, tmp_path / "new.onnx")
    for tensor in load_model(tmp_path / "new.onnx").graph.initializer:
        values = numpy_helper.to_array(tensor)
        assert values.dtype != np.float16 or np.isfinite(values).all()


def test_bf16_is_asked_for_in_the_metadata_and_changes_no_node(encoder_path, tmp_path):
    request_bf16(encoder_path, tmp_path / "new.onnx")
    model = load_model(tmp_path / "new.onnx")
    assert model.graph == load_model(encoder_path).graph
    assert {each.key: each.value for each in model.metadata_props} == {PRECISION_KEY: "bf16"}


def test_a_model_without_products_of_the_kind_is_told(tmp_path):
    """Convolutions alone: ranges at run time are for matrix products."""
    value = onnx.helper.make_tensor_value_info
    weights = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "weights")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "weights"], ["y"], name="conv")],
        "convolution",
        [value("x", onnx.TensorProto.FLOAT, (1, 3, 8, 8))],
        [value("y", onnx.TensorProto.FLOAT, (1, 4, 6, 6))],
        [weights],
    )
    source = tmp_path / "conv.onnx"
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
        ),
        source,
    )
    summary = quantize_dynamic(source, tmp_path / "new.onnx")
    assert summary.is_empty
    assert summary.note == "none of 1 matrix products and convolutions can be quantized this way"
    assert not quantize_weights(source, tmp_path / "new.onnx").is_empty
