"""Entities in the IOB2 form: by hand, after the rules of seqeval's strict mode."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.entities import count_entities, entity_spans, is_iob2
from compressor.metrics import METRICS, metric_changes

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", set()),
        ("O O", set()),
        ("B-PER", {("PER", 0, 1)}),
        ("O B-PER I-PER I-PER O", {("PER", 1, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("B-PER I-PER B-LOC I-LOC", {("PER", 0, 2), ("LOC", 2, 4)}),
        ("I-PER I-PER", set()),  # no beginning
        ("O I-PER B-PER", {("PER", 2, 3)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1)}),  # another type neither goes on nor begins
        ("B-PER I-LOC I-PER", {("PER", 0, 1)}),
        ("B-PER O I-PER", {("PER", 0, 1)}),
        ("B-a-b I-a-b", {("a-b", 0, 2)}),
    ],
)
def test_spans(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entity_spans(tags.split()) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (NAMES, True),
        (("B-X", "O"), True),
        (("B-X", "I-X"), True),
        (("O", "I-X"), False),  # IOB1, or no entities that begin
        (("NOUN", "VERB"), False),
        (("O", "B-X", "S-X"), False),
        (("O",), False),
        ((), False),
    ],
)
def test_which_tags_are_iob2(names: tuple[str, ...], expected: bool) -> None:
    assert is_iob2(names) is expected


def numbers(tags: str) -> np.ndarray:
    return np.array([NAMES.index(tag) for tag in tags.split()])


def test_entities_count_within_their_rows() -> None:
    labels = numbers("B-PER I-PER O   B-LOC  I-LOC O")
    classes = numbers("B-PER I-PER B-LOC I-LOC I-LOC O")
    rows = np.array([4, 4, 4, 7, 7, 7])
    # In the first row one is found, and one that is none; in the second nothing begins.
    assert count_entities(classes, labels, rows, NAMES).tolist() == [[1, 1, 2], [0, 1, 0]]


def test_f1_is_that_of_all_entities_together() -> None:
    labels = numbers("B-PER I-PER O B-LOC I-LOC O")
    classes = numbers("B-PER I-PER B-LOC B-LOC O O")
    rows = np.array([0, 0, 0, 1, 1, 1])
    found = metric_changes(labels, classes, labels, num_classes=5, rows=rows, label_names=NAMES)
    assert set(found) == {*METRICS, "entity_f1"}
    assert found["entity_f1"].reference == 1
    # One of two is right, and three were found: precision 1/3, recall 1/2.
    assert found["entity_f1"].candidate == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert 0 <= found["entity_f1"].low <= 1 - 0.4 <= found["entity_f1"].high <= 1


def test_without_entities_f1_is_0_and_other_tags_have_none() -> None:
    nothing = np.zeros(4, dtype=np.int64)
    found = metric_changes(nothing, nothing, nothing, num_classes=5, label_names=NAMES)
    assert found["entity_f1"] == (0, 0, 0, 0)
    plain = metric_changes(nothing, nothing, nothing, num_classes=2, label_names=("a", "b"))
    assert set(plain) == set(METRICS)
