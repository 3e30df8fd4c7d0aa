"""Which tokens a text needs, and a tokenizer that has only those.

Every tokenizer picks the best split of a word among those that its tokens allow: WordPiece the
longest match, BPE the earliest merge, Unigram the likeliest path. Taking away tokens that the best
split does not use leaves that split the best, so text made of kept tokens keeps its tokens exactly.
(For BPE "use" includes the smaller tokens that a token is merged from.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compressor.tokenizer_json import (
    describe,
    merge_rules,
    plain_tokenizer,
    token_ids,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "changed_tokenization_rate",
    "count_tokens",
    "covered_texts",
    "kept_tokens",
    "safe_tokens",
    "select_tokens",
    "unknown_token_rate",
]

TokenIds = NDArray[np.int64]

CHUNK = 4096  # texts that are tokenised at once: enough to use all cores, little memory
_ASCII = tuple(chr(code) for code in range(0x21, 0x7F))
_SPACE = "\u2581"  # stands for a space in SentencePiece's tokens


def count_tokens(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> TokenIds:
    """How often each token occurs in texts, (V,), special tokens included."""
    plain = plain_tokenizer(tokenizer)
    counts = np.zeros(_size(plain), np.int64)
    for rows in _encode(plain, texts, special=True):
        ids = np.fromiter((token for row in rows for token in row), np.int64)
        counts += np.bincount(ids, minlength=len(counts))
    return counts


def select_tokens(
    tokenizer: PreTrainedTokenizerFast,
    counts: TokenIds,
    *,
    min_count: int = 1,
    keep_first: int = 0,
    max_tokens: int | None = None,
    all_characters: bool = False,
) -> TokenIds:
    """Choose the tokens to keep; sorted ids.

    Args:
        tokenizer: The tokenizer.
        counts: (V,) how often each token occurs in the data.
        min_count: Occurrences from which on a token is kept.
        keep_first: Keep this many tokens from the beginning of the vocabulary too. Vocabularies
            list frequent tokens first.
        max_tokens: Of all these keep no more than so many, those that are the most frequent in the
            data, and of equals those nearer to the beginning. Tokens that must stay
            (:func:`safe_tokens`, and for BPE the parts of kept tokens) may be more.
        all_characters: Keep the tokens of all single characters, not only of those in the data.
    """
    wanted = np.union1d(
        np.flatnonzero(counts >= max(1, min_count)), np.arange(min(keep_first, len(counts)))
    )
    safe = safe_tokens(tokenizer, np.flatnonzero(counts), all_characters=all_characters)
    if max_tokens is not None:
        others = np.setdiff1d(wanted, safe)
        frequent_first = others[np.argsort(-counts[others], kind="stable")]
        wanted = frequent_first[: max(0, max_tokens - len(safe))]
    return _with_parts(tokenizer, np.union1d(wanted, safe))


def safe_tokens(
    tokenizer: PreTrainedTokenizerFast, seen: TokenIds, *, all_characters: bool = False
) -> TokenIds:
    """Tokens that must stay so that no text becomes unknown; sorted ids.

    They are the special and added tokens, and every token of one character, at the beginning of a
    word and within one: those of the characters in the seen tokens and of printable ASCII, or all.
    A word of these characters whose own tokens are gone falls apart into shorter ones. (Tokenizers
    of whole words have nothing to fall back on: their words become unknown.)

    Args:
        tokenizer: The tokenizer.
        seen: Ids of all tokens that the data holds, however rare.
        all_characters: Keep the tokens of all characters.
    """
    description = describe(tokenizer)
    model = description["model"]
    vocabulary = token_ids(model)
    names = {index: name for name, index in vocabulary.items()}
    prefix = model.get("continuing_subword_prefix") or ""
    special = [token["id"] for token in description["added_tokens"]]
    unknown = vocabulary.get(model.get("unk_token") or "", model.get("unk_id"))
    special += [] if unknown is None else [unknown]
    # Byte-level tokenizers spell every byte with one character: all of them are the alphabet.
    all_characters = all_characters or model["type"] == "BPE"
    alphabet = {*_ASCII, _SPACE}
    for index in seen.tolist():
        alphabet.update(_without_prefix(names.get(index, ""), prefix))
    single = [
        index
        for name, index in vocabulary.items()
        if (len(_without_prefix(name, prefix)) == 1 or _is_byte(name))
        and (all_characters or _is_byte(name) or _without_prefix(name, prefix) in alphabet)
    ]
    return np.unique(np.array([*special, *single], np.int64))


def _with_parts(tokenizer: PreTrainedTokenizerFast, ids: TokenIds) -> TokenIds:
    """For BPE, add the tokens that tokens are merged from; sorted ids."""
    model = describe(tokenizer)["model"]
    if model["type"] != "BPE":
        return ids
    vocabulary = model["vocab"]
    names = {index: name for name, index in vocabulary.items()}
    ranks = {pair: rank for rank, pair in enumerate(merge_rules(model))}
    parts = {
        vocabulary[part]
        for index in ids.tolist()
        for part in _merge_parts(names.get(index, ""), ranks)
        if part in vocabulary
    }
    return np.union1d(ids, np.array(sorted(parts), np.int64))


def unknown_token_rate(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Part of the tokens of texts that are the unknown token, in [0, 1]."""
    unknown = tokenizer.unk_token_id
    total = hits = 0
    for rows in _encode(plain_tokenizer(tokenizer), texts, special=False):
        total += sum(map(len, rows))
        hits += sum(row.count(unknown) for row in rows)
    return hits / max(1, total)


def changed_tokenization_rate(
    before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, texts: Sequence[str]
) -> float:
    """Part of the texts that two tokenizers split into different tokens, in [0, 1]."""
    old, new = plain_tokenizer(before), plain_tokenizer(after)
    old_names = {index: name for name, index in old.get_vocab(True).items()}
    new_names = {index: name for name, index in new.get_vocab(True).items()}
    changed = 0
    pairs = zip(_encode(old, texts, special=True), _encode(new, texts, special=True), strict=True)
    for old_rows, new_rows in pairs:
        changed += sum(
            [old_names[index] for index in first] != [new_names[index] for index in second]
            for first, second in zip(old_rows, new_rows, strict=True)
        )
    return changed / max(1, len(texts))


def kept_tokens(before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast) -> TokenIds:
    """For each token of a trimmed tokenizer the id it had before, (K,)."""
    old_ids = before.get_vocab()
    names = sorted(after.get_vocab().items(), key=lambda item: item[1])
    return np.array([old_ids[name] for name, _ in names], np.int64)


def covered_texts(
    before: PreTrainedTokenizerFast,
    after: PreTrainedTokenizerFast,
    kept: TokenIds,
    texts: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Texts whose tokens are all kept, and those among them that are split differently now."""
    new_ids = {old: new for new, old in enumerate(kept.tolist())}
    covered: list[str] = []
    wrong: list[str] = []
    old_rows = (
        row for rows in _encode(plain_tokenizer(before), texts, special=True) for row in rows
    )
    new_rows = (
        row for rows in _encode(plain_tokenizer(after), texts, special=True) for row in rows
    )
    for text, old_row, new_row in zip(texts, old_rows, new_rows, strict=True):
        if all(index in new_ids for index in old_row):
            covered.append(text)
            if [new_ids[index] for index in old_row] != new_row:
                wrong.append(text)
    return covered, wrong


def _encode(plain: Tokenizer, texts: Iterable[str], *, special: bool) -> Iterator[list[list[int]]]:
    """Ids of texts, some thousand texts at a time."""
    every = list(texts)
    for start in range(0, len(every), CHUNK):
        chunk = every[start : start + CHUNK]
        encoded = plain.encode_batch_fast(chunk, add_special_tokens=special)
        yield [encoding.ids for encoding in encoded]


def _size(plain: Tokenizer) -> int:
    """One more than the largest id."""
    return max(plain.get_vocab(True).values()) + 1


def _without_prefix(name: str, prefix: str) -> str:
    """The characters of a token without the mark of a continuation or of a space."""
    if prefix and name.startswith(prefix) and name != prefix:
        return name.removeprefix(prefix)
    return name.removeprefix(_SPACE) or name


def _is_byte(name: str) -> bool:
    """Whether it is a token such as <0x0A>, which spells a byte of an unknown character."""
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")


def _merge_parts(name: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """Every token that comes up while BPE builds one token out of its characters."""
    symbols = list(name)
    parts = set(symbols)
    while len(symbols) > 1:
        pairs = list(itertools.pairwise(symbols))
        best = min(
            range(len(pairs)), key=lambda place: (ranks.get(pairs[place], len(ranks)), place)
        )
        if pairs[best] not in ranks:
            break
        symbols[best : best + 2] = ["".join(pairs[best])]
        parts.add(symbols[best])
    return parts
