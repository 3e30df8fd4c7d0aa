"""Read a tokenizer as the JSON of the tokenizers library, and take tokens out of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compressor.errors import PassError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["describe", "merge_rules", "plain_tokenizer", "token_ids", "trim_tokenizer"]


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerFast, kept: NDArray[np.int64]
) -> PreTrainedTokenizerFast:
    """A tokenizer with the kept tokens only; the one given stays as it is.

    Args:
        tokenizer: A WordPiece, BPE or Unigram tokenizer.
        kept: (K,) sorted ids, those of :func:`safe_tokens` among them. Token ``kept[i]`` gets
            id i.

    Raises:
        PassError: The tokenizer is of another kind, or its ids have gaps that cannot be closed.
    """
    from transformers import PreTrainedTokenizerFast

    description = describe(tokenizer)
    new_ids = {old: new for new, old in enumerate(kept.tolist())}
    _trim_model(description["model"], new_ids)
    for token in description["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if description["post_processor"] is not None:
        _remap_post_processor(description["post_processor"], new_ids)
    trimmed = Tokenizer.from_str(json.dumps(description, ensure_ascii=False))
    before = plain_tokenizer(tokenizer)
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


def plain_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy without the padding and truncation that the last call left behind."""
    plain = copy.deepcopy(tokenizer.backend_tokenizer)
    plain.no_padding()
    plain.no_truncation()
    return cast("Tokenizer", plain)


def describe(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The contents of ``tokenizer.json``, without padding and truncation.

    Raises:
        PassError: Tokens cannot be taken out of this kind of tokenizer.
    """
    description: dict[str, Any] = json.loads(plain_tokenizer(tokenizer).to_str())
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


def token_ids(model: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of any kind of tokenizer."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        return dict(vocabulary)
    return {piece: index for index, (piece, _) in enumerate(vocabulary)}


def merge_rules(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merge rules, the first applied first; older files write a pair as one string."""
    pairs = (rule.split(" ") if isinstance(rule, str) else rule for rule in model["merges"])
    return [(left, right) for left, right in pairs]


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
        for left, right in merge_rules(model)
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
