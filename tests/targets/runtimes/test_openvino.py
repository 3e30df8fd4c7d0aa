import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from compressor.quantization import (
    convert_fp16,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
    request_bf16,
)
from targets import Signature, Source, TensorSpec, registry
from targets.errors import (
    BundleError,
    InputError,
    MissingLibraryError,
    TargetError,
    UnsupportedModelError,
)
from targets.runtimes import openvino as module
from targets.runtimes.openvino import OpenVINO
from tests.targets.test_qdq import make_patches

NO_VNNI = ("avx2",)
VNNI = ("avx2", "avx512_vnni")


@pytest.fixture
def cpu(monkeypatch):
    def have(*features):
        for each in (module, registry):
            monkeypatch.setattr(each, "cpu_features", lambda: features)

    return have


def reference(path, feeds):
    return ReferenceEvaluator(onnx.load(path)).run(None, feeds)[0]


def test_is_found_by_name():
    assert registry.available()["openvino"] is OpenVINO
    assert OpenVINO(device="GPU").label == "openvino (GPU)"


@pytest.mark.parametrize("threads", [1, 2])
def test_answers_as_the_reference_on_padded_rows(lower, encoder_path, make_feeds, threads):
    session = OpenVINO().load(lower(OpenVINO(), encoder_path), threads=threads)
    for seed, sequence in ((5, 12), (6, 20)):  # another shape on the same session
        feeds = make_feeds(sequence=sequence, seed=seed)
        expected = reference(encoder_path, feeds)
        np.testing.assert_allclose(session.run(feeds)["logits"], expected, atol=1e-5)


def test_results_are_not_overwritten_by_the_next_run(lower, encoder_path, make_feeds):
    session = OpenVINO().load(lower(OpenVINO(), encoder_path), threads=1)
    first = session.run(make_feeds(seed=1))["logits"]
    kept = first.copy()
    session.run(make_feeds(seed=2))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("options", "num"),
    [
        ({}, 1),
        ({"NUM_STREAMS": 2}, 2),
        ({"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": 2}, 2),
        ({"PERFORMANCE_HINT": "THROUGHPUT"}, None),  # OpenVINO's choice
    ],
)
def test_streams_share_a_batch_of_any_size(lower, encoder_path, make_feeds, options, num):
    bundle = lower(OpenVINO(), encoder_path).with_options(options)
    session = OpenVINO().load(bundle, threads=3)
    assert num is None or len(session._requests) == min(num, os.cpu_count() or 1)
    kept = []
    for batch in (1, 2, 5):
        feeds = make_feeds(batch=batch, sequence=11, seed=batch)
        found = session.run(feeds)["logits"]
        kept.append((found, found.copy()))
        np.testing.assert_allclose(found, reference(encoder_path, feeds), atol=1e-5)
    for found, copy in kept:  # no later run writes into it
        np.testing.assert_array_equal(found, copy)
    session.close()
    with pytest.raises(TargetError, match="the session is closed"):
        session.run(make_feeds(batch=5))


def test_a_fixed_batch_is_not_shared(lower, encoder_path, make_feeds):
    bundle = lower(OpenVINO(), encoder_path).with_options({"NUM_STREAMS": 2})
    session = OpenVINO().load(bundle, threads=2)
    dims = [
        spec.model_copy(update={"shape": (2, *spec.shape[1:])}) for spec in session.signature.inputs
    ]
    fixed = session.signature.model_copy(update={"inputs": tuple(dims)})
    assert module._has_free_batch(session.signature)
    assert not module._has_free_batch(fixed)


def test_streams_are_offered_for_the_threads_and_samples_there_are():
    def offered(threads, batch_size):
        found = OpenVINO().alternatives(threads=threads, batch_size=batch_size)
        return [name for name in found if name.endswith("streams")]

    assert offered(1, 8) == offered(8, 1) == []
    assert offered(2, 8) == ["2 streams"]
    assert offered(8, 7) == ["2 streams", "4 streams"]
    assert OpenVINO(device="GPU").alternatives(threads=2, batch_size=2) == {}


@pytest.mark.parametrize("matmuls", [False, True])
def test_int8_answers_as_the_portable_form_on_padded_rows(
    lower, encoder_path, tmp_path, make_feeds, matmuls
):
    path = tmp_path / "portable.onnx"
    calibration = [make_feeds(seed=seed) for seed in range(3)]
    quantize_static(encoder_path, path, calibration, weight_bits=7, activation_matmuls=matmuls)
    session = OpenVINO().load(lower(OpenVINO(), path, "int8"), threads=1)
    feeds = make_feeds(batch=16, sequence=20, seed=6)
    got, expected = session.run(feeds)["logits"], reference(path, feeds)
    # A value on the edge between two levels may fall to either side: one level of one tensor.
    assert np.linalg.norm(got - expected) < 0.015 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("quantize", "precision"), [(quantize_weights, "int8-weights"), (convert_fp16, "fp16")]
)
def test_other_precisions_stay_close_on_padded_rows(
    lower, encoder_path, tmp_path, make_feeds, quantize, precision
):
    path = tmp_path / "other.onnx"
    quantize(encoder_path, path)
    session = OpenVINO().load(lower(OpenVINO(), path, precision), threads=1)
    feeds = make_feeds(seed=6)
    expected = reference(encoder_path, feeds)
    error = np.linalg.norm(session.run(feeds)["logits"] - expected)
    assert error < 0.03 * np.linalg.norm(expected)


def test_int8_stays_int8_on_disk_and_in_the_products(lower, int8_path, encoder_path):
    import openvino

    bundle = lower(OpenVINO(), int8_path, "int8")
    plain = lower(OpenVINO(), encoder_path, name="plain")
    sizes = [each.path("model.bin").stat().st_size for each in (bundle, plain)]
    assert sizes[0] < 0.35 * sizes[1]
    compiled = openvino.Core().compile_model(
        str(bundle.model_path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    kinds = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kinds.setdefault(info["layerType"].astype(str), []).append(
            info["runtimePrecision"].astype(str)
        )
    assert kinds["FullyConnected"] == ["u8"] * 7  # times int8


def test_patches_beside_a_class_token_are_what_they_are_in_the_portable_form(tmp_path):
    """OpenVINO alone gives the token the scale of the patches, where the batch is free."""
    model = make_patches(quantize_token=False)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    signature = Signature(
        inputs=(TensorSpec(name="pixels", dtype="float32", shape=("batch_size", 3, 16, 16)),),
        outputs=(TensorSpec(name="all", dtype="float32", shape=("batch_size", 17, 8)),),
    )
    (tmp_path / "lowered").mkdir()
    lowered = OpenVINO().lower(Source(path, signature, "int8"), tmp_path / "lowered")
    assert "1 value left float, as what they are joined with is" in lowered.notes
    xml = tmp_path / "lowered" / lowered.model
    compiled = ov.Core().compile_model(xml, "CPU", dict(lowered.options))
    feeds = {"pixels": np.random.default_rng(1).normal(size=(2, 3, 16, 16)).astype(np.float32)}
    found = compiled(feeds)[0]
    np.testing.assert_allclose(found, reference(path, feeds), atol=0.1 / 2 + 1e-4)
    np.testing.assert_allclose(found[:, 0], reference(path, feeds)[:, 0], atol=1e-6)


def test_without_vnni_full_int8_weights_are_narrowed_and_that_is_said(lower, int8_path, cpu):
    cpu(*NO_VNNI)
    notes = lower(OpenVINO(), int8_path, "int8", name="narrow").manifest.notes
    assert "7 weights narrowed to 7 bits, else sums saturate on this CPU" in notes
    assert any("no faster than fp32" in note for note in notes)
    cpu(*VNNI)
    notes = lower(OpenVINO(), int8_path, "int8", name="full").manifest.notes
    assert not any("narrowed" in note for note in notes)


def test_weights_that_would_saturate_on_an_older_cpu_are_not_run_there(
    lower, int8_path, encoder_path, cpu
):
    cpu(*NO_VNNI)
    narrow = lower(OpenVINO(), int8_path, "int8", name="narrow")
    cpu(*VNNI)
    full = lower(OpenVINO(), int8_path, "int8", name="full")
    floats = lower(OpenVINO(), encoder_path, name="floats")
    for bundle in (narrow, full, floats):
        registry.open_session(bundle).close()
    cpu(*NO_VNNI)
    for bundle in (narrow, floats):
        registry.open_session(bundle).close()
    with pytest.raises(TargetError, match="lacks instructions that the bundle needs") as refused:
        registry.open_session(full)
    assert "avx512_vnni" in refused.value.given


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_hint_is_f32_so_that_nothing_runs_in_bf16_unasked(
    lower, encoder_path, int8_path, precision
):
    path = int8_path if precision == "int8" else encoder_path
    options = lower(OpenVINO(), path, precision).manifest.options
    assert options == {"INFERENCE_PRECISION_HINT": "f32"}


def test_bf16_follows_the_cpu(lower, encoder_path, encoder_signature, tmp_path, cpu):
    path = tmp_path / "bf16.onnx"
    request_bf16(encoder_path, path)
    cpu(*VNNI)
    assert OpenVINO().native_precisions() == ("fp32",)
    with pytest.raises(UnsupportedModelError, match="does not run bf16 on this CPU") as caught:
        OpenVINO().requires(Source(path, encoder_signature, "bf16"))
    assert "avx512_bf16" in caught.value.fix
    cpu(*VNNI, "avx512_bf16")
    assert OpenVINO().native_precisions() == ("fp32", "bf16")
    bundle = lower(OpenVINO(), path, "bf16")
    assert bundle.manifest.options == {"INFERENCE_PRECISION_HINT": "bf16"}
    cpu(*VNNI)
    with pytest.raises(TargetError, match="lacks instructions that the bundle needs") as refused:
        registry.open_session(bundle)
    assert "needs amx_bf16 or avx512_bf16 or bf16; the CPU has avx2" in refused.value.given


def test_lowering_leaves_the_source_alone_and_gives_the_same_bytes_again(lower, int8_path):
    before = int8_path.read_bytes()
    bundles = [lower(OpenVINO(), int8_path, "int8", name=name) for name in ("first", "second")]
    weights = [bundle.path("model.bin").read_bytes() for bundle in bundles]
    assert weights[0] == weights[1]
    # OpenVINO numbers what has no name through the process: the graphs differ in that alone.
    graphs = [re.sub(r"_\d+", "", bundle.model_path.read_text()) for bundle in bundles]
    assert graphs[0] == graphs[1]
    assert int8_path.read_bytes() == before


def test_dynamic_quantization_is_refused_by_the_names_of_the_nodes(
    encoder_path, tmp_path, encoder_signature
):
    quantize_dynamic(encoder_path, tmp_path / "dynamic.onnx")
    with pytest.raises(UnsupportedModelError, match=r"does not run .*MatMulInteger") as error:
        OpenVINO().requires(Source(tmp_path / "dynamic.onnx", encoder_signature, "int8-dynamic"))
    assert "query (MatMulInteger)" in error.value.given
    assert error.value.fix == "quantize statically for this target"


def test_fp64_is_refused_by_the_names_of_the_nodes(tmp_path, make_encoder, encoder_signature):
    model = make_encoder()
    node = next(node for node in model.graph.node if node.name == "mask_float")
    node.attribute[0].i = TensorProto.DOUBLE
    index = list(model.graph.node).index(node)
    node.output[0] = "wide"
    back = helper.make_node("Cast", ["wide"], ["mask_float_out"], name="back", to=TensorProto.FLOAT)
    model.graph.node.insert(index + 1, back)
    onnx.save(model, tmp_path / "wide.onnx")
    with pytest.raises(UnsupportedModelError, match="openvino does not run fp64") as caught:
        OpenVINO().requires(Source(tmp_path / "wide.onnx", encoder_signature))
    assert caught.value.given == "mask_float (fp64), back (fp64)"


def test_an_unknown_operator_is_refused_by_the_name_of_its_node(
    tmp_path, make_encoder, encoder_signature
):
    model = make_encoder()
    node = next(node for node in model.graph.node if node.name == "relu")
    node.op_type, node.domain = "Fancy", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, tmp_path / "fancy.onnx")
    with pytest.raises(UnsupportedModelError, match="does not read this model") as caught:
        OpenVINO().requires(Source(tmp_path / "fancy.onnx", encoder_signature))
    assert caught.value.given == "relu (Fancy)"


def test_a_lack_of_memory_is_not_blamed_on_the_model(monkeypatch, encoder_path, encoder_signature):
    class Core:
        def read_model(self, _path):
            raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr(module, "_import", lambda: SimpleNamespace(Core=Core))
    with pytest.raises(TargetError, match="could not read the model") as caught:
        OpenVINO().requires(Source(encoder_path, encoder_signature))
    assert not isinstance(caught.value, UnsupportedModelError)  # which the store would keep


def test_wrong_inputs_are_refused_by_name(lower, encoder_path):
    session = OpenVINO().load(lower(OpenVINO(), encoder_path), threads=1)
    with pytest.raises(InputError, match="'attention_mask' is missing"):
        session.run({"input_ids": np.ones((1, 4), np.int64)})


def test_a_device_of_several_answers_as_the_reference(lower, encoder_path, make_feeds):
    """AUTO has no property for the number of its streams."""
    bundle = lower(OpenVINO(device="AUTO"), encoder_path)
    feeds = make_feeds(batch=3)
    expected = ReferenceEvaluator(onnx.load(encoder_path)).run(None, feeds)[0]
    session = OpenVINO(device="AUTO").load(bundle, threads=1)
    np.testing.assert_allclose(session.run(feeds)["logits"], expected, atol=1e-4)
    session.close()


def test_a_bundle_sets_no_property_that_nobody_lowered(lower, encoder_path, make_feeds, tmp_path):
    """Some name folders to write to."""
    bundle = lower(OpenVINO(), encoder_path)
    strange = bundle.with_options({"CACHE_DIR": str(tmp_path / "cache")})
    with pytest.raises(BundleError, match="unknown properties of its runtime") as caught:
        OpenVINO().load(strange, threads=1)
    assert caught.value.given == "CACHE_DIR"
    assert not (tmp_path / "cache").exists()
    for each in OpenVINO().alternatives(threads=2, batch_size=2).values():
        session = OpenVINO().load(bundle.with_options(each.options), threads=1)
        session.run(make_feeds())
        session.close()


def test_the_mean_of_later_runs_follows_from_those_of_the_first_and_of_all():
    first, later = [5.0, 1.0], [1.0, 2.0, 3.0]
    before, after = np.mean(first), np.mean(first + later)
    assert module._later_mean(before, after, 2, 3) == pytest.approx(2)
    assert module._later_mean(9.0, 0.1, 1, 3) == 0  # which rounding may make negative


def test_a_closed_session_says_so(lower, encoder_path, make_feeds):
    session = OpenVINO().load(lower(OpenVINO(), encoder_path), threads=1)
    session.close()
    with pytest.raises(TargetError, match="session is closed"):
        session.run(make_feeds())


def test_a_damaged_bundle_is_a_target_error(lower, encoder_path):
    bundle = lower(OpenVINO(), encoder_path)
    bundle.model_path.write_text("<net/>")
    with pytest.raises(TargetError, match="OpenVINO refused the bundle"):
        OpenVINO().load(bundle, threads=1)


@pytest.mark.parametrize("device", ["GPU", "NPU"])
def test_an_absent_device_is_named(device):
    reason = OpenVINO(device=device).cannot_run()
    assert reason is None or f"OpenVINO finds no {device} here" in reason


def test_without_the_library_the_reason_names_the_extra(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert "pip install 'compressor[openvino]'" in OpenVINO().cannot_run()
    assert "pip install 'compressor[openvino]'" in OpenVINO().cannot_lower()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingLibraryError, match="openvino"):
        module._import()
