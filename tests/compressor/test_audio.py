"""From folders of WAV files to bundles that answer as the trained model does, for two networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import targets
from compressor.tasks import get_task, infer_task
from tests.compressor.audio import LABELS, MAKERS, SPLITS, tone, write_wav

RECIPE = """
task: audio-classification
model: model
passes:
  - {pass: drop_layers, num_layers: 2}
  - {pass: prune, heads: 0.5, ffn: 0.5, examples: 16}
  - {pass: distill, epochs: 1, batch_size: 8}
  - export
variants:
  fp32: []
  int8: [{pass: quantize, method: static, num_samples: 16}]
  int8-dynamic: [{pass: quantize, method: dynamic}]
targets: [onnxruntime, openvino, pytorch]
budget: {max_accuracy_drop: 100}
benchmark: {rounds: 2, min_round_s: 0.001, pause_s: 0, sequence_length: 8000, batch_sizes: [1]}
output: out
"""


@pytest.fixture(scope="module", params=MAKERS)
def home(request: Any, make_home: Callable[[str], Path], compressor: Callable[..., Any]) -> Path:
    """A finished run of the recipe on one of the networks."""
    folder = make_home(request.param)
    (folder / "recipe.yaml").write_text(RECIPE)
    ran = compressor("run", folder / "recipe.yaml", "--data", folder, "--store", folder / "store")
    assert ran.code == 0, ran.err + ran.out
    return folder


@pytest.fixture(scope="module")
def data(home: Path) -> Path:
    return home


def labels(bundle: Path, data: Path) -> list[str]:
    """The answers of a bundle to the recordings of the test split."""
    files = sorted(map(str, (data / "test").rglob("*.wav")))
    assert len(files) == len(LABELS) * SPLITS["test"]
    with targets.load(bundle) as predictor:
        return [each.label for each in predictor.predict(files)]


def scores(bundle: Path, data: Path) -> NDArray[np.float64]:
    files = sorted(map(str, (data / "test").rglob("*.wav")))
    with targets.load(bundle) as predictor:
        return np.array([list(each.scores.values()) for each in predictor.predict(files)])


def test_the_head_is_found_and_the_network_reads_what_the_data_needs(home: Path) -> None:
    assert infer_task(home / "model") == "audio-classification"
    model = get_task("audio-classification").load_checkpoint(home / "model")
    assert model.labels == tuple(LABELS)
    assert model.max_length == 16_000


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_bundles_answer_as_torch_does(home: Path, data: Path, target: str) -> None:
    bundles = home / "out/bundles"
    assert labels(bundles / f"fp32-{target}", data) == labels(bundles / "fp32-pytorch", data)
    expected = scores(bundles / "fp32-pytorch", data)
    np.testing.assert_allclose(scores(bundles / f"fp32-{target}", data), expected, atol=1e-3)


@pytest.mark.parametrize(
    "bundle", ["int8-onnxruntime", "int8-openvino", "int8-dynamic-onnxruntime"]
)
def test_integers_answer_nearly_so(home: Path, data: Path, bundle: str) -> None:
    bundles = home / "out/bundles"
    expected = scores(bundles / "fp32-pytorch", data)
    np.testing.assert_allclose(scores(bundles / bundle, data), expected, atol=0.1)


def test_the_layers_are_pruned(home: Path) -> None:
    report = json.loads((home / "out/report.json").read_text())
    found = json.dumps(report["steps"])
    assert "2 layers x 2 heads x 32 FFN" in found


def test_a_recording_is_classified_on_the_command_line(
    home: Path, data: Path, tmp_path: Path, compressor: Callable[..., Any]
) -> None:
    bundle, file = home / "out/bundles/fp32-onnxruntime", data / "test/low/0.wav"
    found = compressor("predict", bundle, "--file", file)
    assert found.code == 0, found.err
    assert json.loads(found.out)["label"] in LABELS
    long = tmp_path / "long.wav"
    write_wav(long, np.tile(tone(200, 0), 6))
    cut = compressor("predict", bundle, "--file", long)
    assert json.loads(cut.out)["truncated"]
    assert "1 of 1 recordings were longer than the 16000 samples that the model reads" in cut.err
    (tmp_path / "text.wav").write_text("no sound")
    refused = compressor("predict", bundle, "--file", tmp_path / "text.wav")
    assert refused.code != 0
    assert "is not a WAV file that can be read" in refused.err
    assert str(tmp_path / "text.wav") in refused.err


def test_a_bundle_is_measured(home: Path, compressor: Callable[..., Any]) -> None:
    bundle = home / "out/bundles/fp32-onnxruntime"
    found = compressor("bench", bundle, "--rounds", 2, "--batch-size", 1)
    assert found.code == 0, found.err
    assert "1 x 16000" in found.out
