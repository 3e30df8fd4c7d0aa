"""Answers that are parts of a context: the best span, and F1 of words as SQuAD defines it."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers

from targets.answers import IGNORED, SpanAnswers
from targets.answers.spans import MAX_ANSWERS, best_span, exact_match, f1, place_answers
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import Question, QuestionPreprocessing
from targets.preprocessing.question import QuestionEncoder

CONTEXT = (
    "The 3-year plan (of Anna's firm) cost $4 million, a record; "
    "the plan's end -- an  open-ended one -- came in the 1990s."
)
QUESTION = Question("What did the plan cost?", CONTEXT)
FLOAT = 1e-6
Logits = NDArray[np.float64]


def tokenizer(*words: str) -> Tokenizer:
    """Letters and some words, in the words into which BERT splits texts."""
    characters = dict.fromkeys(string.ascii_lowercase + string.digits + string.punctuation)
    unknown = "[UNK]"
    names = [unknown, *characters, *(f"##{each}" for each in characters), *words]
    found = Tokenizer(
        models.WordPiece({each: number for number, each in enumerate(names)}, unk_token=unknown)
    )
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return found


def byte_level() -> Tokenizer:
    """Bytes, in the words of RoBERTa, of which all but the first hold the space before them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE({each: number for number, each in enumerate(alphabet)}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return found


def metaspace() -> Tokenizer:
    """Characters, in words that end at spaces only."""
    alphabet = dict.fromkeys("\u2581" + string.printable)
    found = Tokenizer(models.BPE({each: number for number, each in enumerate(alphabet)}, []))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    return found


def encoder(max_length: int = 400) -> QuestionEncoder:
    return QuestionEncoder(
        QuestionPreprocessing(max_length=max_length, pad_token_id=0), tokenizer()
    )


def spread(tokens: Encoding, start: int, end: int) -> Logits:
    """Logits that are sure of an answer, given in characters of the context."""
    logits = np.zeros((len(tokens.ids), 2))
    where = zip(tokens.offsets, tokens.sequence_ids, strict=True)
    inside = [
        place
        for place, ((begin, stop), sequence) in enumerate(where)
        if sequence == 1 and begin < end and stop > start
    ]
    logits[inside[0], 0] = logits[inside[-1], 1] = 50
    return logits


# The official evaluation of SQuAD v1.1 and v2.0, on texts.


def normalized(text: str) -> list[str]:
    lower = "".join(each for each in text.lower() if each not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", lower).split()


def text_f1(given: str, wanted: str) -> float:
    first, second = normalized(given), normalized(wanted)
    if not first or not second:
        return float(first == second)
    shared = sum((Counter(first) & Counter(second)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(first), shared / len(second)
    return 2 * precision * recall / (precision + recall)


def score(given: str, *wanted: str) -> tuple[float, float]:
    """F1 and exact match of a part of the context, by its tokens."""
    encoded = encoder().encode([QUESTION])
    ends = tuple((CONTEXT.index(each), CONTEXT.index(each) + len(each)) for each in wanted)
    start = CONTEXT.index(given)
    answers = SpanAnswers()
    (codes,) = answers.place([ends], [QUESTION], encoded)
    logits = spread(encoded.tokens[0], start, start + len(given))
    units = answers.judged(logits[None], np.asarray(codes)[None])
    return float(answers.values(units)[0]), float(units.scores[0, 3])


@pytest.mark.parametrize(
    ("given", "wanted", "value", "exact"),
    [
        ("$4 million", ("$4 million",), 1, 1),
        ("4 million,", ("$4 million",), 1, 1),  # punctuation does not count
        ("a record", ("record",), 1, 1),  # nor do articles
        ("The", ("the",), 1, 1),  # nothing that counts is there, in both
        ("The", ("record",), 0, 0),
        ("million", ("$4 million",), 2 / 3, 0),  # precision 1, recall 1/2
        ("3-year plan", ("plan",), 2 / 3, 0),  # 3year plan: one word of two
        ("year", ("3-year",), 0, 0),  # year is not 3year
        ("Anna's", ("Anna",), 0, 0),  # nor is annas anna
        ("of Anna's firm", ("Anna's firm", "of"), 4 / 5, 0),  # the better of two
        ("the plan's end", ("end",), 2 / 3, 0),
        ("an  open-ended one", ("open-ended one",), 1, 1),
        ("cost", ("cost $4 million, a record",), 2 / 5, 0),  # precision 1, recall 1/4
    ],
)
def test_f1_of_words_by_hand(
    given: str, wanted: tuple[str, ...], value: float, exact: float
) -> None:
    assert score(given, *wanted) == pytest.approx((value, exact), abs=FLOAT)
    assert max(text_f1(given, each) for each in wanted) == pytest.approx(value)


@pytest.mark.parametrize("make", [tokenizer, byte_level, metaspace])
def test_tokens_score_as_the_texts_that_they_stand_for(make: Callable[[], Tokenizer]) -> None:
    """Parts of a text that begin and end with a word, against SQuAD's evaluation of strings."""
    how = QuestionPreprocessing(max_length=400, pad_token_id=0)
    (tokens,) = QuestionEncoder(how, make()).encode([QUESTION]).tokens
    words = sorted(
        {
            (word, span)
            for word, span, sequence in zip(
                tokens.word_ids, _word_spans(tokens), tokens.sequence_ids, strict=True
            )
            if sequence == 1
        }
    )
    spans = [
        (words[first][1][0], words[last][1][1])
        for first in range(len(words))
        for last in range(first, min(first + 4, len(words)))
    ]
    answers = SpanAnswers()
    random = np.random.default_rng(0)
    for _ in range(150):
        (start, end), right = (spans[each] for each in random.integers(0, len(spans), 2))
        codes = place_answers(CONTEXT, [right], tokens)
        logits = spread(tokens, start, end)
        found = answers.judged(logits, codes, np.zeros(len(codes), np.int64))
        texts = CONTEXT[start:end], CONTEXT[slice(*right)]
        assert found.scores[0, 2] == pytest.approx(text_f1(*texts), abs=FLOAT), texts
        assert found.scores[0, 3] == (normalized(texts[0]) == normalized(texts[1])), texts


def _word_spans(tokens: Encoding) -> list[tuple[int, int]]:
    """The characters of the word of each token."""
    keys = list(zip(tokens.sequence_ids, tokens.word_ids, strict=True))
    found: dict[object, tuple[int, int]] = {}
    for key, (start, end) in zip(keys, tokens.offsets, strict=True):
        found[key] = (found.get(key, (start, end))[0], end)
    return [found[key] for key in keys]


def test_the_same_words_are_the_same_answer_however_they_are_cut() -> None:
    start = CONTEXT.index("$4 million")
    given = set()
    for kept in ((), ("plan", "firm", "million"), ("cost", "year", "of")):
        how = QuestionPreprocessing(max_length=400, pad_token_id=0)
        (tokens,) = QuestionEncoder(how, tokenizer(*kept)).encode([QUESTION]).tokens
        codes = place_answers(CONTEXT, [(start, start + len("$4 million"))], tokens)
        logits = spread(tokens, start, start + len("$4 million"))
        units = SpanAnswers().judged(logits, codes, np.zeros(len(codes), np.int64))
        assert units.scores[0, :2].tolist() == units.labels[0].tolist()
        given.add(int(SpanAnswers().given(units)[0]))
        other = spread(tokens, 0, 5)
        others = SpanAnswers().judged(other, codes, np.zeros(len(codes), np.int64))
        assert SpanAnswers().given(others)[0] not in given
    assert len(given) == 1


def test_f1_counts_a_word_as_often_as_both_have_it() -> None:
    assert f1([(4,), (4,), (5,)], [(4,), (6,)]) == pytest.approx(2 / 5)
    assert (f1([], []), f1([], [(4,)]), exact_match([(4,), (5,)], [(5,), (4,)])) == (1, 0, 0)


def pipeline_span(logits: Logits, longest: int) -> tuple[int, int, float]:
    """What the pipeline question-answering of transformers 4 does to logits of a context."""
    start, end = (np.exp(each - each.max()) for each in logits.T)
    products = np.outer(start / start.sum(), end / end.sum())
    candidates = np.tril(np.triu(products), longest - 1)
    first, last = np.unravel_index(candidates.argmax(), candidates.shape)
    return int(first), int(last), float(candidates[first, last])


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_the_best_span_is_that_of_transformers(longest: int) -> None:
    random = np.random.default_rng(0)
    for length in (1, 2, 29, 30, 31, 90):
        for _ in range(10):
            logits = random.normal(scale=3, size=(length, 2))
            span = best_span(logits, longest=longest)
            first, last, chance = pipeline_span(logits, longest)
            assert (span.start, span.end) == (first, last)
            assert span.score == pytest.approx(chance)


def test_an_answer_begins_behind_the_space_before_it() -> None:
    how = QuestionPreprocessing(max_length=400, pad_token_id=0)
    for make in (byte_level, metaspace):
        encoded = QuestionEncoder(how, make()).encode([QUESTION])
        start = CONTEXT.index("million")
        logits = spread(encoded.tokens[0], start, start + 3)
        (found,) = SpanAnswers().predictions(logits, (), [QUESTION], encoded)
        assert CONTEXT[found.start : found.end] == found.answer
        assert found.answer.strip(",") == "million"


def test_an_answer_is_whole_words_of_the_context() -> None:
    encoded = encoder().encode([QUESTION, QUESTION])
    first, second = encoded.tokens
    middle = CONTEXT.index("million") + 2
    outputs = np.concatenate([spread(first, middle, middle + 2), spread(second, 4, 10)])
    found = SpanAnswers().predictions(outputs, ("start", "end"), [QUESTION] * 2, encoded)
    assert [each.answer for each in found] == ["million", "3-year"]
    for each in found:
        assert CONTEXT[each.start : each.end] == each.answer
        assert each.score == pytest.approx(1)
        assert not each.truncated


def test_the_question_is_no_answer_and_has_no_share() -> None:
    """However sure the model is of the tokens of the question."""
    encoded = encoder().encode([QUESTION])
    logits = spread(encoded.tokens[0], 0, 3)
    logits[np.array(encoded.tokens[0].sequence_ids) == 0] = 1000
    (found,) = SpanAnswers().predictions(logits, (), [QUESTION], encoded)
    assert (found.answer, found.start) == ("The", 0)
    assert found.score == pytest.approx(1)
    codes = place_answers(CONTEXT, [(0, 3)], encoded.tokens[0])
    assert (codes[np.array(encoded.tokens[0].sequence_ids) == 0] == IGNORED).all()


def test_an_answer_beyond_what_is_read_counts_as_wrong() -> None:
    encoded = encoder(40).encode([QUESTION])
    assert encoded.truncated == (True,)
    assert len(encoded.tokens[0].ids) == 40
    answers = SpanAnswers()
    record = CONTEXT.index("record")
    ends = [(0, 3), (record, record + 6)]
    placed = answers.place(
        [ends[:1], ends[1:], ends], [QUESTION] * 3, encoder(40).encode([QUESTION] * 3)
    )
    units = answers.judged(np.zeros((3, 40, 2)), np.stack(placed))
    assert units.labels.tolist() == [[0, 0], [-1, -1], [0, 0]]
    assert answers.values(units).tolist()[1] == 0
    cut = encoded.tokens[0].offsets[-1][1]
    for end, is_read in ((cut, True), (cut + 1, False)):
        codes = place_answers(CONTEXT, [(0, end)], encoded.tokens[0])
        assert bool((codes[codes != IGNORED] & 1).any()) is is_read
    (found,) = answers.predictions(np.zeros((40, 2)), (), [QUESTION], encoded)
    assert found.truncated


def test_padding_and_order_do_not_matter() -> None:
    """Rows side by side with padding, or end to end as packs have them."""
    other = Question("Who?", "Anna Holm did")
    encoded = encoder().encode([QUESTION, other])
    answers = SpanAnswers()
    placed = [
        np.asarray(each) for each in answers.place([[(0, 3)], [(0, 9)]], [QUESTION, other], encoded)
    ]
    random = np.random.default_rng(0)
    logits = [random.normal(size=(len(each), 2)) for each in placed]
    flat = answers.judged(
        np.concatenate(logits), np.concatenate(placed), np.repeat([0, 1], list(map(len, placed)))
    )
    longest = max(map(len, placed))
    side = np.full((2, longest), IGNORED)
    padded = np.full((2, longest, 2), 99.0)
    for row, (codes, values) in enumerate(zip(placed, logits, strict=True)):
        side[row, : len(codes)], padded[row, : len(codes)] = codes, values
    both = answers.judged(padded[::-1], side[::-1], np.array([1, 0]))
    assert np.array_equal(flat.scores, both.scores)
    assert np.array_equal(flat.labels, both.labels)
    assert flat.rows.tolist() == both.rows.tolist() == [0, 1]
    assert len({*answers.given(flat).tolist()}) == 2


def test_a_pack_has_all_that_a_score_needs(tmp_path: Path) -> None:
    encoded = encoder().encode([QUESTION])
    answers = SpanAnswers()
    placed = answers.place([[(4, 10), (4, 15)]], [QUESTION], encoded)
    how = QuestionPreprocessing(max_length=400, pad_token_id=0)
    pack = EvaluationPack.from_rows(encoded.rows, placed, preprocessing=how)
    pack.save(tmp_path / "pack")
    again = EvaluationPack.load(tmp_path / "pack")
    assert again.preprocessing == how
    outputs = spread(encoded.tokens[0], 4, 10)
    units = answers.units(outputs, again)
    found = answers.score(units)
    assert (found.value, found.num_rows, found.measure) == (1, 1, "F1")
    assert CONTEXT not in (tmp_path / "pack").read_bytes().decode("latin-1")


def test_as_many_answers_as_there_are_bits() -> None:
    encoded = encoder().encode([QUESTION])
    ends = [(0, 3)] * (MAX_ANSWERS - 1) + [(4, 5)]
    codes = place_answers(CONTEXT, ends, encoded.tokens[0])
    assert codes.max() < 2**31
    (three,) = np.flatnonzero((codes != IGNORED) & (codes >> (MAX_ANSWERS - 1) & 1 != 0))
    assert encoded.tokens[0].offsets[three] == (4, 5)
