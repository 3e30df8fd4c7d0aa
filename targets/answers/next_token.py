"""What comes next in a text, at each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from targets.answers.base import IGNORED, Answers, BasePrediction, Units, most_probable
from targets.preprocessing.text import IDS

if TYPE_CHECKING:
    from targets.evaluation_pack import Labels
    from targets.preprocessing import Encoded
    from targets.signature import Arrays

__all__ = ["NextTokenAnswers", "ScoredText", "next_tokens"]

_ANSWER, _LOSS = 0, 1
"""Where they stand in what is kept of the outputs at a token."""


class ScoredText(BasePrediction):
    """How well a model foresees a text."""

    perplexity: float | None
    """Exponential of the mean cross-entropy of its tokens but the first; None where there is one
    token only. 1 is the least: every token was certain."""
    num_tokens: int
    """How many tokens the model read."""


class NextTokenAnswers(Answers):
    """The outputs are logits of the token that follows each, (samples, tokens, vocabulary).

    What is judged is every token of a text but the first, by those before it. Those of all tokens
    of the vocabulary would not fit in memory: what is kept at a token is the answer, and the
    cross-entropy of the token that did follow.
    """

    kind: Literal["next_token"] = "next_token"
    ends: tuple[int, ...] = Field(default=(), exclude_if=lambda ends: not ends)
    """Tokens that end what the model writes, beside the ``eos_token`` of its tokenizer: those of an
    answer in a chat are others with some models."""

    unit: ClassVar[str] = "token"
    rows_at_once: ClassVar[int] = 4

    def reduced(self, outputs: NDArray[Any], feeds: Arrays) -> NDArray[Any]:
        """See the base class.  # (N, tokens, 2) float32: the answer, and the loss in nats"""
        kept = np.zeros((*outputs.shape[:2], 2), dtype=np.float32)
        kept[..., _ANSWER] = most_probable(outputs)  # exact up to 2**24, more than there are
        following = feeds[IDS][:, 1:]
        for row, tokens in enumerate(following):  # one by one: the exponentials are large
            logits = outputs[row, :-1].astype(np.float32)
            largest = logits.max(axis=-1)
            sums = np.exp(logits - largest[:, None]).sum(axis=-1, dtype=np.float64)
            wanted = np.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
            kept[row, :-1, _LOSS] = np.log(sums) + largest - wanted
        return kept

    def place(self, labels: Labels, inputs: Sequence[Any], encoded: Encoded) -> Labels:
        """See the base class: the tokens themselves, each at the one before it."""
        return [next_tokens(ids) for ids in encoded.rows[IDS]]

    def judged(
        self, scores: NDArray[Any], labels: NDArray[Any], rows: NDArray[np.int64] | None = None
    ) -> Units:
        """See the base class."""
        answers = scores[..., _ANSWER].astype(np.int64)
        return Units.of(answers, labels, rows, losses=scores[..., _LOSS])

    def predictions(
        self,
        outputs: NDArray[Any],
        names: Sequence[str],
        inputs: Sequence[Any],
        encoded: Encoded,
    ) -> list[ScoredText]:
        """See the base class."""
        found, begin = [], 0
        for ids, truncated in zip(encoded.rows[IDS], encoded.truncated, strict=True):
            losses = outputs[begin : begin + len(ids) - 1, _LOSS].astype(np.float64)
            perplexity = float(np.exp(losses.mean())) if len(losses) else None
            found.append(
                ScoredText(perplexity=perplexity, num_tokens=len(ids), truncated=truncated)
            )
            begin += len(ids)
        return found


def next_tokens(ids: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """The labels of the tokens of a text: at each the one after it, `IGNORED` at the last."""
    return np.append(np.asarray(ids, dtype=np.int64)[1:], IGNORED)
