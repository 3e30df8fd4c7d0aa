"""Metrics against scikit-learn, their bootstrap by its properties, calibration by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, recall_score

from compressor.metrics import METRICS, expected_calibration_error, metric_changes
from targets import scoring

CLASSES = 4


def answers(count: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels, and predictions of which about a share is right."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    wrong = generator.integers(0, CLASSES, count)
    return labels, np.where(generator.random(count) < share, labels, wrong)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_metrics_are_those_of_scikit_learn(count: int, seed: int) -> None:
    labels, reference = answers(count, 0.6, seed)
    _, candidate = answers(count, 0.4, seed)
    found = metric_changes(reference, candidate, labels, num_classes=CLASSES)
    assert set(found) == set(METRICS)
    for each, predicted in (("reference", reference), ("candidate", candidate)):
        present = np.unique(labels)
        expected = {
            "accuracy": accuracy_score(labels, predicted),
            "balanced_accuracy": recall_score(
                labels, predicted, labels=present, average="macro", zero_division=0
            ),
            "macro_f1": f1_score(labels, predicted, average="macro", zero_division=0),
            "mean_iou": jaccard_score(labels, predicted, average="macro", zero_division=0),
        }
        for name, value in expected.items():
            assert getattr(found[name], each) == pytest.approx(value)


def test_the_interval_holds_the_true_loss_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        labels, reference = answers(300, 0.8, seed)
        _, candidate = answers(300, 0.7, 10_000 + seed)
        candidate = np.where(reference == labels, candidate, reference)
        found = metric_changes(reference, candidate, labels, num_classes=CLASSES)["accuracy"]
        # Right first: 0.8 + 0.2 / 4. Still right of those: 1 / 4, whatever the second says.
        true_loss = 0.85 * (1 - 0.25)
        held += found.low <= true_loss <= found.high
    assert 180 <= held <= 200


def test_models_that_agree_lose_nothing_for_certain() -> None:
    labels, reference = answers(500, 0.9, 1)
    for change in metric_changes(reference, reference, labels, num_classes=CLASSES).values():
        assert change.reference == change.candidate
        assert (change.low, change.high) == (0, 0)


def test_a_class_that_collapses_shows_in_the_macro_metrics() -> None:
    labels = np.array([0] * 95 + [1] * 5)
    reference = labels.copy()
    candidate = np.zeros_like(labels)
    found = metric_changes(reference, candidate, labels, num_classes=2)
    assert found["accuracy"].candidate == 0.95
    assert found["balanced_accuracy"].candidate == 0.5
    assert found["macro_f1"].candidate == pytest.approx(0.95 / 1.95)
    assert found["macro_f1"].low > 0.4


def test_large_data_is_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, reference = answers(400, 0.8, 5)
    _, candidate = answers(400, 0.7, 6)
    whole = metric_changes(reference, candidate, labels, num_classes=CLASSES)
    monkeypatch.setattr(scoring, "_CELLS", 400 * 300)
    parts = metric_changes(reference, candidate, labels, num_classes=CLASSES)
    for name in METRICS:
        assert parts[name].low == pytest.approx(whole[name].low, abs=0.02)
        assert parts[name].high == pytest.approx(whole[name].high, abs=0.02)


def test_calibration_error_is_the_mean_gap_of_confidence_and_accuracy() -> None:
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.4, 0.6]] * 10)
    labels = np.array([0] * 7 + [1] * 3 + [1] * 6 + [0] * 4)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.1)
    assert expected_calibration_error(np.eye(2)[[0, 1]], np.array([0, 1])) == 0
    assert expected_calibration_error(np.eye(2)[[0, 1]], np.array([1, 0])) == 1


def test_where_each_row_is_one_unit_nothing_changes() -> None:
    labels, reference = answers(200, 0.8, 7)
    _, candidate = answers(200, 0.7, 8)
    alone = metric_changes(reference, candidate, labels, num_classes=CLASSES)
    rows = np.arange(200)
    assert metric_changes(reference, candidate, labels, num_classes=CLASSES, rows=rows) == alone


def test_rows_are_drawn_with_all_of_their_units() -> None:
    """Copies of an answer within its row tell nothing new; as rows of their own they would."""
    labels, reference = answers(150, 0.8, 9)
    _, candidate = answers(150, 0.7, 10)
    alone = metric_changes(reference, candidate, labels, num_classes=CLASSES)
    rows = np.repeat(np.arange(150), 4)
    many = (reference[rows], candidate[rows], labels[rows])
    found = metric_changes(*many, num_classes=CLASSES, rows=rows)
    for name in METRICS:
        assert found[name] == pytest.approx(alone[name])
    apart = metric_changes(*many, num_classes=CLASSES)["accuracy"]
    assert apart.high - apart.low < 0.7 * (alone["accuracy"].high - alone["accuracy"].low)
