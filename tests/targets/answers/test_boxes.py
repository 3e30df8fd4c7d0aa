"""Answers that are boxes: which are found, how good they are, what a user gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import DetrImageProcessor
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

from targets.answers import IGNORED, BoxAnswers, Units
from targets.answers.boxes import MAX_BOXES, NO_BOX, box_matches, mean_precisions, place_boxes
from targets.average_precision import BOX, CLASS, SCORE
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import ImagePreprocessing
from tests.targets.test_average_precision import make_tables, reference

ANSWERS = BoxAnswers()
NAMES = ("cat", "dog", "bird")
PREPROCESSING = ImagePreprocessing(height=16, width=16)


def make_outputs(count: int, *, queries: int = 5, seed: int = 0) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3, (count, queries, len(NAMES) + 1))
    boxes = generator.uniform(0.2, 0.8, (count, queries, 4))
    return np.concatenate([logits, boxes], axis=-1).astype(np.float32)


def make_units(seed: int, **more: Any) -> Units:
    found, wanted = make_tables(seed, **more)
    return Units(found, wanted, np.arange(len(found), dtype=np.int32))


def test_predictions_are_those_of_transformers() -> None:
    outputs = make_outputs(2)
    sizes = [(30, 60), (48, 20)]
    images = [Image.new("RGB", size[::-1]) for size in sizes]
    found = ANSWERS.predictions(
        outputs,
        NAMES,
        images,
        PREPROCESSING.open(__file__).encode(images),  # type: ignore[arg-type]
    )
    given = DetrObjectDetectionOutput(
        logits=torch.from_numpy(outputs[..., :-4]), pred_boxes=torch.from_numpy(outputs[..., -4:])
    )
    for threshold in (0.5, 0.0, 0.8):
        wanted = DetrImageProcessor().post_process_object_detection(
            given, threshold=threshold, target_sizes=sizes
        )
        for prediction, each, (height, width) in zip(found, wanted, sizes, strict=True):
            boxes = prediction.boxes if threshold == 0.5 else prediction.above(threshold).boxes
            order = each["scores"].argsort(descending=True)
            assert [box.label for box in boxes] == [NAMES[i] for i in each["labels"][order]]
            np.testing.assert_allclose([b.score for b in boxes], each["scores"][order], rtol=1e-5)
            limits = torch.tensor([width, height, width, height])
            sides = each["boxes"][order].clamp(min=torch.zeros(4), max=limits)
            np.testing.assert_allclose(
                np.array([box.box for box in boxes]).reshape(-1, 4), sides, atol=1e-3
            )
    assert "all_boxes" not in found[0].model_dump_json()


def test_labels_come_back_out_of_a_pack() -> None:
    _, wanted = make_tables(0, images=4)
    tables = [each[each[:, CLASS] >= 0] for each in wanted]
    labels = ANSWERS.place(tables, (), None)  # type: ignore[arg-type]
    assert labels.shape == (4, MAX_BOXES, 6)  # type: ignore[union-attr]
    pack = EvaluationPack.from_rows(
        {"pixel_values": [np.zeros((16, 16, 3), np.uint8)] * 4}, labels, preprocessing=PREPROCESSING
    )
    units = ANSWERS.units(make_outputs(4), pack)
    assert units.rows.tolist() == [0, 1, 2, 3]
    for each, table in zip(units.labels, tables, strict=True):
        np.testing.assert_allclose(each[: len(table)], table)
        assert (each[len(table) :, CLASS] == NO_BOX).all()


def test_an_image_whose_labels_count_for_nothing_is_not_judged() -> None:
    labels = place_boxes([np.zeros((0, 6))] * 3)
    labels[1] = IGNORED
    units = ANSWERS.judged(make_outputs(3), labels, np.array([4, 5, 6]))
    assert units.rows.tolist() == [4, 6]
    assert len(units.scores) == len(units) == 2


def test_the_score_is_that_of_pycocotools_and_its_interval_holds_it() -> None:
    units = make_units(1, images=40)
    ap, ap50, _ = reference(units.scores, units.labels)
    found = ANSWERS.score(units)
    assert found.value == ANSWERS.overall(units) == pytest.approx(ap, abs=1e-9)
    assert mean_precisions(box_matches(units).precisions(np.ones((1, 40))))[0, 1] == pytest.approx(
        ap50
    )
    assert found.low < found.value < found.high
    assert 0.02 < found.high - found.low < 0.4
    assert (found.measure, found.num_rows, found.num_units) == ("mAP", 40, None)
    parts = [ANSWERS.score(units.take(np.arange(40)[k::2])).value for k in range(2)]
    assert found.low < np.mean(parts) < found.high


def test_one_more_image_of_the_same_kind_narrows_the_interval() -> None:
    units = make_units(2, images=20)
    four = units.take(np.tile(np.arange(20), 4))
    few, many = ANSWERS.score(units), ANSWERS.score(four)
    assert many.high - many.low == pytest.approx((few.high - few.low) / 2, rel=0.25)


def test_values_are_those_of_each_image_by_itself() -> None:
    units = make_units(0, images=8, crowds=False)
    units.labels[3, :, CLASS] = NO_BOX
    units.labels[4, :, CLASS] = NO_BOX
    units.scores[4, :, SCORE] = 0.4
    values = ANSWERS.values(units)
    assert values[[3, 4]].tolist() == [0, 1]
    for index in (0, 1, 2, 5):
        alone = units.take(np.array([index]))
        if (alone.labels[..., CLASS] >= 0).any():
            assert values[index] == pytest.approx(ANSWERS.overall(alone))


def test_the_answer_to_an_image_is_which_objects_are_in_it() -> None:
    first = make_units(0, images=3)
    moved, other, unsure = (make_units(0, images=3) for _ in range(3))
    moved.scores[..., BOX] += 1
    moved.scores[:] = moved.scores[:, ::-1]
    sure = np.argwhere(first.scores[1, :, SCORE] >= 0.5)[0, 0]
    other.scores[1, sure, CLASS] += 1
    unsure.scores[first.scores[..., SCORE] < 0.5, CLASS] = 2
    given = ANSWERS.given(first)
    assert (ANSWERS.given(moved) == given).all()
    assert (ANSWERS.given(unsure) == given).all()
    assert (ANSWERS.given(other) == given).tolist() == [True, False, True]
