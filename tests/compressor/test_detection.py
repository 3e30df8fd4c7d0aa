"""What is lost from one model to another that find boxes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compressor.detection import box_drop, compare_boxes
from compressor.tasks import get_task
from targets.answers import BoxAnswers, Units
from targets.answers.boxes import place_boxes
from targets.average_precision import BOX, SCORE
from tests.targets.test_average_precision import make_tables, reference

NAMES = ("cat", "dog", "bird", "fish")
TASK = get_task("object-detection")


def make_pair(images: int, *, worse: float = 4.0, seed: int = 1) -> tuple[Units, Units]:
    """A model and one whose boxes are moved."""
    found, wanted = make_tables(seed, images=images)
    moved = found.copy()
    generator = np.random.default_rng(seed)
    moved[..., BOX] += np.tile(generator.normal(0, worse, (*moved.shape[:2], 2)), 2)
    rows = np.arange(images, dtype=np.int32)
    return Units(found, wanted, rows), Units(moved, wanted, rows)


def test_nothing_is_lost_from_a_model_to_itself() -> None:
    first, second = make_pair(12, worse=0)
    found = compare_boxes(first, second, label_names=NAMES, slices={})
    assert (found.drop_points, found.low_points, found.high_points) == (0, 0, 0)
    assert (found.p_value, found.agreement) == (1, 1)
    assert {each.drop_points for each in (*found.metrics.values(), *found.groups)} == {0}


def test_what_is_lost_is_the_difference_of_what_pycocotools_finds() -> None:
    first, second = make_pair(40)
    days = ["sunday" if index % 4 == 0 else "monday" for index in range(40)]
    found = compare_boxes(first, second, label_names=NAMES, slices={"day": days})
    before, after = (reference(each.scores, each.labels) for each in (first, second))
    assert found.reference_accuracy == pytest.approx(before[0])
    assert found.drop_points == pytest.approx(100 * (before[0] - after[0]))
    assert found.low_points < found.drop_points < found.high_points
    assert found.low_points > 0  # they are far worse
    assert found.p_value == pytest.approx(1 / 1001)
    assert found.metrics["map"].value == pytest.approx(after[0])
    assert found.metrics["map_50"].value == pytest.approx(after[1])
    assert found.metrics["map_50"].reference == pytest.approx(before[1])
    groups = {each.title: each for each in found.groups}
    for place, name in enumerate(NAMES):
        assert groups[f"class {name}"].accuracy == pytest.approx(after[2][place].mean())
        wanted = (first.labels[..., 0] == place) & (first.labels[..., SCORE] == 0)
        assert groups[f"class {name}"].num_rows == wanted.sum()
    sunday = second.take(np.arange(0, 40, 4))
    assert groups["day = sunday"].accuracy == pytest.approx(
        reference(sunday.scores, sunday.labels)[0]
    )
    assert groups["day = sunday"].num_rows == 10


def test_the_interval_is_of_the_same_images_for_both() -> None:
    """Images are unlike each other, but both models find them alike: little is uncertain."""
    first, second = make_pair(40, worse=0.3)
    found = compare_boxes(first, second, label_names=NAMES, slices={})
    alone = BoxAnswers().score(first)
    assert found.high_points - found.low_points < 0.6 * 100 * (alone.high - alone.low)
    assert found.low_points <= found.drop_points <= found.high_points


def test_the_chance_is_that_of_an_exchange_of_answers() -> None:
    first, second = make_pair(7, worse=1.5, seed=4)
    found = compare_boxes(first, second, label_names=NAMES, slices={})
    judge = BoxAnswers()
    reached = []
    for choice in itertools.product([False, True], repeat=7):
        own = np.array(choice)[:, None, None]
        one, other = (
            Units(np.where(own, a.scores, b.scores), a.labels, a.rows)
            for a, b in ((first, second), (second, first))
        )
        lost = judge.overall(one) - judge.overall(other)
        reached.append(100 * abs(lost) >= abs(found.drop_points) - 1e-9)
    assert 0.05 < np.mean(reached) < 0.95
    assert found.p_value == pytest.approx(np.mean(reached), abs=0.06)


def test_the_gate_finds_the_same_from_what_a_report_keeps() -> None:
    pair = [Units(each.scores, place_boxes(each.labels), each.rows) for each in make_pair(20)]
    kept = [TASK.kept(each) for each in pair]
    assert TASK.drop(*kept, None, None) == box_drop(*pair)
    found = TASK.compare(*pair, label_names=NAMES, slices={})
    assert TASK.drop(*kept, None, None) == (
        found.drop_points, found.low_points, found.high_points,
    )  # fmt: skip
    assert TASK.changed(*pair, label_names=NAMES, title=None) == ()


def test_groups_without_objects_are_left_out() -> None:
    first, second = make_pair(10)
    for each in (first, second):
        each.labels[0] = -1
    found = compare_boxes(
        first, second, label_names=NAMES, slices={"place": ["nowhere", *["somewhere"] * 9]}
    )
    assert [each.title for each in found.groups if each.column] == ["place = somewhere"]
