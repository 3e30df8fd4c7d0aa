"""Texts that a decoder writes: how they travel, and how good they are."""

from __future__ import annotations

import random

import jiwer
import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF

from targets.answers import TranscriptAnswers, TranslationAnswers, Units
from targets.answers.written import (
    as_codes,
    as_texts,
    chrf,
    edit_distance,
    word_errors,
    words_of,
)
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import AudioPreprocessing

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog"]


def sentences(count: int) -> list[tuple[str, str]]:
    generator = random.Random(0)
    found = []
    for _ in range(count):
        wanted = generator.choices(WORDS, k=generator.randint(1, 9))
        given = [each for each in wanted if generator.random() < 0.8]
        given += generator.choices(WORDS, k=generator.randint(0, 2))
        generator.shuffle(given[:3])
        found.append((" ".join(given), " ".join(wanted)))
    return found


def units_of(pairs: list[tuple[str, str]]) -> Units:
    given, wanted = zip(*pairs, strict=True)
    answers = TranscriptAnswers()
    return answers.judged(as_codes(given), as_codes(wanted))


@pytest.mark.parametrize("texts", [["", "é 漢字 \U0001f600", "a"], ["one"], [""]])
def test_texts_come_back(texts: list[str]) -> None:
    assert as_texts(as_codes(texts)) == texts


def test_the_edit_distance_is_that_of_jiwer() -> None:
    for given, wanted in sentences(60):
        found = jiwer.process_words(wanted, given)
        errors = found.substitutions + found.deletions + found.insertions
        assert edit_distance(given.split(), wanted.split()) == errors
    assert edit_distance([], ["a", "b"]) == edit_distance(["a", "b"], []) == 2
    assert edit_distance([], []) == 0


def test_the_score_is_one_minus_the_word_error_rate_of_all_recordings() -> None:
    pairs = sentences(40)
    units, answers = units_of(pairs), TranscriptAnswers()
    rate = jiwer.wer([wanted for _, wanted in pairs], [given for given, _ in pairs])
    score = answers.score(units)
    assert score.value == pytest.approx(1 - rate) == pytest.approx(answers.overall(units))
    assert score.low < score.value < score.high
    assert (score.measure, score.num_rows) == ("word accuracy", 40)
    each = answers.values(units)
    assert each[3] == pytest.approx(1 - jiwer.wer(pairs[3][1], pairs[3][0]))


def test_long_recordings_count_more_than_short_ones() -> None:
    long = " ".join(WORDS)
    found = TranscriptAnswers().score(units_of([(long, long), ("cat", "dog")]))
    assert found.value == pytest.approx(8 / 9)


def test_capitals_and_punctuation_do_not_count() -> None:
    assert words_of("Don't hang up -- it's 3-D, OK?") == [
        "dont",
        "hang",
        "up",
        "its",
        "3",
        "d",
        "ok",
    ]
    assert words_of("Don\u2019t") == ["dont"]
    assert words_of("ACME\u2122 \u2116 5") == words_of("acmetm no 5")  # signs that are letters
    assert word_errors(words_of(" Good-bye."), words_of("good bye")) == (0, 2)
    answers = TranscriptAnswers()
    same = answers.given(units_of([("Hello, you.", "x"), (" hello you", "x"), ("hello", "x")]))
    assert same[0] == same[1] != same[2]


def test_of_scripts_without_spaces_each_character_is_a_word() -> None:
    assert words_of("今日は、いい天気です。OK then") == [*"今日はいい天気です", "ok", "then"]
    assert words_of("สวัสดี") == list("สวัสดี")
    assert words_of("안녕 하세요") == ["안녕", "하세요"]  # Korean has spaces
    assert word_errors(words_of("今日は雨"), words_of("今日は晴")) == (1, 4)


def test_time_stamps_are_no_text() -> None:
    written = " Good morning<|1.20|><|1.20|> to you<|2.00|>"
    assert TranscriptAnswers().cleaned(written) == " Good morning to you"
    assert TranslationAnswers().cleaned(written) == written


def test_texts_that_begin_alike_are_different_answers() -> None:
    units = units_of([("good morning to you", "x"), ("good morning to all", "x")])
    first, second = TranslationAnswers().given(units)
    assert first != second


def test_chrf_is_that_of_sacrebleu() -> None:
    metric = CHRF()
    texts = [*sentences(40), ("", "a cat"), ("ab", "abc"), ("der Hund, ja!", "der Hund ja")]
    for given, wanted in texts:
        expected = metric.sentence_score(given, [wanted]).score
        assert 100 * chrf(given, wanted) == pytest.approx(expected, abs=1e-6)
    assert chrf("a cat", "a cat") == 1


def test_a_pack_carries_texts(tmp_path: object) -> None:
    answers = TranslationAnswers()
    labels = answers.place(["ab", "", "abc"], (), None)  # type: ignore[arg-type]
    rows = [np.zeros(4, np.int16)] * 3
    pack = EvaluationPack.from_rows(
        {"samples": rows}, labels, preprocessing=AudioPreprocessing(max_samples=4)
    )
    units = answers.units(as_codes(["ab", "x", "abd"]), pack)
    assert as_texts(units.labels) == ["ab", "", "abc"]
    assert answers.values(units)[:2].tolist() == [1, 0]
