"""Weights of 4 bits by what they are multiplied with: AWQ, and scales fitted by calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from compressor.errors import PassError
from compressor.onnx_io import Graph
from compressor.passes.quantize import Quantize
from compressor.quantization import quantize_weights
from compressor.quantization.awq import salience_factors, scale_salient
from compressor.quantization.gemm import split_gemms
from compressor.quantization.groups import quantize_groups, restore_groups
from targets.runtimes.onnxruntime import create_session
from targets.signature import Arrays

SIZE = 16


def salient(rows: int = 200) -> NDArray[np.float32]:
    """Inputs of which a few channels are large."""
    generator = np.random.default_rng(1)
    spread = np.where(np.arange(64) % 16 == 0, 30.0, 1.0)
    return (generator.standard_normal((rows, 64)) * spread).astype(np.float32)


def weights() -> NDArray[np.float32]:
    return np.random.default_rng(2).standard_normal((64, 40)).astype(np.float32)


def error(inputs: Any, weight: Any, rounded: Any) -> float:
    return float(((inputs @ (rounded - weight)) ** 2).sum())


def test_factors_lower_the_error_where_a_few_inputs_are_large() -> None:
    inputs, weight = salient(), weights()
    factors = salience_factors(inputs, [weight], size=SIZE)
    assert factors is not None
    assert factors[0] > 2 * factors[1]
    scaled = restore_groups(*quantize_groups(weight * factors[:, None], size=SIZE))
    plain = restore_groups(*quantize_groups(weight, size=SIZE))
    ours = error(inputs, weight, scaled / factors[:, None])
    assert ours < 0.5 * error(inputs, weight, plain)


def test_weights_that_round_without_an_error_are_left() -> None:
    grid = np.random.default_rng(0).integers(-8, 8, (64, 40)).astype(np.float32)
    grid[::SIZE], grid[1::SIZE] = -8, 7
    assert salience_factors(salient(), [grid], size=SIZE) is None


def test_products_of_one_tensor_share_factors(make_encoder: Any, make_feeds: Any) -> None:
    model = split_gemms(make_encoder(outliers=60.0), ())
    before = model.SerializeToString()
    scaled = scale_salient(model, [make_feeds(seed=1)], size=SIZE, fits=lambda graph, node: True)
    assert model.SerializeToString() == before
    graph, plain = Graph(scaled), Graph(model)
    ratios = {}
    for node, old in zip(
        (each for each in scaled.graph.node if each.op_type == "MatMul"),
        (each for each in model.graph.node if each.op_type == "MatMul"),
        strict=True,
    ):
        if graph.is_linear(node) and node.input[1].endswith("_smoothed"):
            now, then = graph.weight(node.input[1]), plain.weight(old.input[1])
            ratio = np.median(now / then, axis=1)
            np.testing.assert_allclose(now, then * ratio[:, None], rtol=1e-4)
            ratios.setdefault(old.input[0], []).append(ratio)
    assert ratios
    for found in ratios.values():
        for each in found[1:]:
            np.testing.assert_allclose(each, found[0], rtol=1e-4)
    feeds = make_feeds(seed=2)
    np.testing.assert_allclose(answer(scaled, feeds), answer(model, feeds), atol=1e-3)


def answer(model: onnx.ModelProto | Path, feeds: Arrays) -> NDArray[np.float32]:
    from onnx.reference import ReferenceEvaluator

    if isinstance(model, Path):
        return np.asarray(create_session(model, threads=1).run(None, feeds)[0])
    return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])


@pytest.mark.parametrize("setting", ["awq", "scale_estimation"])
def test_calibrated_weights_answer_nearer_to_the_float_model(
    make_encoder: Any, make_feeds: Callable[..., Arrays], tmp_path: Path, setting: str
) -> None:
    source = tmp_path / "float.onnx"
    onnx.save(make_encoder(outliers=60.0), source)
    batches = [make_feeds(16, seed=number) for number in range(4)]
    feeds = make_feeds(64, seed=9)

    def distance(**settings: Any) -> float:
        path = tmp_path / "int4.onnx"
        quantize_weights(source, path, batches, bits=4, group_size=SIZE, **settings)
        return float(np.abs(answer(path, feeds) - answer(source, feeds)).mean())

    assert distance(**{setting: True}) < 0.9 * distance()


def test_calibration_needs_data(encoder_path: Path, tmp_path: Path) -> None:
    for setting in ("awq", "scale_estimation"):
        with pytest.raises(PassError, match="calibration got no data"):
            quantize_weights(encoder_path, tmp_path / "int4.onnx", bits=4, **{setting: True})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "weights", "awq": True}, "awq has no effect with weight_bits 8"),
        (
            {"method": "weights", "scale_estimation": True},
            "scale_estimation has no effect with weight_bits 8",
        ),
        ({"method": "dynamic", "awq": True}, "awq has no effect with method dynamic"),
        (
            {"method": "weights", "num_samples": 9},
            "num_samples has no effect where nothing is calibrated",
        ),
    ],
)
def test_settings_without_an_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantize(**settings)


def test_only_weights_of_4_bits_are_calibrated() -> None:
    settings = {"method": "weights", "weight_bits": 4, "awq": True, "num_samples": 9}
    assert Quantize(**settings).model_dump()["awq"]
    assert Quantize(method="dynamic", kv_cache="int8", num_samples=9).num_samples == 9
    assert "awq" not in Quantize(method="weights").model_dump()
