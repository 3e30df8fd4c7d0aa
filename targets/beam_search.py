"""Find a probable text token by token, going on from several beginnings at once (beam search)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Beams", "search", "until"]

Scores = NDArray[np.float32]
_OUT = np.float32(-1e9)  # as transformers has it: worse than any text, and no infinity


class Beams(BaseModel):
    """How texts are looked for; the names are those of transformers' generation config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_beams: int = Field(default=4, ge=2, le=64)
    """Beginnings that are gone on from."""
    length_penalty: float = 1.0
    """A text counts as the sum of its log-probabilities over its length to this power."""
    early_stopping: bool | Literal["never"] = False
    """Whether to end with as many whole texts as beams; else when no beginning of the present
    length, or (never) of the greatest, could become better than the worst of them."""
    renormalize_logits: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether what tokens that may not be written had of the probability goes to the others."""
    counted: int = Field(default=0, ge=0)
    """Of the tokens that all texts begin with, those that count to their length."""


def search(
    logits: Scores,
    extend: Callable[[NDArray[np.int64], NDArray[np.int64]], Scores],
    beams: Beams,
    *,
    end: int,
    longest: int,
    scored: Callable[[Scores, NDArray[np.int64]], Scores] = lambda scores, texts: scores,
) -> list[list[int]]:
    """The text of each row that counts most of those that are found.

    Does what transformers does in beam search without sampling, after Freitag and Al-Onaizan, "Beam
    Search Strategies for Neural Machine Translation", 2017. What is found for a row does not depend
    on the others.

    Args:
        logits: Of the first token of each text, once a beam, (N * beams, vocabulary).
        extend: Gives the same of the tokens after those that it is given, (N * beams, 1), each of
            which goes on from a row of its last call, (N * beams,), of the same text.
        beams: How to look.
        end: The token that ends a text.
        longest: Most tokens of a text, the one that ends it included.
        scored: Changes log-probabilities, (rows, vocabulary), by the tokens before, (rows, step).

    Returns:
        The tokens of each row, without the one that ends it.
    """
    size = beams.num_beams
    rows = len(logits) // size
    texts = np.zeros((rows, size, 0), np.int64)
    going = np.full((rows, size), _OUT)
    going[:, 0] = 0  # all beams of a text are the same at first
    whole = np.full((rows, size, longest), end)
    values = np.full((rows, size), _OUT)
    is_whole = np.zeros((rows, size), bool)
    improves = np.ones((rows, 1), bool)
    for step in range(longest):
        length = step + 1 + beams.counted
        scores = scored(_log_softmax(logits), texts.reshape(rows * size, step))
        if beams.renormalize_logits:
            scores = _log_softmax(scores)
        vocabulary = scores.shape[-1]
        scores = scores.reshape(rows, size, vocabulary) + going[:, :, None]
        best = _top(scores.reshape(rows, -1), 2 * size)
        found = np.take_along_axis(scores.reshape(rows, -1), best, axis=1)
        parents, tokens = np.divmod(best, vocabulary)
        longer = np.concatenate([_chosen(texts, parents), tokens[:, :, None]], axis=2)
        ends = (tokens == end) | (step + 1 == longest)

        # Those of the best that end are whole texts; fewer may go on then, but twice as many are at
        # hand.
        counts = ends & (np.arange(found.shape[1]) < size) & improves
        if beams.early_stopping is True:
            counts &= ~is_whole.all(axis=1, keepdims=True)
        padded = np.full((*longer.shape[:2], longest), end)
        padded[:, :, : step + 1] = longer
        weighed = np.where(counts, found / length**beams.length_penalty, _OUT)
        together = np.concatenate([values, weighed], axis=1)
        kept = _top(together, size)
        whole = _chosen(np.concatenate([whole, padded], axis=1), kept)
        values = np.take_along_axis(together, kept, axis=1)
        is_whole = np.take_along_axis(np.concatenate([is_whole, counts], axis=1), kept, axis=1)

        running = found + ends * _OUT
        kept = _top(running, size)
        going = np.take_along_axis(running, kept, axis=1)
        texts = _chosen(longer, kept)
        hoped = longest + beams.counted if _hopes_for_long(beams) else length
        worst = np.where(is_whole, values.min(axis=1, keepdims=True), _OUT)
        improves &= (going[:, :1] / hoped**beams.length_penalty > worst).any(axis=1, keepdims=True)
        is_full = beams.early_stopping is True and is_whole.all()
        if ends.all() or is_full or not improves.any():
            break
        sources = np.take_along_axis(parents, kept, axis=1) + np.arange(rows)[:, None] * size
        last = texts[:, :, -1]
        logits = extend(last.reshape(-1, 1), sources.reshape(-1))
    return [until(row[0].tolist(), end) for row in whole]


def _hopes_for_long(beams: Beams) -> bool:
    return beams.early_stopping == "never" and beams.length_penalty > 0


def _chosen(texts: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some texts of each row.  # (N, chosen, length)"""
    return np.take_along_axis(texts, places[:, :, None], axis=1)


def _top(scores: Scores, count: int) -> NDArray[np.int64]:
    """Places of the highest of each row, the highest first.  # (N, count)"""
    places = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


def _log_softmax(logits: Scores) -> Scores:
    shifted = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True)
    found: Scores = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def until(tokens: list[int], end: int) -> list[int]:
    """What stands before a token, or all."""
    return tokens[: tokens.index(end)] if end in tokens else tokens
