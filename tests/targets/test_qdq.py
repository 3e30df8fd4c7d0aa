import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from compressor.quantization import quantize_dynamic, quantize_static, quantize_weights
from targets import qdq


@pytest.fixture
def int8(encoder_path, tmp_path, make_feeds):
    def make(**settings):
        path = tmp_path / "int8.onnx"
        quantize_static(
            encoder_path,
            path,
            [make_feeds(seed=seed) for seed in range(3)],
            **{"activations": "int8", **settings},
        )
        return onnx.load(path)

    return make


def run(model, feeds):
    return ReferenceEvaluator(model).run(None, feeds)[0]


@pytest.mark.parametrize("matmuls", [False, True])
def test_uint8_activations_give_the_same_bits_on_padded_rows(int8, make_feeds, matmuls):
    # It clips, so that the ends are reached.
    model = int8(activation_matmuls=matmuls, calibration="percentile", percentile=99.0)
    feeds = make_feeds(seed=7)
    before = run(model, feeds)
    assert qdq.activations_to_uint8(model) == (9 if matmuls else 5)
    onnx.checker.check_model(model, full_check=True)
    # -128 is the one value that int8 holds and that stays in uint8 too: 0
    np.testing.assert_array_equal(run(model, feeds), before)


def test_uint8_leaves_weights_int8(int8):
    model = int8()
    qdq.activations_to_uint8(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [
        constants[node.input[0]].data_type
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    ]
    assert weights == [onnx.TensorProto.INT8] * 8


def test_uint8_keeps_the_shapes_that_runtimes_need_to_fuse(int8):
    model = onnx.shape_inference.infer_shapes(int8())
    before = len(model.graph.value_info)
    qdq.activations_to_uint8(model)
    assert len(model.graph.value_info) == before
    onnx.checker.check_model(model, full_check=True)


def test_what_is_uint8_stays_as_it_is(int8, make_encoder):
    for made in (make_encoder, lambda: int8(activations="uint8")):
        model = made()
        assert qdq.activations_to_uint8(model) == 0
        assert model == made()


def activations(model):
    """The smallest and the largest value that each QuantizeLinear can give, and its type."""
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (constants[name] for name in node.input[1:])
            ends = np.iinfo(zero.dtype)
            low = max(ends.min, -127 if zero.dtype == np.int8 else 0)
            lows, highs = ((end - float(zero)) * float(scale) for end in (low, ends.max))
            found[node.input[0]] = (lows, highs, zero.dtype)
    return found


def test_symmetric_ranges_cover_those_of_uint8(int8, make_feeds):
    model = int8(activations="uint8", activation_matmuls=True)
    before, feeds = activations(model), make_feeds(seed=7)
    answers = run(model, feeds)
    assert qdq.activations_to_int8(model) == 5  # the factors of products of activations are int8
    onnx.checker.check_model(model, full_check=True)
    after = activations(model)
    assert len(after) == len(before) == 9
    for name, (low, high, kind) in after.items():
        assert kind == np.int8
        assert high == pytest.approx(max(-before[name][0], before[name][1]), rel=1e-5)
        assert low == pytest.approx(-high)
    np.testing.assert_allclose(run(model, feeds), answers, atol=0.05 * np.abs(answers).max())
    assert qdq.activations_to_int8(model) == 0


def test_symmetric_ranges_leave_a_float_model_alone(make_encoder):
    model = make_encoder()
    assert qdq.activations_to_int8(model) == 0
    assert model == make_encoder()


def test_looking_up_first_gives_the_same_bits_and_leaves_no_whole_table(int8, make_feeds):
    model = int8()
    feeds = make_feeds(seed=7)
    before = run(model, feeds)
    assert qdq.gather_before_dequantize(model) == 1
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, feeds), before)
    dequantized = {n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    assert "table_quantized" not in dequantized


def test_a_table_that_a_product_reads_too_is_left_alone(int8):
    model = int8()
    table = next(n.input[0] for n in model.graph.node if n.name == "embed")
    transposed = onnx.helper.make_node("Transpose", [table], ["tied"], name="tied", perm=[1, 0])
    model.graph.node.append(transposed)
    before = model.SerializeToString()
    assert qdq.gather_before_dequantize(model) == 0
    assert model.SerializeToString() == before


def test_only_full_int8_weights_can_saturate(int8):
    assert qdq.can_saturate(int8())
    assert not qdq.can_saturate(int8(weight_bits=7))


def test_dynamic_weights_can_saturate_too(encoder_path, tmp_path):
    quantize_dynamic(encoder_path, tmp_path / "new.onnx")
    assert qdq.can_saturate(onnx.load(tmp_path / "new.onnx"))
    quantize_dynamic(encoder_path, tmp_path / "new.onnx", weight_bits=7)
    assert not qdq.can_saturate(onnx.load(tmp_path / "new.onnx"))


def test_narrowing_rules_out_saturation_and_costs_half_a_step(int8):
    model = int8()
    before = weights(model)
    assert qdq.narrow_weights(model) == 7
    assert not qdq.can_saturate(model)
    after = weights(model)
    for name, (values, scale) in before.items():
        narrow, wide = after[name]
        assert (np.abs(values * scale - narrow * wide) <= 0.501 * wide).all(), name
    assert qdq.narrow_weights(model) == 0


def test_narrowing_leaves_the_table_at_eight_bits(int8):
    model = int8()
    qdq.narrow_weights(model)
    table = next(t for t in model.graph.initializer if t.name == "table_quantized")
    assert np.abs(numpy_helper.to_array(table)).max() == 127


def make_patches(*, quantize_token, reads_twice=False):
    """What a vision transformer begins with: patches, one by one, behind a class token."""
    generator = np.random.default_rng(0)
    weight = generator.integers(-63, 64, (8, 3, 4, 4)).astype(np.int8)
    bias = generator.normal(size=8).astype(np.float32)
    token = generator.normal(size=(1, 1, 8)).astype(np.float32)
    constants = {
        "weight": weight,
        "weight_scale": np.full(8, 0.01, np.float32),
        "bias": bias,
        "token": token,
        "shape": np.array([0, 8, -1], np.int64),
        "one_token": np.array([1, 8], np.int64),
        "zero": np.array(0, np.int8),
        "pixel_scale": np.array(0.03, np.float32),
        "scale": np.array(0.1, np.float32),
    }
    node = onnx.helper.make_node

    def pair(name, scale):
        return [
            node("QuantizeLinear", [name, scale, "zero"], [f"{name}_int8"]),
            node("DequantizeLinear", [f"{name}_int8", scale, "zero"], [f"{name}_again"]),
        ]

    nodes = [
        *pair("pixels", "pixel_scale"),
        node("DequantizeLinear", ["weight", "weight_scale"], ["weights"], axis=0),
        node("Conv", ["pixels_again", "weights", "bias"], ["conv"], strides=[4, 4]),
        *pair("conv", "scale"),
        node("Reshape", ["conv_again", "shape"], ["rows"]),
        node("Transpose", ["rows"], ["patches"], perm=[0, 2, 1]),
        node("Shape", ["pixels"], ["batch"], start=0, end=1),
        node("Concat", ["batch", "one_token"], ["tokens"], axis=0),
        node("Expand", ["token", "tokens"], ["class"]),
        *(pair("class", "scale") if quantize_token else []),
        node("Concat", ["class_again" if quantize_token else "class", "patches"], ["all"], axis=1),
    ]
    outputs = {"all": ["batch_size", 17, 8]}
    if reads_twice:
        nodes.append(node("Relu", ["conv_again"], ["other"]))
        outputs["other"] = ["batch_size", 8, 4, 4]
    graph = onnx.helper.make_graph(
        nodes,
        "patches",
        [onnx.helper.make_tensor_value_info("pixels", 1, ["batch_size", 3, 16, 16])],
        [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_what_is_joined_with_floats_is_not_quantized():
    model = make_patches(quantize_token=False)
    pixels = {"pixels": np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)}
    before = run(model, pixels)
    assert qdq.join_as_floats(model) == 1
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 1  # the pixels
    np.testing.assert_allclose(run(model, pixels), before, atol=0.1 / 2 + 1e-6)
    assert qdq.join_as_floats(model) == 0


def test_what_is_quantized_on_all_sides_stays_so():
    model = make_patches(quantize_token=True)
    before = model.SerializeToString()
    assert qdq.join_as_floats(model) == 0
    assert model.SerializeToString() == before


def test_who_else_reads_what_is_joined_reads_it_quantized():
    model = make_patches(quantize_token=False, reads_twice=True)
    assert qdq.join_as_floats(model) == 1
    onnx.checker.check_model(model, full_check=True)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    assert list(relu.input) == ["conv_again"]
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 2


def test_tells_which_models_quantize_while_they_run(int8, encoder_path, tmp_path, make_encoder):
    quantize_weights(encoder_path, tmp_path / "weights.onnx")
    stored = onnx.load(tmp_path / "weights.onnx")
    assert [qdq.quantizes_activations(each) for each in (int8(), stored)] == [True, False]
    models = (stored, make_encoder())
    assert [qdq.has_int8_weights(each) for each in models] == [True, False]


def weights(model):
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {
        node.name: (constants[node.input[0]].astype(np.float32), constants[node.input[1]])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in constants
        and "table" not in node.name
    }
