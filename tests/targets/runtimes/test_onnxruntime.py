import sys
import time

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from compressor.quantization import (
    convert_fp16,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
)
from targets import Source, registry
from targets.errors import (
    BundleError,
    InputError,
    MissingLibraryError,
    TargetError,
    UnsupportedModelError,
)
from targets.runtimes import onnxruntime as onnxruntime_target
from targets.runtimes.onnxruntime import OnnxRuntime, OnnxRuntimeSession, create_session


def reference(path, feeds):
    return ReferenceEvaluator(onnx.load(path)).run(None, feeds)[0]


def test_is_found_by_name():
    assert registry.available()["onnxruntime"] is OnnxRuntime
    assert OnnxRuntime(device="cuda").label == "onnxruntime (cuda)"


@pytest.mark.parametrize("threads", [1, 2])
def test_answers_as_the_reference_on_padded_rows(lower, encoder_path, make_feeds, threads):
    session = OnnxRuntime().load(lower(OnnxRuntime(), encoder_path), threads=threads)
    feeds = make_feeds(seed=5)
    expected = reference(encoder_path, feeds)
    np.testing.assert_allclose(session.run(feeds)["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("matmuls", [False, True])
@pytest.mark.parametrize("bits", [7, 8])
def test_int8_answers_as_the_portable_form_on_padded_rows(
    lower, encoder_path, tmp_path, make_feeds, bits, matmuls
):
    path = tmp_path / "portable.onnx"
    calibration = [make_feeds(seed=seed) for seed in range(3)]
    quantize_static(encoder_path, path, calibration, weight_bits=bits, activation_matmuls=matmuls)
    session = OnnxRuntime().load(lower(OnnxRuntime(), path, "int8"), threads=1)
    feeds = make_feeds(batch=16, sequence=20, seed=6)
    got, expected = session.run(feeds)["logits"], reference(path, feeds)
    # A value on the edge between two levels may fall to either side: one level of one tensor.
    assert np.linalg.norm(got - expected) < 0.015 * np.linalg.norm(expected)
    assert np.median(np.abs(got - expected)) < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("quantize", "precision"),
    [
        (quantize_dynamic, "int8-dynamic"),
        (quantize_weights, "int8-weights"),
        (convert_fp16, "fp16"),
    ],
)
def test_other_precisions_stay_close_on_padded_rows(
    lower, encoder_path, tmp_path, make_feeds, quantize, precision
):
    path = tmp_path / "other.onnx"
    quantize(encoder_path, path)
    session = OnnxRuntime().load(lower(OnnxRuntime(), path, precision), threads=1)
    feeds = make_feeds(seed=6)
    expected = reference(encoder_path, feeds)
    error = np.linalg.norm(session.run(feeds)["logits"] - expected)
    assert error < 0.03 * np.linalg.norm(expected)


def optimized_types(bundle, tmp_path):
    """What ONNX Runtime really runs."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    for key, value in bundle.manifest.options["session"].items():
        settings.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(
        str(bundle.model_path), settings, providers=["CPUExecutionProvider"]
    )
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


def test_every_quantized_product_runs_in_integers(lower, int8_path, tmp_path):
    types = optimized_types(lower(OnnxRuntime(), int8_path, "int8"), tmp_path)
    assert types.count("MatMulIntegerToFloat") == 7
    assert "DequantizeLinear" not in types


def test_int8_weights_are_restored_at_load_and_not_at_every_run(lower, encoder_path, tmp_path):
    path = tmp_path / "weights.onnx"
    quantize_weights(encoder_path, path)
    types = optimized_types(lower(OnnxRuntime(), path, "int8-weights"), tmp_path)
    assert "DequantizeLinear" not in types
    assert "MatMulNBits" not in types


def test_full_int8_weights_ask_for_exact_kernels_and_narrow_ones_do_not(
    lower, encoder_path, int8_path, tmp_path, make_feeds
):
    wide = lower(OnnxRuntime(), int8_path, "int8").manifest
    assert wide.options["session"]["session.x64quantprecision"] == "1"
    assert any("weight_bits 7" in note for note in wide.notes)
    path = tmp_path / "narrow.onnx"
    quantize_static(encoder_path, path, [make_feeds()], weight_bits=7)
    narrow = lower(OnnxRuntime(), path, "int8", name="narrow").manifest
    assert "session.x64quantprecision" not in narrow.options["session"]


@pytest.mark.parametrize(
    ("features", "exact"), [(("avx2",), True), (("avx2", "avx512_vnni"), False)]
)
def test_exact_kernels_are_for_processors_that_need_them(
    lower, int8_path, monkeypatch, features, exact
):
    bundle = lower(OnnxRuntime(), int8_path, "int8")
    monkeypatch.setattr(onnxruntime_target, "cpu_features", lambda: features)
    made = []

    class Settings(onnxruntime.SessionOptions):
        def add_session_config_entry(self, key, value):
            made.append(key)
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Settings)
    OnnxRuntime().load(bundle, threads=1)
    assert ("session.x64quantprecision" in made) is exact
    assert "optimization.disable_specified_optimizers" in made


def test_lowering_leaves_the_source_alone_and_gives_the_same_bytes_again(lower, int8_path):
    before = int8_path.read_bytes()
    first = lower(OnnxRuntime(), int8_path, "int8", name="first").model_path.read_bytes()
    second = lower(OnnxRuntime(), int8_path, "int8", name="second").model_path.read_bytes()
    assert first == second
    assert int8_path.read_bytes() == before


def test_a_model_beside_its_weights_is_lowered(lower, tmp_path, make_encoder, make_feeds):
    path = tmp_path / "external.onnx"
    onnx.save(make_encoder(), path, save_as_external_data=True, location="w", size_threshold=1024)
    session = OnnxRuntime().load(lower(OnnxRuntime(), path), threads=1)
    expected = ReferenceEvaluator(make_encoder()).run(None, make_feeds())[0]
    np.testing.assert_allclose(session.run(make_feeds())["logits"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"input_ids": np.ones((1, 4), np.int64)}, "'attention_mask' is missing"),
        (
            {name: np.ones((1, 4), np.int32) for name in ("input_ids", "attention_mask")},
            "'input_ids' has the wrong type",
        ),
        (
            {"input_ids": np.ones((1, 4), np.int64), "attention_mask": np.ones((1, 5), np.int64)},
            "'attention_mask' has the wrong shape",
        ),
    ],
)
def test_wrong_inputs_are_refused_by_name(lower, encoder_path, feeds, message):
    session = OnnxRuntime().load(lower(OnnxRuntime(), encoder_path), threads=1)
    with pytest.raises(InputError, match=message):
        session.run(feeds)


def test_a_bundle_sets_no_property_that_nobody_lowered(lower, encoder_path, make_feeds):
    """Some name files to read, past the list of those that belong to the bundle."""
    bundle = lower(OnnxRuntime(), encoder_path)
    entry = "session.model_external_initializers_file_folder_path"
    strange = bundle.with_options({"session": {entry: "/etc"}})
    with pytest.raises(BundleError, match="unknown properties of its runtime") as caught:
        OnnxRuntime().load(strange, threads=1)
    assert caught.value.given == entry
    for each in OnnxRuntime().alternatives(threads=2, batch_size=2).values():
        session = OnnxRuntime().load(bundle.with_options(each.options), threads=1)
        session.run(make_feeds())
        session.close()


def test_a_closed_session_says_so(lower, encoder_path, make_feeds):
    session = OnnxRuntime().load(lower(OnnxRuntime(), encoder_path), threads=1)
    session.close()
    with pytest.raises(TargetError, match="session is closed"):
        session.run(make_feeds())


def cast_through(to, path, make_encoder):
    """The encoder with a detour of one tensor through another type."""
    model = make_encoder()
    index = next(i for i, node in enumerate(model.graph.node) if node.name == "relu")
    reader = next(node for node in model.graph.node if node.name == "down")
    there = helper.make_node("Cast", ["relu_out"], ["detour"], name="to_other", to=to)
    back = helper.make_node("Cast", ["detour"], ["back"], name="from_other", to=TensorProto.FLOAT)
    reader.input[0] = "back"
    model.graph.node.insert(index + 1, there)
    model.graph.node.insert(index + 2, back)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("to", "called"), [(TensorProto.DOUBLE, "fp64"), (TensorProto.BFLOAT16, "bf16")]
)
def test_types_without_kernels_are_refused_by_the_names_of_the_nodes(
    tmp_path, make_encoder, encoder_signature, to, called
):
    path = cast_through(to, tmp_path / "typed.onnx", make_encoder)
    with pytest.raises(UnsupportedModelError, match=f"onnxruntime does not run {called}") as caught:
        OnnxRuntime().requires(Source(path, encoder_signature))
    assert caught.value.given == f"to_other ({called}), from_other ({called})"


def test_bf16_is_refused_with_an_alternative(encoder_path, encoder_signature):
    with pytest.raises(UnsupportedModelError, match="no bf16 kernels") as caught:
        OnnxRuntime().requires(Source(encoder_path, encoder_signature, "bf16"))
    assert "openvino" in caught.value.fix


def test_an_unknown_operator_is_refused_by_name(tmp_path, make_encoder, encoder_signature):
    model = make_encoder()
    node = next(node for node in model.graph.node if node.name == "relu")
    node.op_type, node.domain = "Fancy", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, tmp_path / "fancy.onnx")
    with pytest.raises(UnsupportedModelError, match="does not run this model") as caught:
        OnnxRuntime().requires(Source(tmp_path / "fancy.onnx", encoder_signature))
    assert "Fancy" in caught.value.given


def test_a_lack_of_memory_is_not_blamed_on_the_model(monkeypatch, encoder_path, encoder_signature):
    import onnxruntime

    def fails(*_arguments, **_settings):
        raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(TargetError, match="refused the model") as caught:
        OnnxRuntime().requires(Source(encoder_path, encoder_signature))
    assert not isinstance(caught.value, UnsupportedModelError)  # which the store would keep


def test_a_damaged_model_is_a_target_error(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(TargetError, match="refused the model"):
        create_session(tmp_path / "broken.onnx")


def test_cuda_says_what_is_missing():
    reason = OnnxRuntime(device="cuda").cannot_run()
    assert reason is None or "onnxruntime-gpu" in reason


def test_without_the_library_the_reason_names_the_extra(monkeypatch, tmp_path):
    import importlib.util

    find = importlib.util.find_spec
    missing = ("onnxruntime", "onnx")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name)
    )
    assert "pip install 'compressor[onnxruntime]'" in OnnxRuntime().cannot_run()
    assert "pip install 'compressor[build]'" in OnnxRuntime().cannot_lower()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingLibraryError, match="onnxruntime"):
        create_session(tmp_path / "any.onnx")


def test_native_precisions_begin_with_fp32():
    assert OnnxRuntime().native_precisions() == ("fp32",)
    assert OnnxRuntime(device="cuda").native_precisions() == ("fp32", "fp16")


def test_a_run_costs_at_most_30_microseconds_more_than_the_raw_call(
    encoder_path, encoder_signature, make_feeds
):
    raw = create_session(encoder_path)
    session = OnnxRuntimeSession(encoder_signature, raw)
    feeds = make_feeds(batch=1)

    def fastest(call):
        times = []
        for _ in range(300):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    fastest(lambda: session.run(feeds))
    direct = fastest(lambda: raw.run(["logits"], feeds))
    assert fastest(lambda: session.run(feeds)) - direct < 30e-6
