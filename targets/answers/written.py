"""A text that a decoder writes for each input: the words of a recording, or a translation."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import Field

from targets.answers.base import (
    Answering,
    Answers,
    BasePrediction,
    Units,
    check_finite,
    most_probable,
    side_by_side,
)
from targets.beam_search import Beams, search, until
from targets.preprocessing.base import DECODER_IDS
from targets.preprocessing.text import read_tokenizer
from targets.scoring import Accuracy, mean_score, ratio_score

if TYPE_CHECKING:
    from targets.base import Session
    from targets.evaluation_pack import EvaluationPack, Labels
    from targets.preprocessing import Encoded
    from targets.signature import Arrays

__all__ = [
    "WRITTEN_METRICS",
    "TranscriptAnswers",
    "TranslationAnswers",
    "WrittenAnswers",
    "WrittenText",
    "as_codes",
    "as_texts",
    "chrf",
    "edit_distance",
    "word_errors",
    "words_of",
]

WRITTEN_METRICS = ("word_accuracy", "chrf")
"""What reports call what is lost of transcripts and of translations."""
_ORDER = 6
"""Longest runs of characters that :func:`chrf` counts."""
_HASH_BYTES = 7  # what fits into 64 bits without a sign
_BETA = 2
"""How many times as much recall counts as precision in :func:`chrf`."""

Codes = NDArray[np.int32]


class WrittenText(BasePrediction):
    """What a model writes for one input."""

    text: str


class WrittenAnswers(Answers):
    """What is answered is the text that a decoder writes.

    Texts travel as the numbers of their characters in Unicode, (samples, longest), filled up with
    0, so that what is judged of them needs no tokenizer.
    """

    tokenizer: str = "tokenizer.json"
    """The file of the tokenizer that makes text of tokens."""
    end: int = Field(default=0, ge=0)
    """The token that ends a text."""
    suppressed: tuple[int, ...] = ()
    """Tokens that are never written."""
    suppressed_first: tuple[int, ...] = ()
    """Tokens that no text begins with."""
    longest: int = Field(default=1, ge=1)
    """Most tokens of a text, the one that ends it included."""
    shortest: int = Field(default=0, ge=0)
    """Least tokens of a text before the one that ends it."""
    no_repeat: int = Field(default=0, ge=0)
    """Length of the runs of tokens that come once only in a text; 0 for none."""
    forced_end: bool = False
    """Whether a text as long as that ends with the token that says so, whatever is probable."""
    beams: Beams | None = None
    """How a text is looked for; without, the most probable token is written at each step."""

    unit: ClassVar[str] = "row"
    rows_at_once: ClassVar[int] = 8

    @property
    def files(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.tokenizer,)

    def open(self, folder: Path) -> Answering:
        """See the base class.  # (N, longest) int32"""
        tokenizer = read_tokenizer(folder / self.tokenizer)

        def answer(session: Session, feeds: Arrays) -> Arrays:
            texts = tokenizer.decode_batch(self.tokens(session, feeds), skip_special_tokens=True)
            cleaned = [self.cleaned(text) for text in texts]
            return {session.signature.outputs[0].name: as_codes(cleaned)}

        return answer

    def tokens(self, session: Session, feeds: Arrays) -> list[list[int]]:
        """What a model writes; see :attr:`beams`.

        Args:
            session: Of a model with an encoder and a decoder.
            feeds: One array for each input; the decoder begins with those it is given.  # (N, ...)

        Returns:
            The tokens of each row, without the one that ends it.
        """
        size = self.beams.num_beams if self.beams is not None else 1
        part, rows = max(1, self.rows_at_once // size), len(feeds[DECODER_IDS])
        if part < rows:
            parts = (
                {name: array[first : first + part] for name, array in feeds.items()}
                for first in range(0, rows, part)
            )
            return [text for each in parts for text in self.tokens(session, each)]
        name = session.signature.outputs[0].name

        def last(outputs: Arrays) -> NDArray[Any]:
            scores = outputs[name][:, -1]
            check_finite(scores, {})
            return scores

        def extend(tokens: NDArray[np.int64], rows: NDArray[np.int64] | None) -> NDArray[Any]:
            return last(session.extend({DECODER_IDS: tokens}, rows))

        if size > 1:
            feeds = {name: np.repeat(array, size, axis=0) for name, array in feeds.items()}
        allowed = functools.partial(self._allowed, feeds[DECODER_IDS])
        first = last(session.run(feeds))
        if self.beams is None:
            return self._most_probable(first, extend, allowed)
        return search(first, extend, self.beams, end=self.end, longest=self.longest, scored=allowed)

    def _most_probable(
        self,
        scores: NDArray[Any],
        extend: Callable[[NDArray[np.int64], None], NDArray[Any]],
        allowed: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]],
    ) -> list[list[int]]:
        """Greedy search. Rows whose text has ended go on with the others, for nothing."""
        written = np.zeros((len(scores), 0), np.int64)
        has_ended = np.zeros(len(scores), bool)
        for number in range(self.longest):
            chosen = most_probable(allowed(scores.astype(np.float32), written))
            written = np.concatenate([written, chosen[:, None]], axis=1)
            has_ended |= chosen == self.end
            if has_ended.all() or number + 1 == self.longest:
                break
            scores = extend(chosen[:, None], None)
        return [until(row, self.end) for row in written.tolist()]

    def _allowed(
        self,
        start: NDArray[Any],
        scores: NDArray[np.float32],
        written: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Scores of the tokens of one step, in which what may not be written is out of reach.

        Args:
            start: What the decoder goes on from, (rows, length).
            scores: (rows, vocabulary), changed in place.
            written: Tokens after that, (rows, step).
        """
        number = written.shape[1]
        scores[:, list(self.suppressed)] = -np.inf
        if not number:
            scores[:, list(self.suppressed_first)] = -np.inf
        if number < self.shortest:
            scores[:, self.end] = -np.inf
        length = start.shape[1] + number
        if 0 < self.no_repeat <= length:
            before = np.concatenate([start, written], axis=1)
            runs = sliding_window_view(before, self.no_repeat, axis=1)
            last = before[:, length + 1 - self.no_repeat :]
            rows, places = np.nonzero((runs[:, :, :-1] == last[:, None]).all(axis=2))
            scores[rows, runs[rows, places, -1]] = -np.inf
        if self.forced_end and number + 1 == self.longest:
            scores[:] = -np.inf
            scores[:, self.end] = 0
        return scores

    def place(self, labels: Labels, inputs: Sequence[Any], encoded: Encoded) -> Labels:
        """See the base class: the characters of the texts."""
        return [as_codes([text])[0].astype(np.int64) for text in labels]

    def units(self, outputs: NDArray[np.generic], pack: EvaluationPack) -> Units:
        """See the base class."""
        counts = pack.label_counts
        assert counts is not None  # texts have them
        labels = np.split(pack.labels, np.cumsum(counts)[:-1])
        return self.judged(outputs, side_by_side([each[None] for each in labels]))

    def judged(
        self, scores: NDArray[Any], labels: NDArray[Any], rows: NDArray[np.int64] | None = None
    ) -> Units:
        """See the base class: every input."""
        found = np.arange(len(labels)) if rows is None else rows
        return Units(scores.astype(np.int32), labels.astype(np.int32), found.astype(np.int32))

    def cleaned(self, text: str) -> str:
        """What of the written tokens is text: by default all but the special ones."""
        return text

    @abstractmethod
    def plain(self, text: str) -> str:
        """What of a text counts."""

    def given(self, units: Units) -> NDArray[np.int64]:
        """See the base class: a number for each different text."""
        texts = [self.plain(text) for text in as_texts(units.scores)]
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return np.array([int.from_bytes(digest[:_HASH_BYTES]) for digest in digests], np.int64)

    def predictions(
        self,
        outputs: NDArray[Any],
        names: Sequence[str],
        inputs: Sequence[Any],
        encoded: Encoded,
    ) -> list[WrittenText]:
        """See the base class."""
        return [
            WrittenText(text=text.strip(), truncated=truncated)
            for text, truncated in zip(as_texts(outputs), encoded.truncated, strict=True)
        ]


class TranscriptAnswers(WrittenAnswers):
    """The words of recordings, judged by the word error rate: see :func:`word_errors`."""

    kind: Literal["transcripts"] = "transcripts"

    measure: ClassVar[str] = "word accuracy"

    def cleaned(self, text: str) -> str:
        """See the base class: no time stamps, which Whisper writes as tokens that are not special
        and transformers leaves out."""
        return _TIME_STAMPS.sub("", text)

    def plain(self, text: str) -> str:
        """See the base class: the words without capitals and punctuation."""
        return " ".join(words_of(text))

    def errors(self, units: Units) -> NDArray[np.int64]:
        """Of each recording the wrong words, and how many words it has.  # (units, 2)"""
        pairs = zip(as_texts(units.scores), as_texts(units.labels), strict=True)
        counts = [word_errors(words_of(given), words_of(wanted)) for given, wanted in pairs]
        return np.array(counts, dtype=np.int64).reshape(-1, 2)

    def values(self, units: Units) -> NDArray[Any]:
        """See the base class: 1 minus the word error rate of each recording."""
        errors, words = self.errors(units).T
        return np.asarray(1 - errors / np.maximum(words, 1))

    def overall(self, units: Units) -> float:
        """See the base class: of all words."""
        errors, words = self.errors(units).sum(axis=0)
        return float(1 - errors / max(words, 1))

    def score(self, units: Units) -> Accuracy:
        """See the base class: 1 minus the word error rate, with an interval over recordings."""
        errors, words = self.errors(units).T
        return ratio_score(words - errors, words, measure=self.measure)


class TranslationAnswers(WrittenAnswers):
    """Texts made of texts, such as translations and summaries, judged by :func:`chrf`."""

    kind: Literal["translations"] = "translations"

    measure: ClassVar[str] = "chrF"

    def plain(self, text: str) -> str:
        """See the base class: all but the spaces around it."""
        return text.strip()

    def values(self, units: Units) -> NDArray[Any]:
        """See the base class: the chrF of each text, in [0, 1]."""
        pairs = zip(as_texts(units.scores), as_texts(units.labels), strict=True)
        return np.array([chrf(given, wanted) for given, wanted in pairs], dtype=np.float64)

    def score(self, units: Units) -> Accuracy:
        """See the base class: the mean chrF, with an interval over the texts."""
        return mean_score(self.values(units), measure=self.measure)


def as_codes(texts: Sequence[str]) -> Codes:
    """The numbers of the characters of texts, filled up with 0.  # (N, longest)"""
    rows = [np.array([[ord(sign) for sign in text]], dtype=np.int32) for text in texts]
    return np.asarray(side_by_side(rows), dtype=np.int32)


def as_texts(codes: NDArray[Any]) -> list[str]:
    """The texts that :func:`as_codes` took."""
    return ["".join(map(chr, row[row != 0].tolist())) for row in codes]


def words_of(text: str) -> list[str]:
    """The words that are compared: in small letters, without punctuation.

    Apostrophes go without leaving a space, other punctuation and symbols leave one. Of scripts that
    are written without spaces between words each character is one, as in the evaluation of Whisper
    (Radford et al., 2022, appendix C).
    """
    # Signs such as that of a trademark become letters first.
    glued = unicodedata.normalize("NFKC", text.translate(_GLUED)).lower().translate(_GLUED)
    signs = (" " if unicodedata.category(sign)[0] in "PS" else sign for sign in glued)
    return _WITHOUT_SPACES.sub(r" \g<0> ", "".join(signs)).split()


_TIME_STAMPS = re.compile(r"<\|[\d.]+\|>")
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese characters."""
_GLUED = str.maketrans("", "", "'\u2018\u2019")


def word_errors(given: Sequence[str], wanted: Sequence[str]) -> tuple[int, int]:
    """Words that are wrong, missing or too many, and how many there should be.

    The word error rate is the sum of the first over the sum of the second.
    """
    return edit_distance(given, wanted), len(wanted)


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """The least number of words to replace, insert or leave out (Levenshtein, 1966)."""
    numbers = {word: number for number, word in enumerate({*first, *second})}
    columns = np.array([numbers[word] for word in second], dtype=np.int64)
    places = np.arange(len(second) + 1)
    row = places
    for word in first:
        replaced = row[:-1] + (columns != numbers[word])
        after = np.append(row[0] + 1, np.minimum(row[1:] + 1, replaced))
        # What is inserted costs one a word: the least of all places before, plus the distance.
        row = np.minimum.accumulate(after - places) + places
    return int(row[-1])


def chrf(given: str, wanted: str) -> float:
    """How many runs of characters two texts share, in [0, 1].

    Popovic, "chrF: character n-gram F-score for automatic MT evaluation", 2015: runs of 1 to 6
    characters without spaces, precision and recall averaged over the lengths that both have, recall
    counting twice.
    """
    first, second = ("".join(text.split()) for text in (given, wanted))
    precisions, recalls = [], []
    for length in range(1, _ORDER + 1):
        ours, theirs = _runs(first, length), _runs(second, length)
        if not ours or not theirs:
            continue
        shared = sum((ours & theirs).values())
        precisions.append(shared / sum(ours.values()))
        recalls.append(shared / sum(theirs.values()))
    if not precisions:
        return float(first == second)
    precision, recall = float(np.mean(precisions)), float(np.mean(recalls))
    if not precision + recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall)


def _runs(text: str, length: int) -> Counter[str]:
    return Counter(text[start : start + length] for start in range(len(text) - length + 1))
