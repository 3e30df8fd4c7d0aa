"""What a compressed model changes: by class, by slice, and example by example."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.evaluation import compare, paired_interval
from compressor.fidelity import MAX_VALUES, changed_examples, compare_answers

NAMES = ("a", "b", "c")
LABELS = np.array([0, 0, 1, 1, 2, 2])
BEFORE = np.array(
    [[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1],
     [0.1, 0.8, 0.1], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]]
)  # fmt: skip
"""Right but for the fifth."""
AFTER = np.array(
    [[0.1, 0.5, 0.4], [0.7, 0.2, 0.1], [0.9, 0.1, 0.0],
     [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
)  # fmt: skip
"""The first and the third are lost; the fifth stays wrong in another way."""


def test_the_whole_is_that_of_the_plain_comparison() -> None:
    found = compare_answers(BEFORE, AFTER, LABELS, label_names=NAMES)
    plain = compare(BEFORE.argmax(axis=1), AFTER.argmax(axis=1), LABELS)
    for name in ("drop_points", "low_points", "high_points", "p_value", "agreement"):
        assert getattr(found, name) == getattr(plain, name)
    assert found.reference_accuracy == pytest.approx(5 / 6)
    assert found.max_probability_difference == pytest.approx(0.8)
    assert found.metrics["accuracy"].drop_points == pytest.approx(found.drop_points)


def test_every_class_and_every_slice_is_a_group() -> None:
    slices = {"source": ["web", "web", "mail", "web", "mail", "mail"]}
    found = compare_answers(BEFORE, AFTER, LABELS, label_names=NAMES, slices=slices)
    groups = {each.title: each for each in found.groups}
    assert list(groups) == ["class a", "class b", "class c", "source = mail", "source = web"]
    assert [each.num_rows for each in groups.values()] == [2, 2, 2, 3, 3]
    assert groups["class a"].drop_points == 50
    assert groups["class c"].drop_points == 0
    assert (groups["class c"].accuracy, groups["class c"].reference) == (0.5, 0.5)
    assert groups["source = web"].drop_points == pytest.approx(100 / 3)
    low, high = paired_interval(1, 0, 3)
    assert groups["source = web"].low_points == 100 * low
    assert groups["source = web"].high_points == 100 * high


def test_a_class_without_rows_is_no_group() -> None:
    found = compare_answers(BEFORE[:4], AFTER[:4], LABELS[:4], label_names=NAMES)
    assert [each.value for each in found.groups] == ["a", "b"]


def test_of_a_column_with_many_values_the_frequent_ones_count() -> None:
    values = [str(each) for each in range(60)] + ["often"] * 40
    labels = np.zeros(100, dtype=np.int64)
    same = np.tile([0.6, 0.4], (100, 1))
    found = compare_answers(same, same, labels, label_names=("x", "y"), slices={"id": values})
    of_column = [each for each in found.groups if each.column == "id"]
    assert len(of_column) == MAX_VALUES
    assert (of_column[0].value, of_column[0].num_rows) == ("often", 40)


def test_the_worst_changes_come_first() -> None:
    def title(row: int, place: int) -> str:
        return f"text {row}, part {place}"

    found = changed_examples(BEFORE, AFTER, LABELS, label_names=NAMES, title=title)
    # Lost with confidence 0.9, lost with 0.5, then wrong before and after.
    assert [each.index for each in found] == [2, 0, 4]
    first = found[0]
    assert (first.text, first.label, first.before, first.after) == ("text 2, part 0", "b", "b", "a")
    assert (first.confidence_before, first.confidence_after) == (0.8, 0.9)
    assert [each.index for each in changed_examples(
        BEFORE, AFTER, LABELS, label_names=NAMES, limit=1
    )] == [2]  # fmt: skip
    assert changed_examples(BEFORE, AFTER, LABELS, label_names=NAMES)[0].text is None
    assert changed_examples(BEFORE, BEFORE, LABELS, label_names=NAMES) == ()


def test_units_of_a_row_are_found_by_their_place_and_sliced_by_their_row() -> None:
    rows = np.array([0, 0, 0, 1, 1, 1])
    found = changed_examples(
        BEFORE,
        AFTER,
        LABELS,
        label_names=NAMES,
        rows=rows,
        title=lambda row, place: f"{row}.{place}",
    )
    assert [(each.index, each.text) for each in found] == [(0, "0.2"), (0, "0.0"), (1, "1.1")]
    compared = compare_answers(
        BEFORE, AFTER, LABELS, label_names=NAMES, rows=rows, slices={"source": ["web", "mail"]}
    )
    drops = {each.title: each.drop_points for each in compared.groups}
    assert drops["source = web"] == pytest.approx(200 / 3)
    assert drops["source = mail"] == 0
    assert compared.p_value == 1  # all that is lost is lost in one row


def test_classes_alone_compare_as_probabilities_do() -> None:
    generator = np.random.default_rng(0)
    rows = np.sort(generator.integers(0, 15, 600))
    labels = generator.integers(0, 3, 600)
    before, after = (
        np.eye(3)[np.where(generator.random(600) < share, labels, generator.integers(0, 3, 600))]
        for share in (0.8, 0.6)
    )
    slices = {"source": [f"s{number % 4}" for number in range(15)]}
    expected = compare_answers(
        before, after, labels, label_names=NAMES, rows=rows, slices=slices
    ).model_dump()
    found = compare_answers(
        before.argmax(axis=1).astype(np.uint8),
        after.argmax(axis=1).astype(np.uint8),
        labels.astype(np.int16),
        label_names=NAMES,
        rows=rows.astype(np.int32),
        slices=slices,
    ).model_dump()
    assert len(found["groups"]) == 7
    for name in ("max_probability_difference", "calibration_error", "reference_calibration_error"):
        assert found.pop(name) is None
        assert expected.pop(name) is not None
    for group, other in zip(found.pop("groups"), expected.pop("groups"), strict=True):
        assert group == pytest.approx(other)
    for metric, change in found.pop("metrics").items():
        assert change == pytest.approx(expected["metrics"].pop(metric), abs=1e-5)
    assert expected.pop("metrics") == {}
    assert found == pytest.approx(expected)
    classes = before.argmax(axis=1)
    assert changed_examples(classes, 0 * classes, labels, label_names=NAMES, rows=rows) == ()
