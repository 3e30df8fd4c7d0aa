"""A label for each word of a text, such as its part of speech."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from targets.answers.base import IGNORED, Answers, BasePrediction, most_probable, softmax
from targets.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Encoding

    from targets.evaluation_pack import Labels
    from targets.preprocessing import Encoded

__all__ = ["LabelledWord", "TokenLabelAnswers", "WordsPrediction", "join_words", "place_labels"]

SPACE = " "
"""Between the words of a text that was given as words."""
_NO_BREAK_SPACE = "\u00a0"  # in place of a space within a word: tokenizers read both alike


class LabelledWord(BaseModel):
    """A word of a text and its label."""

    model_config = ConfigDict(frozen=True)

    text: str
    start: int
    """Where it begins in the text, in characters; of a list of words, in their text with one space
    between two words."""
    end: int
    """Where it ends, exclusive."""
    label: str
    """The most probable label."""
    score: float
    """Its probability."""


class WordsPrediction(BasePrediction):
    """The labels of the words of one text.

    Words that the model does not read have none: what was cut off, and what its tokenizer drops.
    """

    words: tuple[LabelledWord, ...]


class TokenLabelAnswers(Answers):
    """The outputs are logits of every token's classes, (samples, tokens, classes).

    A word's answer is that of its first token, as in Devlin et al., "BERT: Pre-training of Deep
    Bidirectional Transformers for Language Understanding", 2019, section 5.3.
    """

    kind: Literal["token_labels"] = "token_labels"

    unit: ClassVar[str] = "word"
    of_words: ClassVar[bool] = True

    def raw(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """See the base class: texts, or lists of words, which become texts."""
        if isinstance(inputs, str | bytes) or not isinstance(inputs, Sequence):
            return inputs  # the encoder says what is wrong
        return [
            join_words(each, where=f"texts[{index}]") if isinstance(each, list | tuple) else each
            for index, each in enumerate(inputs)
        ]

    def place(self, labels: Labels, inputs: Sequence[Any], encoded: Encoded) -> Labels:
        """See the base class: at the first token of each word."""
        return place_labels(labels, inputs, encoded.tokens)

    def predictions(
        self,
        outputs: NDArray[np.floating],
        names: Sequence[str],
        inputs: Sequence[Any],
        encoded: Encoded,
    ) -> list[WordsPrediction]:
        """See the base class."""
        probabilities = softmax(outputs)
        classes = most_probable(probabilities)
        found, begin = [], 0
        for given, tokens, truncated in zip(inputs, encoded.tokens, encoded.truncated, strict=True):
            words = []
            for text, start, end, first in _words(given, tokens):
                place = begin + first
                label = int(classes[place])
                score = float(probabilities[place, label])
                words.append(
                    LabelledWord(text=text, start=start, end=end, label=names[label], score=score)
                )
            found.append(WordsPrediction(words=tuple(words), truncated=truncated))
            begin += len(tokens.ids)
        return found


def join_words(words: Sequence[Any], *, where: str) -> str:
    """The text of a list of words, with one space between two.

    A space within a word becomes a no-break space, which tokenizers read as they read a space;
    those around it are left out.

    Args:
        words: N >= 1.
        where: What to call it in messages.

    Raises:
        InputError: Something in the list is no word; names it.
    """
    for index, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise InputError(
                "a word is not a string with characters in it",
                where=f"{where}[{index}]",
                given=f"{type(word).__name__} {word!r:.60}",
                fix="pass the words of a text as strings; leave empty ones out",
            )
    if not words:
        raise InputError(
            "a list of words is empty",
            where=where,
            given="[]",
            fix="pass at least one word, or leave the text out",
        )
    return SPACE.join(word.strip().replace(SPACE, _NO_BREAK_SPACE) for word in words)


def place_labels(
    labels: Labels, texts: Sequence[str], tokens: Sequence[Encoding]
) -> list[NDArray[np.int64]]:
    """The labels of words at their first tokens, and `IGNORED` everywhere else.

    Args:
        labels: One array a text, with a label for each of its words.
        texts: See :func:`join_words`.
        tokens: What a tokenizer made of each.

    Returns:
        One array a text, with a label for each token.

    Raises:
        InputError: A text has another number of labels than words.
    """
    placed = []
    for index, (text, each, encoding) in enumerate(zip(texts, labels, tokens, strict=True)):
        spans = _spans(text)
        if np.shape(each) != (len(spans),):
            raise InputError(
                "a text has another number of labels than words",
                where=f"texts[{index}]",
                given=f"{np.size(each)} labels, {len(spans)} words",
                fix="pass one label for each word",
            )
        firsts = _first_tokens(spans, encoding)
        found = np.full(len(encoding.ids), IGNORED, dtype=np.int64)
        found[firsts[firsts >= 0]] = np.asarray(each)[firsts >= 0]
        placed.append(found)
    return placed


def _words(given: Any, tokens: Encoding) -> list[tuple[str, int, int, int]]:
    """(text, start, end, first token) of the words of an input that have a token."""
    if isinstance(given, str):
        return _split_words(given, tokens)
    spans = _spans(join_words(given, where="texts"))
    return [
        (word.strip(), int(start), int(end), int(first))
        for word, (start, end), first in zip(
            given, spans, _first_tokens(spans, tokens), strict=True
        )
        if first >= 0
    ]


def _split_words(text: str, tokens: Encoding) -> list[tuple[str, int, int, int]]:
    """The words into which the pre-tokenizer splits a text."""
    found: dict[int, tuple[int, int, int]] = {}  # word -> start, end, first token
    for place, (word, (start, end)) in enumerate(zip(tokens.word_ids, tokens.offsets, strict=True)):
        if word is None:
            continue  # a token that is put around every text
        first_start, _, first = found.get(word, (start, end, place))
        found[word] = (first_start, end, first)
    words = []
    for start, end, first in found.values():
        start = end - len(text[start:end].lstrip())  # some tokens hold the space before a word
        if start < end:
            words.append((text[start:end], start, end, first))
    return words


def _spans(text: str) -> NDArray[np.int64]:
    """Where each word of a text of words begins and ends, in characters.  # (words, 2)"""
    lengths = np.array([len(word) for word in text.split(SPACE)], dtype=np.int64)
    ends = np.cumsum(lengths + 1) - 1
    return np.stack([ends - lengths, ends], axis=1)


def _first_tokens(spans: NDArray[np.int64], tokens: Encoding) -> NDArray[np.int64]:
    """The first token of each word, -1 where it has none.  # (words,)"""
    starts, ends = np.array(tokens.offsets, dtype=np.int64).reshape(-1, 2).T
    words = np.searchsorted(spans[:, 1], starts, side="right")  # the first that is not yet over
    # What is put around every text has no characters.
    inside = np.flatnonzero((starts < ends) & (words < len(spans)))
    inside = inside[spans[words[inside], 0] < ends[inside]]
    found, places = np.unique(words[inside], return_index=True)
    firsts = np.full(len(spans), -1, dtype=np.int64)
    firsts[found] = inside[places]
    return firsts
