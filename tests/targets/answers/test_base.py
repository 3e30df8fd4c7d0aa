"""What is judged of outputs, whatever the kind of the answers."""

from __future__ import annotations

import numpy as np
import pytest

from targets.answers import IGNORED, Units, most_probable, softmax
from targets.answers.base import check_finite, shared_units
from targets.errors import TargetError


@pytest.mark.parametrize("shape", [(3, 2), (3, 4, 2), (3, 5, 4, 4)])  # of inputs, tokens, pixels
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_refused(shape: tuple[int, ...], value: float) -> None:
    outputs = np.zeros(shape, np.float16)
    outputs[0] = -np.inf  # what is never to be answered
    check_finite(outputs, {})
    outputs[1, 1] = value
    with pytest.raises(TargetError, match="not finite") as error:
        check_finite(outputs, {})
    assert error.value.given == "NaN or infinity for 1 of 3 inputs"


def test_what_stands_at_padding_counts_for_nothing() -> None:
    outputs = np.zeros((2, 3, 4), np.float32)
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    outputs[1, 2] = np.nan
    check_finite(outputs, {"attention_mask": mask})
    outputs[1, 1, 0] = np.nan
    with pytest.raises(TargetError, match="for 1 of 2 inputs"):
        check_finite(outputs, {"attention_mask": mask})


def test_what_is_ignored_is_left_out_and_rows_are_kept() -> None:
    scores = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    labels = np.array([[IGNORED, 3, 0], [2, IGNORED, IGNORED]])
    found = Units.of(scores, labels, np.array([7, 5]))
    assert found.scores.tolist() == [scores[0, 1].tolist(), *scores[[0, 1], [2, 0]].tolist()]
    assert found.labels.tolist() == [3, 0, 2]
    assert found.rows.tolist() == [7, 7, 5]
    assert found.classes.tolist() == [3, 3, 3]
    assert found.right.tolist() == [True, False, False]


def test_with_one_label_a_row_everything_is_judged() -> None:
    scores = np.array([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]], np.float32)
    found = Units.of(scores, np.array([1, 0]))
    assert found.rows.tolist() == [0, 1]
    np.testing.assert_array_equal(found.scores, scores)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-6)


def test_batches_come_back_in_the_order_of_their_rows() -> None:
    first = Units(np.array([[1.0], [2.0], [3.0]]), np.array([1, 2, 3]), np.array([4, 4, 1]))
    second = Units(np.array([[4.0]]), np.array([4]), np.array([2]))
    found = Units.joined([first, second])
    assert found.labels.tolist() == [3, 4, 1, 2]
    assert found.scores[:, 0].tolist() == [3, 4, 1, 2]
    assert found.rows.tolist() == [1, 2, 4, 4]


def test_probabilities_of_large_logits_are_finite() -> None:
    scores = softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], dtype=np.float32))
    assert scores.tolist() == [[1, 0], [0.5, 0.5]]


@pytest.mark.parametrize("scores", [[0.1, 0.7, 0.2], [[0.1, 0.7, 0.2]]])
def test_the_first_of_equal_scores_is_the_answer(scores: list[float]) -> None:
    assert most_probable(np.array(scores)).tolist() in (1, [1])
    assert most_probable(np.array([2.0, 2.0])) == 0


def test_what_only_one_model_reads_is_not_compared() -> None:
    def units(rows: list[int], labels: list[int]) -> Units:
        scores = np.arange(2.0 * len(rows)).reshape(-1, 2)
        return Units(scores, np.array(labels), np.array(rows))

    whole = units([0, 0, 0, 2, 2], [5, 6, 7, 8, 9])
    short = units([0, 0, 2, 2, 3], [5, 6, 8, 9, 1])
    first, second = shared_units(whole, short)
    assert first.rows.tolist() == second.rows.tolist() == [0, 0, 2, 2]
    assert first.labels.tolist() == second.labels.tolist() == [5, 6, 8, 9]
    assert first.scores[:, 0].tolist() == [0, 2, 6, 8]
    assert second.scores[:, 0].tolist() == [0, 2, 4, 6]
    assert shared_units(whole, whole) == (whole, whole)
