from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from compressor.errors import PassError
from compressor.tokenizer_json import trim_tokenizer
from compressor.vocabulary import (
    changed_tokenization_rate,
    count_tokens,
    covered_texts,
    kept_tokens,
    safe_tokens,
    select_tokens,
    unknown_token_rate,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
CORPUS = [
    "the cat sat on the mat and the dog ran",
    "who wrote the book of the dead in london",
    "where is the largest library in the world ?",
    "when did the dogs of war run over the mountains",
    "what is the meaning of the word unbelievable , really",
] * 4


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ids
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


def wordpiece() -> PreTrainedTokenizerFast:
    pieces = ["th", "the", "cat", "cats", "un", "##be", "##believ", "##able", "do", "dog", "##gs"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    # The special tokens stand in the middle, as they do in BERT's vocabulary.
    names = ["[PAD]", "[unused0]", *letters, *SPECIAL[1:], *(f"##{each}" for each in letters)]
    vocabulary = {name: index for index, name in enumerate([*names, *pieces, "?", ","])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return wrap(tokenizer)


def bpe() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        show_progress=False,
        special_tokens=SPECIAL,
        unk_token="[UNK]",  # noqa: S106
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer)


MAKERS = {"wordpiece": wordpiece, "bpe": bpe, "unigram": unigram}
TOKENIZERS = {name: make() for name, make in MAKERS.items()}
every_kind = pytest.mark.parametrize("kind", TOKENIZERS)
words = st.sampled_from(sorted({word for line in CORPUS for word in line.split()}))
sentences = st.lists(
    st.one_of(words, st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)),
    min_size=1,
    max_size=8,
).map(" ".join)


def split(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@every_kind
@settings(max_examples=80, deadline=None)
@given(train=st.lists(sentences, min_size=1, max_size=4), texts=st.lists(sentences, max_size=4))
def test_text_of_kept_tokens_keeps_its_tokens(
    kind: str, train: list[str], texts: list[str]
) -> None:
    before = TOKENIZERS[kind]
    kept = select_tokens(before, count_tokens(before, train))
    after = trim_tokenizer(before, kept)
    for text in [*train, *texts]:
        tokens = split(before, text)
        if set(tokens) <= set(after.get_vocab()):
            assert split(after, text) == tokens


@every_kind
@settings(max_examples=60, deadline=None)
@given(train=sentences, text=sentences)
def test_no_text_of_the_alphabet_becomes_unknown(kind: str, train: str, text: str) -> None:
    before = TOKENIZERS[kind]
    after = trim_tokenizer(before, select_tokens(before, count_tokens(before, [train])))
    assert unknown_token_rate(after, [text]) <= unknown_token_rate(before, [text])


@every_kind
def test_training_text_is_never_changed(kind: str) -> None:
    before = TOKENIZERS[kind]
    after = trim_tokenizer(before, select_tokens(before, count_tokens(before, CORPUS[:2])))
    assert len(after) < len(before)
    assert changed_tokenization_rate(before, after, CORPUS[:2]) == 0.0


def test_a_word_whose_token_is_gone_falls_into_shorter_kept_pieces() -> None:
    before = wordpiece()
    assert split(before, "cats")[1:-1] == ["cats"]
    after = trim_tokenizer(before, select_tokens(before, count_tokens(before, ["cat"])))
    assert split(after, "cats")[1:-1] == ["cat", "##s"]


@every_kind
def test_ids_are_closed_up_in_the_old_order(kind: str) -> None:
    before = TOKENIZERS[kind]
    kept = select_tokens(before, count_tokens(before, CORPUS[:1]))
    after = trim_tokenizer(before, kept)
    assert sorted(after.get_vocab().values()) == list(range(len(kept)))
    assert before.convert_ids_to_tokens(kept.tolist()) == after.convert_ids_to_tokens(
        list(range(len(kept)))
    )
    np.testing.assert_array_equal(kept_tokens(before, after), kept)


@every_kind
def test_special_tokens_and_their_template_get_the_new_ids(kind: str) -> None:
    before = TOKENIZERS[kind]
    after = trim_tokenizer(before, safe_tokens(before, np.array([], np.int64)))
    assert after.special_tokens_map == before.special_tokens_map
    ids = after("the dog")["input_ids"]
    assert (ids[0], ids[-1]) == (after.cls_token_id, after.sep_token_id)
    assert split(after, "[MASK]")[1:-1] == ["[MASK]"]


@pytest.mark.parametrize(
    "processor",
    [
        lambda sep, cls: processors.BertProcessing(sep, cls),
        lambda sep, cls: processors.RobertaProcessing(sep, cls),
        lambda sep, cls: processors.Sequence([processors.BertProcessing(sep, cls)]),
    ],
)
def test_every_post_processor_gets_the_new_ids(
    processor: Callable[[tuple[str, int], tuple[str, int]], processors.PostProcessor],
) -> None:
    before = wordpiece()
    ends = [(name, before.convert_tokens_to_ids(name)) for name in ("[SEP]", "[CLS]")]
    before.backend_tokenizer.post_processor = processor(*ends)
    after = trim_tokenizer(before, select_tokens(before, count_tokens(before, ["dog"])))
    assert after.sep_token_id != before.sep_token_id
    assert split(after, "dog") == ["[CLS]", "dog", "[SEP]"]


@every_kind
def test_trimming_leaves_the_tokenizer_alone_and_repeats(kind: str) -> None:
    before = MAKERS[kind]()
    description = before.backend_tokenizer.to_str()
    kept = select_tokens(before, count_tokens(before, CORPUS[:1]))
    first = trim_tokenizer(before, kept).backend_tokenizer.to_str()
    assert before.backend_tokenizer.to_str() == description
    before("the dog", padding="max_length", max_length=9, truncation=True)  # leaves a trace behind
    assert trim_tokenizer(before, kept).backend_tokenizer.to_str() == first


@every_kind
def test_a_saved_tokenizer_reads_the_same_with_the_tokenizers_library(
    kind: str, tmp_path: object
) -> None:
    before = TOKENIZERS[kind]
    after = trim_tokenizer(before, select_tokens(before, count_tokens(before, CORPUS[:1])))
    after.save_pretrained(str(tmp_path))
    reloaded = Tokenizer.from_file(f"{tmp_path}/tokenizer.json")
    for text in CORPUS[:5]:
        assert reloaded.encode(text).ids == after(text)["input_ids"]


def test_bpe_keeps_the_merges_that_its_tokens_come_from() -> None:
    before = TOKENIZERS["bpe"]
    after = trim_tokenizer(before, select_tokens(before, count_tokens(before, ["the library"])))
    model = json.loads(after.backend_tokenizer.to_str())["model"]
    assert model["merges"]
    for left, right in model["merges"]:
        assert {left, right, left + right} <= set(model["vocab"])


def test_rare_tokens_go_and_the_first_ones_stay() -> None:
    before = wordpiece()
    counts = count_tokens(before, ["cat cat the"])
    ids = {name: before.convert_tokens_to_ids(name) for name in ("cat", "the", "[unused0]")}
    rare = select_tokens(before, counts, min_count=2)
    assert ids["cat"] in rare
    assert ids["the"] not in rare
    assert ids["[unused0]"] not in rare
    assert ids["[unused0]"] in select_tokens(before, counts, keep_first=2)


def test_of_too_many_tokens_the_most_frequent_stay() -> None:
    before = wordpiece()
    counts = count_tokens(before, ["cat cat cat the the dog cats"])
    safe = safe_tokens(before, np.flatnonzero(counts))

    def kept_beside_safe(count: int, keep_first: int = 0) -> list[str]:
        kept = select_tokens(before, counts, keep_first=keep_first, max_tokens=len(safe) + count)
        return sorted(before.convert_ids_to_tokens(np.setdiff1d(kept, safe).tolist()))

    assert kept_beside_safe(-1) == kept_beside_safe(0) == []
    assert kept_beside_safe(1) == ["cat"]
    assert kept_beside_safe(2) == ["cat", "the"]
    assert kept_beside_safe(3) == ["cat", "cats", "the"]  # before "dog" in the vocabulary
    assert kept_beside_safe(3, keep_first=2) == ["cat", "cats", "the"]  # "[unused0]" is not there
    assert kept_beside_safe(9, keep_first=2) == ["[unused0]", "cat", "cats", "dog", "the"]


@every_kind
@pytest.mark.parametrize("beside_safe", [0, 2])
def test_with_few_tokens_a_text_is_still_read(kind: str, beside_safe: int) -> None:
    before = TOKENIZERS[kind]
    counts = count_tokens(before, CORPUS)
    num_safe = len(safe_tokens(before, np.flatnonzero(counts)))
    kept = select_tokens(before, counts, max_tokens=num_safe + beside_safe)
    assert len(kept) < len(select_tokens(before, counts))
    after = trim_tokenizer(before, kept)
    unknown = [unknown_token_rate(each, CORPUS) for each in (before, after)]
    assert unknown[0] == unknown[1]
    covered, wrong = covered_texts(before, after, kept, CORPUS)
    assert not wrong
    assert len(covered) < len(CORPUS)


def test_characters_outside_the_data_stay_only_on_request() -> None:
    vocabulary = {name: index for index, name in enumerate([*SPECIAL, "a", "##a", "é", "##é", "ж"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    before = wrap(tokenizer)
    seen = np.flatnonzero(count_tokens(before, ["éa"]))
    names = set(before.convert_ids_to_tokens(safe_tokens(before, seen).tolist()))
    assert names == {*SPECIAL, "a", "##a", "é", "##é"}
    assert len(safe_tokens(before, seen, all_characters=True)) == len(vocabulary)


def test_rates_count_tokens_and_texts() -> None:
    before = wordpiece()
    after = trim_tokenizer(before, select_tokens(before, count_tokens(before, ["the dog"])))
    assert unknown_token_rate(before, ["the dog", "the ж"]) == 0.25
    assert changed_tokenization_rate(before, after, ["the dog", "cats", "the", "cat"]) == 0.5
    assert unknown_token_rate(before, []) == changed_tokenization_rate(before, after, []) == 0.0


def test_covered_texts_tell_those_that_are_split_differently() -> None:
    before = wordpiece()
    after = trim_tokenizer(before, select_tokens(before, count_tokens(before, ["the dog"])))
    kept = kept_tokens(before, after)
    assert covered_texts(before, after, kept, ["the dog", "cats"]) == (["the dog"], [])
    wrong = kept.copy()
    wrong[-2:] = wrong[-1], wrong[-2]
    assert covered_texts(before, after, wrong, ["?,"])[1] == ["?,"]


def test_an_unknown_kind_of_tokenizer_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.add_special_tokens(SPECIAL)
    with pytest.raises(PassError, match="WordPiece, BPE, Unigram") as caught:
        select_tokens(wrap(tokenizer), np.zeros(5, np.int64))
    assert "'</w>'" in str(caught.value)
    assert "leave this pass out" in str(caught.value)


def test_ids_that_do_not_follow_the_vocabulary_are_refused() -> None:
    before = wordpiece()
    before.backend_tokenizer.add_tokens(["<added>"])
    kept = safe_tokens(before, np.array([], np.int64))
    assert trim_tokenizer(before, kept).convert_tokens_to_ids("<added>") == len(kept) - 1
    with pytest.raises(PassError, match="do not follow its vocabulary"):
        trim_tokenizer(before, np.roll(kept, 1))
