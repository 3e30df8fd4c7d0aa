"""Videos from the folder to the device: fine-tuned, compressed, measured and judged again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import targets
from compressor.checkpoint import label_names
from targets import Bundle

pytestmark = pytest.mark.slow

CLASSES = ("left", "right")
FRAMES, SIDE = 4, 16
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
"""


class Run(NamedTuple):
    """A fine-tuned checkpoint, and a run of the recipe on it."""

    tuned: Any
    outcome: Any
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def bundles(self) -> list[Path]:
        return sorted((self.output / "bundles").iterdir())


def video(label: int, seed: int) -> NDArray[np.uint8]:
    """A light square that goes to the left or to the right over a dark ground, in 8 frames."""
    random = np.random.default_rng((label, seed))
    frames = random.integers(0, 40, (2 * FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    top, begin = random.integers(0, SIDE - 5), random.integers(0, 4)
    for number in range(2 * FRAMES):
        start = begin + number
        start = start if label else SIDE - 5 - start
        frames[number, top : top + 5, max(start, 0) : start + 5] += 180
    return frames


def write_videos(folder: Path, count: int, seed: int) -> None:
    """Every third as an animation, as a folder of images, and as an array."""
    for index in range(count):
        label = index % 2
        frames = video(label, 1000 * seed + index)
        path = folder / CLASSES[label] / str(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        images = list(map(Image.fromarray, frames))
        if index % 3 == 0:
            images[0].save(path.with_suffix(".png"), save_all=True, append_images=images[1:])
        elif index % 3 == 1:
            path.mkdir()
            for number, image in enumerate(images):
                image.save(path / f"{number}.png")
        else:
            np.save(path.with_suffix(".npy"), frames)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, compressor: Callable[..., Any]) -> Run:
    import torch
    from transformers import VideoMAEConfig, VideoMAEModel

    folder = tmp_path_factory.mktemp("videos")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        VideoMAEModel(
            VideoMAEConfig(
                image_size=SIDE,
                patch_size=4,
                num_frames=FRAMES,
                tubelet_size=2,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                initializer_range=0.1,
            )
        ).save_pretrained(folder / "start")
    config = {
        "image_processor_type": "VideoMAEImageProcessor",
        "size": {"height": SIDE, "width": SIDE},
        "do_center_crop": False,
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
    }
    (folder / "start" / "preprocessor_config.json").write_text(json.dumps(config))
    for seed, (name, count) in enumerate({"train": 96, "validation": 24, "test": 40}.items()):
        write_videos(folder / name, count, seed)
    settings = ("--set", "epochs=10", "--set", "learning_rate=3e-3", "--set", "batch_size=16")
    arguments = ("--output", folder / "model", "--store", folder / "store")
    tuned = compressor("finetune", folder / "start", folder, *settings, *arguments)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    outcome = compressor(
        "run", folder / "recipe.yaml", "--output", folder / "out", "--store", folder / "store"
    )
    return Run(tuned, outcome, folder)


def test_finetuning_learns_where_the_square_goes(run: Run) -> None:
    assert run.tuned.code == 0, run.tuned.err
    assert label_names(run.folder / "model") == CLASSES
    found = json.loads((run.folder / "model" / "finetune.json").read_text())["accuracy"]["test"]
    assert found["value"] > 0.85


def test_the_run_builds_every_bundle_and_keeps_the_accuracy(run: Run) -> None:
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
def test_fp32_bundles_answer_as_the_network(run: Run, target: str) -> None:
    """In every size of batch."""
    import torch

    from compressor.model import TorchModel
    from compressor.store import RunStore

    steps = [each for each in RunStore(run.folder / "store").steps() if ":distill" in each.kind]
    [step] = steps
    model = TorchModel.load(run.folder / "store" / "steps" / step.key / "files")
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
    run: Run, compressor: Callable[..., Any]
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
    run: Run, compressor: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = run.output / "bundles" / "int8-onnxruntime"
    inputs = sorted((run.folder / "test" / "right").iterdir())[:6]
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
    run: Run, compressor: Callable[..., Any]
) -> None:
    outcome = compressor("bench", *run.bundles[::3], "--rounds", "1", "--batch-size", "2")
    assert outcome.code == 0, outcome.err
    assert "tokens" not in outcome.out
    assert "tokens" not in (run.output / "report.md").read_text()
    card = (run.bundles[0] / "README.md").read_text()
    assert "compressor predict . --file video.gif" in card
    assert "compressor[onnxruntime,image]" in card
    outcome = compressor("inspect", run.folder / "model")
    assert outcome.code == 0, outcome.err
    assert "a video" in outcome.out
    assert "2 layers x 4 heads x 64 FFN, hidden 32" in outcome.out
