"""Where precision is lost: against a known perturbation, on real runtimes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compressor import quantization
from compressor.layer_errors import compare_values, inner_tensors, inner_values, unlike
from compressor.model import OnnxModel
from compressor.quantization.smooth import smooth
from compressor.report.files import read_report
from compressor.report.schema import LayerError
from targets import Bundle, Signature, Source, get
from targets.bundle import SCHEMA_VERSION, Manifest
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import TextPreprocessing

NAMES = ["norm0_out", "n1_out", "norm2_out", "logits"]
PACK = EvaluationPack.from_rows(
    {"input_ids": [[5, 9, 33], [7, 1, 2, 8, 40, 3], [11]]},
    [0, 1, 2],
    preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
)


@pytest.fixture
def compare(
    tmp_path: Path, encoder_path: Path, encoder_signature: Signature
) -> Callable[..., dict[str, float]]:
    """Compare the small encoder with a changed one on a target: name -> error."""

    def model(path: Path, precision: str) -> OnnxModel:
        folder = tmp_path / f"model-{len(list(tmp_path.glob('model-*')))}"
        folder.mkdir()
        shutil.copyfile(path, folder / "model.onnx")
        return OnnxModel(
            folder, encoder_signature, precision, "text-classification", ("a", "b", "c"), 32,
            {"batch": (1, 1, 8), "sequence": (1, 16, 32)},
        )  # type: ignore[arg-type]  # fmt: skip

    def run(
        changed: Path, target: str = "onnxruntime", precision: str = "fp32"
    ) -> dict[str, float]:
        lowering = get(target)
        folder = tmp_path / "bundle"
        folder.mkdir(exist_ok=True)
        lowered = lowering.lower(Source(encoder_path, encoder_signature), folder)
        (folder / "tokenizer.json").write_text("{}")
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name="small",
            task="text-classification",
            target=target,
            target_settings=lowering.settings(),
            precision="fp32",
            signature=encoder_signature,
            model=lowered.model,
            labels=("a", "b", "c"),
            preprocessing=TextPreprocessing(max_length=32, pad_token_id=0),
            files={},
        )
        bundle = Bundle.create(folder, manifest)
        reference = model(encoder_path, "fp32")
        names = inner_tensors(reference.path)
        before, after = (
            inner_values(each, names, lowering, bundle, PACK, tmp_path)
            for each in (reference, model(changed, precision))
        )
        found = compare_values(reference, before, after)
        return {each.name: each.error for each in found}

    return run


def perturbed(source: Path, weight: str, path: Path) -> Path:
    """The model with one weight 1% larger."""
    model = onnx.load(source)
    [found] = [each for each in model.graph.initializer if each.name == weight]
    found.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(found) * 1.01, weight))
    onnx.save(model, path)
    return path


def test_the_inner_tensors_are_the_outputs_of_the_layer_norms(encoder_path: Path) -> None:
    assert inner_tensors(encoder_path) == dict.fromkeys(NAMES[:3], 32)


def test_a_norm_that_was_scaled_for_what_reads_it_is_not_compared(
    make_encoder: Callable[..., Any], make_feeds: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_encoder()
    for node in model.graph.node:  # the residual reads the embedding: the norm is read once only
        if node.name == "residual2":
            node.input[0] = "norm0_out"
    onnx.save(smooth(model, [make_feeds()], strength=0.5), tmp_path / "scaled.onnx")
    found = inner_tensors(tmp_path / "scaled.onnx")
    folded = [
        node.output[0]
        for node in onnx.load(tmp_path / "scaled.onnx").graph.node
        if node.op_type == "LayerNormalization" and node.input[1].endswith("_smoothed")
    ]
    assert "n1_out" in folded
    assert {*found} == {*NAMES[:3]} - {*folded}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_an_error_shows_from_the_layer_on_where_it_was_made(
    compare: Callable[..., dict[str, float]], encoder_path: Path, tmp_path: Path, target: str
) -> None:
    same = compare(encoder_path, target)
    assert list(same) == NAMES
    assert max(same.values()) < 1e-5
    found = compare(perturbed(encoder_path, "up_weight", tmp_path / "p.onnx"), target)
    assert found["norm0_out"] < 1e-5
    assert found["n1_out"] < 1e-5
    assert found["norm2_out"] > 1e-4
    assert found["logits"] > 1e-4
    # The last weight matrix scales the logits: 1% but for the bias, which is 0.
    last = compare(perturbed(encoder_path, "classifier_weight", tmp_path / "q.onnx"), target)
    assert last["norm2_out"] < 1e-5
    assert last["logits"] == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize(
    ("target", "precision"),
    [("onnxruntime", "int8"), ("openvino", "int8"), ("onnxruntime", "int8-dynamic"),
     ("onnxruntime", "fp16")],
)  # fmt: skip
def test_every_layer_of_a_quantized_model_is_compared(
    compare: Callable[..., dict[str, float]],
    encoder_path: Path,
    make_feeds: Callable[..., Any],
    tmp_path: Path,
    target: str,
    precision: str,
) -> None:
    path = tmp_path / "quantized.onnx"
    if precision == "int8":
        calibration = [make_feeds(4, 12, seed=seed) for seed in range(4)]
        quantization.quantize_static(encoder_path, path, calibration, weight_bits=7)
    elif precision == "int8-dynamic":
        quantization.quantize_dynamic(encoder_path, path, weight_bits=7)
    else:
        quantization.convert_fp16(encoder_path, path)
    found = compare(path, target, precision)
    assert list(found) == NAMES
    least, most = (1e-5, 0.01) if precision == "fp16" else (1e-3, 0.2)
    assert least < found["norm2_out"] < most
    assert all(np.isfinite(error) for error in found.values())


@pytest.mark.slow
def test_a_run_tells_the_layers_of_what_it_quantized(finished) -> None:
    rows = read_report(finished.output).rows
    measured = [row for row in rows if row.kind == "candidate" and row.status == "measured"]
    for row in measured:
        expected = row.precision != "fp32" and row.target in ("onnxruntime", "openvino")
        assert bool(row.layers) is expected
        if expected:
            assert [each.name for each in row.layers][-1] == "logits"
            # Before the first quantized product there is no error.
            assert all(0 <= each.error < 1 for each in row.layers)
            assert row.layers[-1].error > 0
    assert sum(bool(row.layers) for row in measured) == 3
    assert "largest error" in finished.outcome.out


def test_a_target_that_computes_something_else_is_named_with_the_first_layer() -> None:
    def errors(*values: float) -> list[LayerError]:
        return [LayerError(name=f"norm{at}", error=each) for at, each in enumerate(values)]

    alike = {"onnxruntime": errors(0.02, 0.05, 0.03), "openvino": errors(0.03, 0.06, 0.04)}
    assert unlike(alike) == ()
    assert unlike({"openvino": errors(0.5)}) == ()  # there is nobody to ask
    assert unlike({"a": errors(0.001), "b": errors(0.04)}) == ()  # both are good
    [line] = unlike({"onnxruntime": errors(0.05, 0.07), "openvino": errors(0.06, 0.33)})
    assert line.startswith("openvino is much further from float32 than other targets")
    assert "33.0% against 7.0% after norm1" in line
