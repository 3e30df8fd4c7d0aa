"""Labels of words: where they stand among tokens, whatever the tokenizer, and what users get."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from targets.answers import IGNORED, TokenLabelAnswers, softmax
from targets.answers.token_labels import join_words, place_labels
from targets.errors import InputError
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import Encoded, TextPreprocessing

ANSWERS = TokenLabelAnswers()
LETTERS = "abcdefghijklmnopqrstuvwxyz'.-"
NAMES = ("X", "Y", "Z")


def wordpiece() -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "birds", "sing", "sin", "##g"]
    pieces += [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece(dict(zip(pieces, range(99))), unk_token="[UNK]"))  # noqa: B905, S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: index for index, name in enumerate(["<s>", "</s>", *alphabet, "Ġb", "Ġs"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "b"), ("Ġ", "s")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 1), ("<s>", 0), add_prefix_space=False, trim_offsets=True
    )
    return tokenizer


def sentence_pieces() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("▁bir", -2.5), ("ds", -2.5)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


TOKENIZERS = {"wordpiece": wordpiece, "byte level": byte_level, "sentence pieces": sentence_pieces}
WORDS = st.lists(st.text(LETTERS + LETTERS.upper() + "é ", min_size=1, max_size=7), min_size=1)


def encoded(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    found = tokenizer.encode_batch(texts)
    rows: dict[str, list[Any]] = {"input_ids": [np.array(each.ids) for each in found]}
    return Encoded(rows, tuple(bool(each.overflowing) for each in found), found)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(words=WORDS.filter(lambda words: all(word.strip() for word in words)))
def test_the_first_token_of_each_word_has_its_label(kind: str, words: list[str]) -> None:
    tokenizer = TOKENIZERS[kind]()
    text = join_words(words, where="here")
    assert text.count(" ") == len(words) - 1
    [tokens] = tokenizer.encode_batch([text])
    [placed] = place_labels([np.arange(len(words))], [text], [tokens])
    assert placed.shape == (len(tokens.ids),)
    labelled = np.flatnonzero(placed != IGNORED)
    assert placed[labelled].tolist() == list(range(len(words)))
    begin = 0
    for word, token in zip(text.split(" "), labelled.tolist(), strict=True):
        assert tokens.offsets[token][0] <= begin < tokens.offsets[token][1] <= begin + len(word)
        before = tokens.offsets[token - 1] if token else (0, 0)
        assert before[1] <= begin  # nothing of the word stands in the token before
        begin += len(word) + 1


def test_only_first_pieces_are_judged_and_rows_are_kept() -> None:
    texts = ["birds sung", "sing"]
    found = encoded(wordpiece(), texts)
    assert [each.tokens for each in found.tokens] == [
        ["[CLS]", "birds", "s", "##u", "##n", "##g", "[SEP]"],
        ["[CLS]", "sing", "[SEP]"],
    ]
    labels = ANSWERS.place([np.array([2, 1]), np.array([0])], texts, found)
    pack = EvaluationPack.from_rows(
        found.rows, labels, preprocessing=TextPreprocessing(max_length=9, pad_token_id=0)
    )
    outputs = np.zeros((10, 3), np.float32)
    outputs[[1, 2, 8], [2, 0, 0]] = 1
    units = ANSWERS.units(outputs, pack)
    assert units.labels.tolist() == [2, 1, 0]
    assert units.classes.tolist() == [2, 0, 0]
    assert units.rows.tolist() == [0, 0, 1]


def test_words_that_are_cut_off_are_not_judged() -> None:
    tokenizer = wordpiece()
    tokenizer.enable_truncation(4)
    found = encoded(tokenizer, ["birds sing birds"])
    [placed] = ANSWERS.place([np.array([0, 1, 2])], ["birds sing birds"], found)
    assert placed.tolist() == [IGNORED, 0, 1, IGNORED]


def predicted(tokenizer: Tokenizer, given: Any, names: tuple[str, ...] = NAMES) -> Any:
    found = encoded(tokenizer, list(ANSWERS.raw([given])))
    count = len(found.tokens[0].ids)
    outputs = np.zeros((count, len(names)), np.float32)
    outputs[np.arange(count), np.arange(count) % len(names)] = 2  # token 0 is X, 1 is Y, ...
    [prediction] = ANSWERS.predictions(outputs, names, [given], found)
    return prediction


def test_the_words_of_a_text_are_those_of_the_pre_tokenizer() -> None:
    found = predicted(wordpiece(), " Birds sung, don't.")
    assert [(each.text, each.start, each.end) for each in found.words] == [
        ("Birds", 1, 6),
        ("sung", 7, 11),
        (",", 11, 12),
        ("don", 13, 16),
        ("'", 16, 17),
        ("t", 17, 18),
        (".", 18, 19),
    ]
    # [CLS] birds s ##u ##n ##g , d ##o ##n ' t .
    assert [each.label for each in found.words] == ["Y", "Z", "X", "Y", "Y", "Z", "X"]
    assert found.words[0].score == pytest.approx(softmax(np.array([2.0, 0.0, 0.0]))[0])
    assert not found.truncated


@pytest.mark.parametrize("kind", ["byte level", "sentence pieces"])
def test_words_have_no_space_before_them(kind: str) -> None:
    found = predicted(TOKENIZERS[kind](), "birds sing")
    assert [(each.text, each.start, each.end) for each in found.words] == [
        ("birds", 0, 5),
        ("sing", 6, 10),
    ]


def test_given_words_stay_as_they_are() -> None:
    found = predicted(wordpiece(), ["Don't", "New York", "sing"])
    assert [(each.text, each.start, each.end) for each in found.words] == [
        ("Don't", 0, 5),
        ("New York", 6, 14),
        ("sing", 15, 19),
    ]
    # [CLS] d ##o ##n ' t n ##e ##w y ...
    assert [each.label for each in found.words][:2] == ["Y", "X"]


def test_words_that_the_tokenizer_drops_have_no_answer() -> None:
    found = predicted(wordpiece(), ["birds", "\u200b", "sing"])
    assert [each.text for each in found.words] == ["birds", "sing"]
    assert predicted(wordpiece(), "").words == ()


@pytest.mark.parametrize(
    ("given_", "message", "where"),
    [
        (["birds", ""], "a word is not a string with characters", "texts[0][1]"),
        (["birds", 3], "a word is not a string with characters", "texts[0][1]"),
        ([], "a list of words is empty", "texts[0]"),
    ],
)
def test_what_is_no_list_of_words(given_: list[Any], message: str, where: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ANSWERS.raw([given_])
    assert caught.value.where == where
    assert caught.value.fix


def test_one_label_for_each_word() -> None:
    found = encoded(wordpiece(), ["birds sing"])
    with pytest.raises(InputError, match="another number of labels than words") as caught:
        ANSWERS.place([np.array([1])], ["birds sing"], found)
    assert caught.value.given == "1 labels, 2 words"
    assert caught.value.where == "texts[0]"
