"""Videos from the folder to the device: fine-tuned, compressed, measured and judged again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import targets
from compressor.checkpoint import label_names
from targets import Bundle
from tests.compressor.conftest import Finished
from tests.compressor.videos import CLASSES, FRAMES, SIDE, video

pytestmark = pytest.mark.slow

HOME = "videos"
RECIPE = """
task: video-classification
model: model
data: {train: train, validation: validation, test: test}
passes:
  - {pass: prune, ratio: 0.25, recovery: null}
  - {pass: distill, epochs: 2, batch_size: 16, learning_rate: 1.0e-3, augmentation_copies: 1}
  - export
variants:
  fp32: []
  int8: [{pass: quantize, method: static, num_samples: 24}]
targets: [onnxruntime, openvino]
budget: {max_accuracy_drop: 100}
benchmark: {rounds: 1, min_round_s: 0.001, pause_s: 0, batch_sizes: [1]}
output: out
"""


def test_finetuning_learns_where_the_square_goes(run: Finished, tuned: Path) -> None:
    assert label_names(tuned / "model") == CLASSES
    found = json.loads((tuned / "model" / "finetune.json").read_text())["accuracy"]["test"]
    assert found["value"] > 0.85


def test_the_run_builds_every_bundle_and_keeps_the_accuracy(run: Finished) -> None:
    assert run.outcome.code == 0, run.outcome.out + run.outcome.err
    assert [each.name for each in run.bundles] == [
        "fp32-onnxruntime",
        "fp32-openvino",
        "int8-onnxruntime",
        "int8-openvino",
    ]
    for folder in run.bundles:
        manifest = Bundle.open(folder).manifest
        assert manifest.preprocessing.kind == "video"
        assert manifest.signature.inputs[0].shape == ("batch", FRAMES, 3, SIDE, SIDE)
        assert manifest.measured is not None
        assert manifest.measured.accuracy is not None
        assert manifest.measured.accuracy.value > 0.8


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_fp32_bundles_answer_as_the_network(run: Finished, target: str) -> None:
    """In every size of batch."""
    import torch

    from compressor.model import TorchModel
    from compressor.store import RunStore

    steps = [each for each in RunStore(run.store).steps() if ":distill" in each.kind]
    [step] = steps
    model = TorchModel.load(run.store / "steps" / step.key / "files")
    videos = [video(index % 2, 500 + index) for index in range(7)]
    pixels = np.stack([each[::2] for each in videos]).astype(np.float32) / 255
    pixels = ((pixels - 0.5) / 0.25).transpose(0, 1, 4, 2, 3)
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(pixels)).logits.numpy()
    for batch_size in (1, 4):
        with targets.load(run.output / f"bundles/fp32-{target}", batch_size=batch_size) as found:
            logits = found.logits(videos)
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_devices_measure_the_accuracy_that_the_build_found(
    run: Finished, compressor: Callable[..., Any]
) -> None:
    for folder in run.bundles:
        measured = Bundle.open(folder).manifest.measured
        outcome = compressor("evaluate", folder)
        assert outcome.code == 0, outcome.err
        assert measured is not None
        assert measured.accuracy is not None
        assert f"{100 * measured.accuracy.value:.1f}%" in outcome.out
        assert compressor("verify", folder).code == 0


def test_files_and_folders_are_predicted_and_wrong_ones_told(
    run: Finished, compressor: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = run.output / "bundles" / "int8-onnxruntime"
    inputs = sorted((run.output.parent / "test" / "right").iterdir())[:6]
    assert {each.suffix for each in inputs} == {".png", ".npy", ""}
    outcome = compressor("predict", bundle, *[part for each in inputs for part in ("-f", each)])
    assert outcome.code == 0, outcome.err
    labels = [json.loads(line)["label"] for line in outcome.out.splitlines()]
    assert labels.count("right") >= 5
    (tmp_path / "clip.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    outcome = compressor("predict", bundle, "--file", tmp_path / "clip.mp4")
    assert outcome.code == 3
    assert "the video cannot be read" in outcome.err
    assert "no format that Pillow knows" in outcome.err


def test_lengths_are_no_subject_of_benches_reports_and_cards(
    run: Finished, compressor: Callable[..., Any]
) -> None:
    outcome = compressor("bench", *run.bundles[::3], "--rounds", "1", "--batch-size", "2")
    assert outcome.code == 0, outcome.err
    assert "tokens" not in outcome.out
    report = (run.output / "report.md").read_text()
    assert "tokens" not in report.replace("min_tokens_per_s", "")  # a limit of the budget
    card = (run.bundles[0] / "README.md").read_text()
    assert "compressor predict . --file video.gif" in card
    assert "compressor[onnxruntime,image]" in card
    outcome = compressor("inspect", run.output.parent / "model")
    assert outcome.code == 0, outcome.err
    assert "a video" in outcome.out
    assert "2 layers x 4 heads x 64 FFN, hidden 32" in outcome.out
