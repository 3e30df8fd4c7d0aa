"""Classes of pixels through the whole toolkit: fine-tuned, compressed, measured, predicted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import SegformerImageProcessor

import targets
from compressor.checkpoint import label_names
from compressor.report.files import read_answers, read_report
from compressor.tasks import get_task, infer_task
from targets.answers.pixel_labels import UNLABELLED
from targets.bundle import Bundle
from targets.evaluation_pack import EvaluationPack
from tests.compressor.conftest import Finished, Outcome
from tests.compressor.segmentation import (
    SIDE,
    make_shapes,
)

HOME = "segmentation"
CLASSES = 3  # noise, circles, squares
RECIPE = """
model: model
task: semantic-segmentation
data: {train: train.csv, validation: validation.csv, test: test.csv}
passes:
  - {pass: distill, epochs: 1, batch_size: 12, augmentation_copies: 1, labels_weight: 0.5}
  - export
variants:
  fp32: []
  int8: [{pass: quantize, method: static, num_samples: 16}]
targets: [onnxruntime, openvino]
budget: {max_accuracy_drop: 90, max_metric_drop: {mean_iou: 90}}
benchmark: {rounds: 2, min_round_s: 0.001, pause_s: 0, batch_sizes: [1]}
output: out
"""


def read_shapes(folder: Path, name: str, count: int) -> tuple[list[str], NDArray[np.uint8]]:
    masks = [np.asarray(Image.open(folder / name / f"{each}-mask.png")) for each in range(count)]
    return [str(folder / name / f"{each}.png") for each in range(count)], np.stack(masks)


def mean_iou(found: NDArray[np.generic], wanted: NDArray[np.generic]) -> float:
    """Pixel by pixel, class by class."""
    counted = wanted != UNLABELLED
    shares = []
    for each in range(CLASSES):
        ours, theirs = (found == each) & counted, wanted == each
        shares.append((ours & theirs).sum() / (ours | theirs).sum())
    return float(np.mean(shares))


def test_shapes_are_learnt_and_pixels_counted(tuned: Path) -> None:
    facts = json.loads((tuned / "model" / "finetune.json").read_text())["accuracy"]["test"]
    _, masks = read_shapes(tuned, "test", 16)
    assert (facts["num_rows"], facts["unit"]) == (16, "pixel")
    assert facts["num_units"] == (masks != UNLABELLED).sum()
    # Units of an image hang together: the interval is wider than that of so many alone.
    alone = 1.96 * np.sqrt(facts["value"] * (1 - facts["value"]) / facts["num_units"])
    assert facts["high"] - facts["low"] > 3 * alone
    assert infer_task(tuned / "model") == "semantic-segmentation"
    assert label_names(tuned / "model") == ("0", "1", "2")


def test_a_run_counts_every_pixel_of_every_bundle(run: Finished, tuned: Path) -> None:
    rows = run.rows
    assert {(row.target, row.precision) for row in rows} == {
        (target, precision)
        for target in ("onnxruntime", "openvino")
        for precision in ("fp32", "int8")
    }
    images, masks = read_shapes(tuned, "test", 16)
    answers = read_answers(read_report(run.output), run.output)
    assert answers is not None
    for row in rows:
        assert row.test is not None
        assert row.test_comparison is not None
        with targets.load(run.output / str(row.bundle)) as predictor:
            found = np.stack([each.classes for each in predictor.predict(images)])
        counted = masks != UNLABELLED
        right = (found == masks)[counted]
        assert row.test.value == pytest.approx(right.mean())
        expected = mean_iou(found, masks)
        assert row.test_comparison.metrics["mean_iou"].value == pytest.approx(expected)
        assert expected > 0.6  # all noise would be a third of its share, at most 0.33
        groups = {each.value: each.num_rows for each in row.test_comparison.groups}
        assert groups == {str(each): (masks == each).sum() for each in range(CLASSES)}
        assert row.changed == ()
        assert answers[row.key].tolist() == found[counted].tolist()
    assert "test pixels" in (run.output / "report.md").read_text()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_device_finds_the_accuracy_that_was_built(
    run: Finished, target: str, compressor: Callable[..., Outcome]
) -> None:
    row = next(each for each in run.rows if each.target == target)
    folder = run.output / str(row.bundle)
    found = compressor("evaluate", folder)
    assert found.code == 0, found.err
    here, built = found.out.splitlines()
    assert here.split(": ")[1].strip() == built.split(": ")[1].strip() == str(row.test)
    manifest = Bundle.open(folder).manifest
    assert manifest.evaluation is not None
    pack = EvaluationPack.load(folder / manifest.evaluation)
    assert pack.labels.dtype == np.int16


def test_a_bundle_answers_as_the_post_processing_of_transformers(
    run: Finished, tuned: Path
) -> None:
    images, _ = read_shapes(tuned, "test", 16)
    untouched = next(
        each
        for each in (run.store / "steps").glob("*/files")
        if (each / "manifest.json").is_file()
        and (manifest := Bundle.open(each).manifest).name == "original"
        and (manifest.target, manifest.precision) == ("onnxruntime", "fp32")
    )
    with targets.load(untouched) as predictor:
        found = predictor.predict(images)
    model = get_task("semantic-segmentation").load_checkpoint(tuned / "model").module
    processor = SegformerImageProcessor.from_pretrained(tuned / "model")
    with torch.no_grad():
        outputs = model(**processor([Image.open(each) for each in images], return_tensors="pt"))
    assert outputs.logits.shape[2:] == (SIDE // 2, SIDE // 2)
    maps = processor.post_process_semantic_segmentation(outputs, [(SIDE, SIDE)] * len(images))
    for prediction, wanted in zip(found, maps, strict=True):
        np.testing.assert_array_equal(prediction.classes, wanted.numpy())
        assert sum(prediction.shares.values()) == pytest.approx(1)
        assert prediction.shares["1"] == pytest.approx(float((wanted == 1).float().mean()))


def test_masks_are_written_only_where_they_are_asked_for(
    run: Finished, compressor: Callable[..., Outcome], tmp_path: Path
) -> None:
    bundle = run.output / str(run.rows[0].bundle)
    pixels, _ = make_shapes(7, side=48)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    before = sorted(tmp_path.iterdir())
    plain = compressor("predict", bundle, "--file", tmp_path / "photo.jpg")
    assert sorted(tmp_path.iterdir()) == before
    asked = compressor(
        "predict", bundle, "--file", tmp_path / "photo.jpg", "--masks", tmp_path / "masks"
    )
    assert asked.code == 0, asked.err
    assert asked.out == plain.out
    assert set(json.loads(asked.out)["shares"]) == {"0", "1", "2"}
    written = np.asarray(Image.open(tmp_path / "masks" / "photo.png"))
    with targets.load(bundle) as predictor:
        [found] = predictor.predict([tmp_path / "photo.jpg"])
    assert written.shape == (48, 48)
    np.testing.assert_array_equal(written, found.mask())
    # the nearest pixel, of three to two
    np.testing.assert_array_equal(written[::3, ::3], found.classes[::2, ::2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the images with --file"),
        (("--file", "a/1.png", "--file", "b/1.jpg"), "two images would have the mask"),
        (("--file", "masks/1.png"), "would replace the image"),
    ],
)
def test_masks_have_a_file_each(
    run: Finished, compressor: Callable[..., Outcome], arguments: tuple[str, ...], message: str
) -> None:
    bundle = run.output / str(run.rows[0].bundle)
    found = compressor("predict", bundle, *arguments, "--masks", "masks")
    assert found.code == 2
    assert message in " ".join(found.err.replace("\u2502", " ").split())
