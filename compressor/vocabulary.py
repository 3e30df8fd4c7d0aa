"""Which tokens a text needs, and a tokenizer that has only those.

Every tokenizer picks the best split of a word among those that its tokens allow: WordPiece the
longest match, BPE the earliest merge, Unigram the likeliest path. Taking away tokens that the best
split does not use leaves that split the best, so text made of kept tokens keeps its tokens exactly.
(For BPE "use" includes the smaller tokens that a token is merged from.)
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compressor.errors import PassError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "changed_tokenization_rate",
    "count_tokens",
    "covered_texts",
    "kept_tokens",
    "safe_tokens",
    "select_tokens",
    "trim_tokenizer",
    "unknown_token_rate",
]

TokenIds = NDArray[np.int64]

CHUNK = 4096  # texts that are tokenised at once: enough to use all cores, little memory
_ASCII = tuple(chr(code) for code in range(0x21, 0x7F))


def count_tokens(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> TokenIds:
    """How often each token occurs in texts, (V,), special tokens included."""
    plain = _plain(tokenizer)
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
    all_characters: bool = False,
) -> TokenIds:
    """Choose the tokens to keep; sorted ids.

    Args:
        tokenizer: The tokenizer.
        counts: (V,) how often each token occurs in the data.
        min_count: Occurrences from which on a token is kept.
        keep_first: Keep this many tokens from the beginning of the vocabulary too. Vocabularies
            list frequent tokens first.
        all_characters: Keep the tokens of all single characters, not only of those in the data.
    """
    wanted = np.union1d(
        np.flatnonzero(counts >= max(1, min_count)), np.arange(min(keep_first, len(counts)))
    )
    safe = safe_tokens(tokenizer, np.flatnonzero(counts), all_characters=all_characters)
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
    description = _description(tokenizer)
    model = description["model"]
    vocabulary = _vocabulary(model)
    names = {index: name for name, index in vocabulary.items()}
    prefix = model.get("continuing_subword_prefix") or ""
    special = [token["id"] for token in description["added_tokens"]]
    unknown = vocabulary.get(model.get("unk_token") or "", model.get("unk_id"))
    special += [] if unknown is None else [unknown]
    # Byte-level tokenizers spell every byte with one character: all of them are the alphabet.
    all_characters = all_characters or model["type"] == "BPE"
    alphabet = set(_ASCII)
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
    model = _description(tokenizer)["model"]
    if model["type"] != "BPE":
        return ids
    vocabulary = model["vocab"]
    names = {index: name for name, index in vocabulary.items()}
    ranks = {pair: rank for rank, pair in enumerate(_merges(model))}
    parts = {
        vocabulary[part]
        for index in ids.tolist()
        for part in _merge_parts(names.get(index, ""), ranks)
        if part in vocabulary
    }
    return np.union1d(ids, np.array(sorted(parts), np.int64))


def trim_tokenizer(tokenizer: PreTrainedTokenizerFast, kept: TokenIds) -> PreTrainedTokenizerFast:
    """A tokenizer with the kept tokens only; the one given stays as it is.

    Args:
        tokenizer: A WordPiece, BPE or Unigram tokenizer.
        kept: (K,) sorted ids, those of :func:`safe_tokens` among them. Token ``kept[i]`` gets
            id i.

    Raises:
        PassError: The tokenizer is of another kind, or its ids have gaps that cannot be closed.
    """
    from transformers import PreTrainedTokenizerFast

    description = _description(tokenizer)
    new_ids = {old: new for new, old in enumerate(kept.tolist())}
    _trim_model(description["model"], new_ids)
    for token in description["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if description["post_processor"] is not None:
        _remap_post_processor(description["post_processor"], new_ids)
    trimmed = Tokenizer.from_str(json.dumps(description, ensure_ascii=False))
    before = _plain(tokenizer)
    for new, old in enumerate(kept.tolist()):
        name = before.id_to_token(old)
        if name is None or trimmed.token_to_id(name) != new:
            raise PassError(
                "the tokenizer cannot be trimmed: its ids do not follow its vocabulary",
                where=f"token {name!r}",
                given=f"id {old} becomes {trimmed.token_to_id(name or '')} instead of {new}",
                fix="leave this pass out",
            )
    return PreTrainedTokenizerFast(
        tokenizer_object=trimmed,
        **tokenizer.special_tokens_map,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_input_names=list(tokenizer.model_input_names),
    )


def unknown_token_rate(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Part of the tokens of texts that are the unknown token, in [0, 1]."""
    unknown = tokenizer.unk_token_id
    total = hits = 0
    for rows in _encode(_plain(tokenizer), texts, special=False):
        total += sum(map(len, rows))
        hits += sum(row.count(unknown) for row in rows)
    return hits / max(1, total)


def changed_tokenization_rate(
    before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, texts: Sequence[str]
) -> float:
    """Part of the texts that two tokenizers split into different tokens, in [0, 1]."""
    old, new = _plain(before), _plain(after)
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
    old_rows = (row for rows in _encode(_plain(before), texts, special=True) for row in rows)
    new_rows = (row for rows in _encode(_plain(after), texts, special=True) for row in rows)
    for text, old_row, new_row in zip(texts, old_rows, new_rows, strict=True):
        if all(index in new_ids for index in old_row):
            covered.append(text)
            if [new_ids[index] for index in old_row] != new_row:
                wrong.append(text)
    return covered, wrong


def _plain(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy without the padding and truncation that the last call left behind."""
    plain = copy.deepcopy(tokenizer.backend_tokenizer)
    plain.no_padding()
    plain.no_truncation()
    assert isinstance(plain, Tokenizer)
    return plain


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


def _description(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(_plain(tokenizer).to_str())
    model = description["model"]
    kind = model["type"]
    marked = model.get("end_of_word_suffix") or (
        kind == "BPE" and model.get("continuing_subword_prefix")
    )
    if kind not in _TRIMMERS or marked:
        raise PassError(
            "tokens can be taken out of WordPiece, BPE, Unigram and WordLevel tokenizers only",
            where="tokenizer.json",
            given=kind + (f" with {marked!r} at the edges of words" if marked else ""),
            fix="leave this pass out",
        )
    return description


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of any kind of tokenizer."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        return dict(vocabulary)
    return {piece: index for index, (piece, _) in enumerate(vocabulary)}


def _without_prefix(name: str, prefix: str) -> str:
    """The characters of a token without the mark of a continuation or of a space."""
    if prefix and name.startswith(prefix) and name != prefix:
        return name.removeprefix(prefix)
    return name.removeprefix("\u2581") or name


def _is_byte(name: str) -> bool:
    """Whether it is a token such as <0x0A>, which spells a byte of an unknown character."""
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")


def _trim_model(model: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    _TRIMMERS[model["type"]](model, new_ids)


def _trim_wordpiece(model: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    vocabulary = sorted(model["vocab"].items(), key=lambda item: item[1])
    model["vocab"] = {name: new_ids[index] for name, index in vocabulary if index in new_ids}


def _trim_bpe(model: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    _trim_wordpiece(model, new_ids)
    vocabulary = model["vocab"]
    model["merges"] = [
        [left, right]
        for left, right in _merges(model)
        if left in vocabulary and right in vocabulary and left + right in vocabulary
    ]


def _trim_unigram(model: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in new_ids]
    if model.get("unk_id") is not None:
        model["unk_id"] = new_ids[model["unk_id"]]


_TRIMMERS: Mapping[str, Callable[[dict[str, Any], Mapping[int, int]], None]] = {
    "WordPiece": _trim_wordpiece,
    "BPE": _trim_bpe,
    "Unigram": _trim_unigram,
    "WordLevel": _trim_wordpiece,
}


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merge rules, the first applied first; older files write a pair as one string."""
    pairs = (rule.split(" ") if isinstance(rule, str) else rule for rule in model["merges"])
    return [(left, right) for left, right in pairs]


def _merge_parts(name: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """Every token that comes up while BPE builds one token out of its characters."""
    symbols = list(name)
    parts = set(symbols)
    while len(symbols) > 1:
        pairs = list(zip(symbols, symbols[1:], strict=False))
        best = min(
            range(len(pairs)), key=lambda place: (ranks.get(pairs[place], len(ranks)), place)
        )
        if pairs[best] not in ranks:
            break
        symbols[best : best + 2] = ["".join(pairs[best])]
        parts.add(symbols[best])
    return parts


def _remap_post_processor(processor: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    """Change the ids that a post-processor adds, whatever its kind, in place."""
    for inner in processor.get("processors", ()):
        _remap_post_processor(inner, new_ids)
    special = processor.get("special_tokens")
    if isinstance(special, dict):
        for token in special.values():
            token["ids"] = [new_ids[index] for index in token["ids"]]
    for key in ("sep", "cls"):
        if isinstance(processor.get(key), list):
            processor[key] = [processor[key][0], new_ids[processor[key][1]]]
