"""An answer to each question: a part of the context, from one token to another."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from targets.answers.base import IGNORED, Answers, BasePrediction, Units, softmax
from targets.preprocessing.question import as_question
from targets.scoring import Accuracy, mean_score

if TYPE_CHECKING:
    from tokenizers import Encoding

    from targets.evaluation_pack import Labels
    from targets.preprocessing import Encoded

__all__ = [
    "ENDS",
    "MAX_ANSWERS",
    "MAX_TOKENS",
    "SPAN_METRICS",
    "Span",
    "SpanAnswers",
    "SpanPrediction",
    "best_span",
    "exact_match",
    "f1",
    "place_answers",
]

ENDS = ("start", "end")
"""What the two logits of a token are of."""
MAX_TOKENS = 30
"""Longest answer in tokens."""
MAX_ANSWERS = 16
"""Different right answers to a question that are kept."""

_ARTICLES = ("a", "an", "the")
_NO_WORD = 0  # of what has nothing but punctuation
_AFTER_SPACE, _GLUED, _INSIDE = 0, 1, 2
"""How a token stands in the text: it begins a word after a space; or right behind another; or it
goes on with the word before."""
_FORMS = 3
_START, _END, _F1, _EXACT = range(4)
SPAN_METRICS = {"f1": _F1, "exact_match": _EXACT}
"""Name -> where its value stands in the scores of a unit, behind the ends of the answer."""

Words = list[tuple[int, ...]]


class Span(NamedTuple):
    """A part of a context.

    Attributes:
        start: Its first token, counted from that of the context.
        end: Its last token.
        score: Probability that an answer begins at the first, times that it ends at the last.
    """

    start: int
    end: int
    score: float


class SpanPrediction(BasePrediction):
    """The answer to one question."""

    answer: str
    """A part of the context, whole words."""
    score: float
    """Probability that an answer begins where it does, times that it ends where it does."""
    start: int
    """Where it begins in the context, in characters."""
    end: int
    """Where it ends, exclusive."""


class SpanAnswers(Answers):
    """The outputs are logits of an answer's first and last token, (samples, tokens, 2).

    The answer is the likeliest span of the context of at most `MAX_TOKENS` tokens. How good it is
    is the F1 of its words against the right answer that it is nearest to, as Rajpurkar et al.,
    "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016, section 6.1, define it:
    without case, punctuation and articles.

    A label a token says all that this takes, so that no text is needed: which word of the context
    the token belongs to, and which of the right answers it is a part of. See
    :func:`place_answers`.
    """

    kind: Literal["spans"] = "spans"

    unit: ClassVar[str] = "question"
    measure: ClassVar[str] = "F1"

    def place(self, labels: Labels, inputs: Sequence[Any], encoded: Encoded) -> Labels:
        """See the base class: at the tokens of the context.

        Args:
            labels: Of each question its right answers, (start, end) in characters of the context.
            inputs: The questions.
            encoded: What the encoder made of them.
        """
        return [
            place_answers(as_question(given, f"questions[{index}]").context, answers, tokens)
            for index, (given, answers, tokens) in enumerate(
                zip(inputs, labels, encoded.tokens, strict=True)
            )
        ]

    def judged(
        self, scores: NDArray[Any], labels: NDArray[Any], rows: NDArray[np.int64] | None = None
    ) -> Units:
        """See the base class: every question.

        Returns:
            Scores (units, 4): first and last word of the answer, its F1, and 1 where it is exactly
            a right one; labels (units, 2), first and last word of the first right answer, -1 where
            there is none in what the model reads. Words are counted from that of the context: two
            models may cut them into other tokens.
        """
        if rows is None:
            rows = np.arange(len(labels))
        flat = labels.reshape(-1)
        inside = flat != IGNORED
        each = np.repeat(rows, flat.size // max(len(labels), 1))[inside]
        logits, codes = scores.reshape(-1, 2)[inside], flat[inside]
        names, begins, counts = np.unique(each, return_index=True, return_counts=True)
        found = np.zeros((len(names), 4), dtype=np.float32)
        wanted = np.full((len(names), 2), -1, dtype=np.int64)
        for unit, (begin, count) in enumerate(zip(begins, counts, strict=True)):
            span = best_span(logits[begin : begin + count])
            context = _Context(codes[begin : begin + count])
            given = context.words(span.start, span.end)
            right = list(context.answers())
            words = [context.words(*ends) for ends in right]
            found[unit, [_START, _END]] = context.word_numbers(span.start, span.end)
            found[unit, _F1] = max((f1(given, one) for one in words), default=0.0)
            found[unit, _EXACT] = max((exact_match(given, one) for one in words), default=0.0)
            wanted[unit] = context.word_numbers(*right[0]) if right else -1
        return Units(found, wanted, names.astype(np.int32))

    def values(self, units: Units) -> NDArray[Any]:
        """See the base class: the F1 of every answer."""
        return units.scores[:, _F1]

    def score(self, units: Units) -> Accuracy:
        """See the base class: the mean F1, with an interval over the questions."""
        return mean_score(self.values(units), measure=self.measure)

    def given(self, units: Units) -> NDArray[np.int64]:
        """See the base class: where the answer begins and ends."""
        start, end = units.scores[:, [_START, _END]].astype(np.int64).T
        return np.asarray(start * MAX_TOKENS + end - start)

    def predictions(
        self,
        outputs: NDArray[np.floating],
        names: Sequence[str],
        inputs: Sequence[Any],
        encoded: Encoded,
    ) -> list[SpanPrediction]:
        """See the base class."""
        found, begin = [], 0
        for given, tokens, truncated in zip(inputs, encoded.tokens, encoded.truncated, strict=True):
            context = as_question(given, "questions").context
            places = _places(tokens)
            answer, start, end = "", 0, 0
            score = 0.0
            if len(places):
                span = best_span(outputs[begin + places])
                codes = _Context(place_answers(context, (), tokens)[places])
                first, last = codes.whole_words(span.start, span.end)
                start, end = tokens.offsets[places[first]][0], tokens.offsets[places[last]][1]
                end -= len(context[start:end]) - len(context[start:end].rstrip())
                start = end - len(context[start:end].lstrip())  # some tokens hold a space
                answer, score = context[start:end], span.score
            found.append(
                SpanPrediction(
                    answer=answer, score=score, start=start, end=end, truncated=truncated
                )
            )
            begin += len(tokens.ids)
        return found


def best_span(logits: NDArray[np.floating], *, longest: int = MAX_TOKENS) -> Span:
    """The likeliest span; of several the first.

    Args:
        logits: Of an answer that begins, and of one that ends at each token of a context, (L, 2).
        longest: Most tokens of an answer.
    """
    starts, ends = softmax(logits.T)  # over the context alone
    best = Span(0, 0, -1.0)
    for more in range(min(longest, len(logits))):
        products = starts[: len(starts) - more] * ends[more:]
        first = int(products.argmax())
        span = Span(first, first + more, float(products[first]))
        if (-span.score, span.start) < (-best.score, best.start):
            best = span
    return best


def place_answers(
    context: str, answers: Sequence[Sequence[int]], tokens: Encoding
) -> NDArray[np.int64]:
    """What each token of a question and its context stands for.

    Args:
        context: The text that is asked about.
        answers: (start, end) in characters, at most `MAX_ANSWERS`. One that goes on beyond what
            the model reads is left out.
        tokens: What a tokenizer made of the pair.

    Returns:
        (tokens,) `IGNORED` outside of the context; in it
        ``(word * 3 + form) * 2**MAX_ANSWERS + answers``. The word is 0 where nothing but
        punctuation is in it, 1 to 3 for the articles, and above that another number for each
        different one of the context; the form says whether a space is before it, none, or the
        beginning of the word; and bit number k of the answers is set inside of the k-th.
    """
    codes = np.full(len(tokens.ids), IGNORED, dtype=np.int64)
    places = _places(tokens)
    if not len(places):
        return codes
    offsets = np.array(tokens.offsets, dtype=np.int64)[places]
    numbers = {word: number for number, word in enumerate(("", *_ARTICLES))}
    word, before, above = _NO_WORD, 0, None
    for index, place in enumerate(places.tolist()):
        owner = tokens.word_ids[place]
        if index and owner is not None and owner == above:
            form = _INSIDE
        else:
            start, end = _word_ends(tokens, places, index)
            start = end - len(context[start:end].lstrip())
            space = any(each.isspace() for each in context[before:start])
            form = _AFTER_SPACE if space or not index else _GLUED
            text = _plain(context[start:end])
            word = numbers.setdefault(text, len(numbers))
            before, above = end, owner
        codes[place] = (word * _FORMS + form) << MAX_ANSWERS
    for number, (start, end) in enumerate(answers):
        if end <= offsets[-1, 1] or not tokens.overflowing:
            inside = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            codes[places[inside]] |= 1 << number
    return codes


def f1(given: Words, wanted: Words) -> float:
    """Harmonic mean of precision and recall of the words, in [0, 1]; of none, whether both are."""
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


def exact_match(given: Words, wanted: Words) -> float:
    """1 where both have the same words in the same order, else 0."""
    return float(given == wanted)


class _Context:
    """What the codes of the tokens of a context say; see :func:`place_answers`."""

    def __init__(self, codes: NDArray[np.int64]) -> None:
        self.bits = codes & ((1 << MAX_ANSWERS) - 1)
        self.numbers, self.forms = np.divmod(codes >> MAX_ANSWERS, _FORMS)

    def whole_words(self, start: int, end: int) -> tuple[int, int]:
        """First and last token of the words that a span has a part of."""
        while start and self.forms[start] == _INSIDE:
            start -= 1
        while end + 1 < len(self.forms) and self.forms[end + 1] == _INSIDE:
            end += 1
        return start, end

    def word_numbers(self, start: int, end: int) -> tuple[int, int]:
        """Numbers of the first and last word that a span has a part of, from 0."""
        begun = np.cumsum(self.forms != _INSIDE)
        return max(0, int(begun[start]) - 1), max(0, int(begun[end]) - 1)

    def words(self, start: int, end: int) -> Words:
        """The words of a span that count: what stands between two spaces is one."""
        start, end = self.whole_words(start, end)
        found: list[list[int]] = [[]]
        for number, form in zip(
            self.numbers[start : end + 1].tolist(),
            self.forms[start : end + 1].tolist(),
            strict=True,
        ):
            if form == _AFTER_SPACE:
                found.append([])
            if form != _INSIDE and number != _NO_WORD:
                found[-1].append(number)
        words = (tuple(each) for each in found if each)
        return [each for each in words if not (len(each) == 1 and each[0] <= len(_ARTICLES))]

    def answers(self) -> Iterator[tuple[int, int]]:
        """First and last token of each right answer."""
        for number in range(MAX_ANSWERS):
            places = np.flatnonzero(self.bits & (1 << number))
            if len(places):
                yield int(places[0]), int(places[-1])


def _places(tokens: Encoding) -> NDArray[np.int64]:
    """Which tokens are those of the context."""
    return np.flatnonzero(np.array(tokens.sequence_ids) == 1)


def _word_ends(tokens: Encoding, places: NDArray[np.int64], index: int) -> tuple[int, int]:
    """Where the word begins and ends, in characters, whose first token this is."""
    owner = tokens.word_ids[places[index]]
    start, end = tokens.offsets[places[index]]
    for place in places[index + 1 :].tolist():
        if owner is None or tokens.word_ids[place] != owner:
            break
        end = tokens.offsets[place][1]
    return start, end


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _plain(text: str) -> str:
    return text.lower().translate(_PUNCTUATION)
