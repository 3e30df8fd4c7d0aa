"""The next token: what is kept of the outputs, what is judged, and what users get."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from targets.answers import IGNORED, NextTokenAnswers, softmax
from targets.answers.base import Units, shared_units
from targets.answers.next_token import next_tokens
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import Encoded, TextPreprocessing

ANSWERS = NextTokenAnswers()
TEXTS = ([3, 1, 4, 1, 5], [2, 7], [6])
VOCABULARY = 8


def padded() -> NDArray[np.int64]:
    ids = np.zeros((len(TEXTS), 5), dtype=np.int64)
    for row, text in enumerate(TEXTS):
        ids[row, : len(text)] = text
    return ids


@pytest.fixture
def logits() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 20, (3, 5, VOCABULARY)).astype(np.float32)


@pytest.fixture
def encoded() -> Encoded:
    return Encoded({"input_ids": [np.array(text) for text in TEXTS]}, (True, False, False))


def pack_of(encoded: Encoded) -> EvaluationPack:
    return EvaluationPack.from_rows(
        encoded.rows,
        ANSWERS.place(np.zeros(3), ["a"] * 3, encoded),
        preprocessing=TextPreprocessing(max_length=5, pad_token_id=0),
    )


def kept_tokens(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is kept, end to end without padding, as a pack restores it."""
    kept = ANSWERS.reduced(logits, {"input_ids": padded()})
    return np.concatenate([kept[row, : len(text)] for row, text in enumerate(TEXTS)])


def expected_losses(logits: NDArray[np.float32]) -> list[list[float]]:
    probabilities = softmax(logits)
    return [
        [-np.log(probabilities[row, place, text[place + 1]]) for place in range(len(text) - 1)]
        for row, text in enumerate(TEXTS)
    ]


def test_every_token_but_the_first_is_judged_by_those_before_it(
    logits: NDArray[np.float32], encoded: Encoded
) -> None:
    units = ANSWERS.units(kept_tokens(logits), pack_of(encoded))
    assert units.labels.tolist() == [1, 4, 1, 5, 7]
    assert units.rows.tolist() == [0, 0, 0, 0, 1]
    assert units.classes.tolist() == [*logits[0, :4].argmax(-1), logits[1, 0].argmax()]
    assert units.losses is not None
    expected = [loss for losses in expected_losses(logits) for loss in losses]
    np.testing.assert_allclose(units.losses, expected, rtol=1e-5)


def test_large_logits_do_not_overflow() -> None:
    logits = np.full((1, 2, VOCABULARY), 3e4, dtype=np.float32)
    kept = ANSWERS.reduced(logits, {"input_ids": np.array([[1, 2]])})
    np.testing.assert_allclose(kept[0, 0, 1], np.log(VOCABULARY), rtol=1e-3)


def test_a_user_gets_the_perplexity_of_each_text(
    logits: NDArray[np.float32], encoded: Encoded
) -> None:
    found = ANSWERS.predictions(kept_tokens(logits), (), ["a"] * 3, encoded)
    first, second, third = expected_losses(logits)
    assert third == []
    assert found[0].perplexity == pytest.approx(np.exp(np.mean(first)), rel=1e-5)
    assert found[1].perplexity == pytest.approx(np.exp(np.mean(second)), rel=1e-5)
    assert found[2].perplexity is None
    assert [each.num_tokens for each in found] == [5, 2, 1]
    assert [each.truncated for each in found] == [True, False, False]


def test_the_last_token_has_no_label() -> None:
    assert next_tokens([7, 8, 9]).tolist() == [8, 9, IGNORED]
    assert next_tokens([7]).tolist() == [IGNORED]


def test_losses_stay_with_their_units() -> None:
    def units(rows: list[int], losses: list[float]) -> Units:
        zeros = np.zeros(len(rows), dtype=np.int64)
        return Units(zeros, zeros, np.array(rows), np.array(losses))

    joined = Units.joined([units([2, 2], [0.2, 0.3]), units([0], [0.1])])
    assert joined.losses is not None
    assert joined.losses.tolist() == [0.1, 0.2, 0.3]
    first, second = shared_units(joined, units([0, 2], [0.5, 0.6]))
    assert first.losses is not None
    assert second.losses is not None
    assert (first.losses.tolist(), second.losses.tolist()) == ([0.1, 0.2], [0.5, 0.6])
