"""Beam search against all texts that there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from targets.beam_search import Beams, search

END, VOCABULARY, LONGEST = 0, 4, 4


class Chain:
    """A model whose next token depends on the two before it; it keeps what each row has read."""

    def __init__(self, seed: int, num_rows: int, num_beams: int) -> None:
        generator = np.random.default_rng(seed)
        self.table = generator.normal(0, 2, (num_rows, VOCABULARY, VOCABULARY, VOCABULARY))
        self.rows = np.repeat(np.arange(num_rows), num_beams)
        self.before = np.full(len(self.rows), END)
        self.last = np.full(len(self.rows), END)

    def logits(self) -> NDArray[np.float32]:
        return self.table[self.rows, self.before, self.last].astype(np.float32)

    def extend(self, tokens: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        assert np.array_equal(self.rows, self.rows[rows])  # of the same text
        self.before = self.last[rows]
        self.last = tokens[:, 0]
        return self.logits()


def all_texts(row: NDArray[np.float64]) -> dict[tuple[int, ...], float]:
    """Every text -> the sum of its log-probabilities."""
    found = {}
    for length in range(1, LONGEST + 1):
        for text in itertools.product(range(VOCABULARY), repeat=length):
            is_whole = text[-1] == END or length == LONGEST
            if END in text[:-1] or not is_whole:
                continue
            total, before, last = 0.0, END, END
            for token in text:
                scores = row[before, last]
                total += scores[token] - np.log(np.exp(scores).sum())
                before, last = last, token
            found[text] = total
    return found


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_enough_beams_find_the_best_of_all_texts(seed: int, penalty: float) -> None:
    chain = Chain(seed, num_rows=3, num_beams=64)
    beams = Beams(num_beams=64, length_penalty=penalty, early_stopping="never")
    found = search(chain.logits(), chain.extend, beams, end=END, longest=LONGEST)
    for text, row in zip(found, chain.table, strict=True):
        values = {each: total / len(each) ** penalty for each, total in all_texts(row).items()}
        best = max(values, key=values.__getitem__)
        assert text == [token for token in best if token != END]


def test_tokens_that_all_texts_begin_with_count_to_their_length() -> None:
    """A short text is less at an advantage where each has three tokens more."""
    logits = np.log(np.array([[0.5, 0.5]] * 2, np.float32))

    def extend(tokens: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.log(np.tile(np.array([[0.45, 0.55]], np.float32), (len(rows), 1)))

    def found(counted: int) -> int:
        beams = Beams(num_beams=2, length_penalty=1, early_stopping="never", counted=counted)
        return len(search(logits, extend, beams, end=END, longest=12)[0])

    assert found(0) > found(40) == 0


def test_what_may_not_be_written_is_not() -> None:
    chain = Chain(0, num_rows=2, num_beams=3)

    def scored(scores: NDArray[np.float32], texts: NDArray[np.int64]) -> NDArray[np.float32]:
        scores[:, 2] = -np.inf
        assert 2 not in texts
        if texts.shape[1] == LONGEST - 1:
            scores[:, 1:] = -np.inf
        return scores

    beams = Beams(num_beams=3, length_penalty=3.0)
    found = search(chain.logits(), chain.extend, beams, end=END, longest=LONGEST, scored=scored)
    assert all(2 not in text and len(text) < LONGEST for text in found)


@pytest.mark.parametrize("settings", [{"num_beams": 1}, {"early_stopping": "always"}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Beams.model_validate(settings)
