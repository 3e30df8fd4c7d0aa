"""Objects of images through the whole toolkit: fine-tuned, compressed, measured, found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import YolosImageProcessorPil
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

import targets
from compressor.checkpoint import label_names
from compressor.report.files import read_answers, read_report
from compressor.tasks import get_task, infer_task
from targets.bundle import Bundle
from tests.compressor.conftest import Finished, Outcome
from tests.compressor.detection import NAMES, SIDE, make_scene
from tests.targets.test_average_precision import reference

pytestmark = pytest.mark.slow

HOME = "detection"
QUERIES = 3
COUNT = 32  # test images
RECIPE = """
model: model
task: object-detection
data: {train: train.json, validation: validation.json, test: test.json, slices: [shapes]}
passes:
  - {pass: prune, ratio: 0.25, recovery: null}
  - {pass: distill, epochs: 2, batch_size: 16, labels_weight: 0.5, augmentation_copies: 1}
  - export
variants:
  fp32: []
  int8: [{pass: quantize, method: static, num_samples: 32}]
  int8-dynamic: [{pass: quantize, method: dynamic}]
targets: [onnxruntime, openvino]
budget: {max_accuracy_drop: 90, max_metric_drop: {map_50: 95}}
benchmark: {rounds: 2, min_round_s: 0.001, pause_s: 0, batch_sizes: [1]}
output: out
"""


def read_scenes(folder: Path) -> tuple[list[str], NDArray[np.float32]]:
    """The test images, and what is to be found in them, in pixels."""
    wanted = np.full((COUNT, 2, 6), -1, dtype=np.float32)
    for index in range(COUNT):
        for place, box in enumerate(make_scene(3000 + index)[1]):
            wanted[index, place] = [*box, 0]
    return [str(folder / "test" / f"{index}.png") for index in range(COUNT)], wanted


def table_of(predictions: list[Any]) -> NDArray[np.float32]:
    """All boxes of predictions as tables."""
    return np.array(
        [
            [[NAMES.index(box.label), *box.box, box.score] for box in each.above(0).boxes]
            for each in predictions
        ],
        dtype=np.float32,
    )


def test_shapes_are_learnt(tuned: Path) -> None:
    facts = json.loads((tuned / "model" / "finetune.json").read_text())["accuracy"]["test"]
    assert (facts["num_rows"], facts["measure"]) == (COUNT, "mAP")
    assert facts["value"] > 0.1
    assert facts["low"] < facts["value"] < facts["high"]
    assert infer_task(tuned / "model") == "object-detection"
    assert label_names(tuned / "model") == NAMES


def test_a_run_judges_every_bundle_as_pycocotools_does(run: Finished, tuned: Path) -> None:
    rows = run.rows
    assert {(row.target, row.variant) for row in rows} == {
        (target, variant)
        for target in ("onnxruntime", "openvino")
        for variant in ("fp32", "int8", "int8-dynamic")
    } - {("openvino", "int8-dynamic")}
    images, wanted = read_scenes(tuned)
    answers = read_answers(read_report(run.output), run.output)
    assert answers is not None
    for row in rows:
        assert row.test is not None
        assert row.test_comparison is not None
        with targets.load(run.output / str(row.bundle)) as predictor:
            found = table_of(predictor.predict(images))
        ap, ap50, by_class = reference(found, wanted)
        assert row.test.value == pytest.approx(ap, abs=0.02)  # of boxes rounded to float32
        assert row.test_comparison.metrics["map_50"].value == pytest.approx(ap50, abs=0.02)
        assert ap50 > 0.3
        groups = {each.title: each for each in row.test_comparison.groups}
        assert set(groups) == {"class circle", "class square", "shapes = 1", "shapes = 2"}
        for name, each in zip(NAMES, by_class, strict=True):
            assert groups[f"class {name}"].accuracy == pytest.approx(each.mean(), abs=0.02)
        assert groups["shapes = 1"].num_rows + groups["shapes = 2"].num_rows == COUNT
        assert row.changed == ()
        assert answers[row.key].shape[0] == COUNT
    assert "mAP" in (run.output / "report.md").read_text()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_device_finds_the_precision_that_was_built(
    run: Finished, target: str, compressor: Callable[..., Outcome]
) -> None:
    row = next(each for each in run.rows if each.target == target)
    found = compressor("evaluate", run.output / str(row.bundle))
    assert found.code == 0, found.err
    here, built = found.out.splitlines()
    assert here.split(": ")[1].strip() == built.split(": ")[1].strip() == str(row.test)
    found = compressor("bench", run.output / str(row.bundle), "--rounds", "1")
    assert found.code == 0, found.err


def test_bundles_answer_as_the_post_processing_of_transformers(run: Finished, tuned: Path) -> None:
    images, _ = read_scenes(tuned)
    untouched = [
        each
        for each in (run.store / "steps").glob("*/files")
        if (each / "manifest.json").is_file()
        and (manifest := Bundle.open(each).manifest).name == "original"
        and manifest.precision == "fp32"
    ]
    assert len(untouched) == 3  # eager PyTorch and both runtimes
    model = get_task("object-detection").load_checkpoint(tuned / "model").module
    processor = YolosImageProcessorPil.from_pretrained(tuned / "model")
    pictures = [Image.open(each) for each in images]
    with torch.no_grad():
        logits = model(processor(pictures, return_tensors="pt").pixel_values).logits
    outputs = DetrObjectDetectionOutput(logits=logits[..., :-4], pred_boxes=logits[..., -4:])
    sizes = [(SIDE, SIDE)] * len(images)
    wanted = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=sizes)
    for folder in untouched:
        with targets.load(folder) as predictor:
            found = predictor.predict(images)
        for ours, theirs in zip(found, wanted, strict=True):
            order = theirs["scores"].argsort(descending=True)
            assert [box.label for box in ours.boxes] == [NAMES[i] for i in theirs["labels"][order]]
            sides = theirs["boxes"][order].clamp(0, SIDE)
            for box, each in zip(ours.boxes, sides.tolist(), strict=True):
                assert box.box == pytest.approx(each, abs=0.01)


def test_boxes_are_in_pixels_of_the_image_that_was_given(
    run: Finished, compressor: Callable[..., Outcome], tmp_path: Path
) -> None:
    bundle = run.output / str(run.rows[0].bundle)
    pixels, _ = make_scene(3000)
    small = Image.fromarray(pixels)
    small.save(tmp_path / "small.png")
    small.resize((4 * SIDE, 2 * SIDE), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    files = ("--file", tmp_path / "small.png", "--file", tmp_path / "large.png")
    asked = compressor("predict", bundle, *files, "--min-score", "0")
    assert asked.code == 0, asked.err
    one, two = (json.loads(line)["boxes"] for line in asked.out.splitlines())
    assert len(one) == len(two) == QUERIES
    assert [each["score"] for each in one] == sorted((b["score"] for b in one), reverse=True)
    scaled = np.array([each["box"] for each in one[:1]]) * [4, 2, 4, 2]
    np.testing.assert_allclose([each["box"] for each in two[:1]], scaled, atol=4)
    plain = compressor("predict", bundle, *files)
    sure = json.loads(plain.out.splitlines()[0])["boxes"]
    assert sure == [each for each in one if each["score"] >= 0.5]


def test_the_gate_compares_with_the_last_release(
    run: Finished, compressor: Callable[..., Outcome]
) -> None:
    assert run.outcome.code == 0
    found = compressor("gate", run.output, "--against", run.output, "--even-if-noisy")
    assert found.code == 0, found.out + found.err
    assert "mAP" in found.out
