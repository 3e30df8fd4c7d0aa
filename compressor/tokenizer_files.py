"""Read the tokenizer of a checkpoint, whichever files it lies in.

Most checkpoints have ``tokenizer.json``. Older ones have a list of words, merge rules or a
SentencePiece model instead, of which transformers makes the same. Marian has two SentencePiece
models, of which it does not; they go before a ``tokenizer.json`` beside them, which can be that of
one side only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.checkpoint import read_config, read_settings_file
from compressor.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "TARGET",
    "TOKENIZER",
    "check_tokenizer",
    "read_target_tokenizer",
    "read_tokenizer",
    "write_tokenizer",
]

TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
TARGET = "target_tokenizer.json"
"""That of the texts that are written, where it is another than that of the texts that are read."""
_SPM, _TARGET_SPM = "source.spm", "target.spm"
_VOCABULARY, _TARGET_VOCABULARY = "vocab.json", "target_vocab.json"
_MARIAN = (_SPM, _TARGET_SPM, _VOCABULARY)
_OTHERS = (
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tokenizer.model",
    *_MARIAN,
)
"""Files of tokenizers that are not yet ``tokenizer.json``."""
_USUAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_USUAL_TOKENS_OF_ROBERTA = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
_MARIAN_TOKENS = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
_CONTROL = (2, 3)  # kinds of pieces that stand for no text: unknown, control
_UNIGRAM = 1  # kind of a SentencePiece model
_NEVER = -1e6
"""Score of a token that a SentencePiece model does not cut texts into, in nats."""


def check_tokenizer(folder: Path) -> None:
    """Check that a checkpoint has a tokenizer, without reading it.

    Raises:
        CheckpointError: No file of the folder is one.
    """
    if not any((folder / name).is_file() for name in (TOKENIZER, *_OTHERS)):
        raise CheckpointError(
            "the checkpoint has no tokenizer",
            where=folder / TOKENIZER,
            given=f"none of {TOKENIZER}, {', '.join(_OTHERS)}",
            fix="copy the tokenizer of the model there: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
        )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the texts that a model reads.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    from transformers import PreTrainedTokenizerFast

    check_tokenizer(folder)
    if _is_marian(folder):
        return _marian(folder, _SPM, _VOCABULARY)
    path = folder / TOKENIZER
    if path.is_file():
        vocabulary = _from_file(path)
        # The generic class reads exactly tokenizer.json: no model-specific code, no hub.
        configured = _configured_tokens(folder)
        special = _known(_usual_tokens(vocabulary, configured) | configured, vocabulary)
        side = read_settings_file(folder / _CONFIG).get("truncation_side")
        cut = {"truncation_side": side} if side in ("left", "right") else {}
        return PreTrainedTokenizerFast(tokenizer_file=str(path), **special, **cut)
    return _converted(folder)


def read_target_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer of the texts that a model writes; None where it is that of those it reads.

    Raises:
        CheckpointError: It cannot be read.
    """
    from transformers import PreTrainedTokenizerFast

    path = folder / TARGET
    if path.is_file():
        special = _known(_configured_tokens(folder), _from_file(path))
        return PreTrainedTokenizerFast(tokenizer_file=str(path), **special)
    if not _is_marian(folder):
        return None
    is_separate = (folder / _TARGET_VOCABULARY).is_file()
    return _marian(folder, _TARGET_SPM, _TARGET_VOCABULARY if is_separate else _VOCABULARY)


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write a tokenizer without what its last call left in it, padding and truncation."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    plain.save(str(path))


def _from_file(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no kind of its own
        raise _unreadable(path, error) from error


def _known(tokens: dict[str, str], vocabulary: Tokenizer) -> dict[str, str]:
    """Without those that the vocabulary lacks: they would be added, beyond the model's rows."""
    return {
        role: token for role, token in tokens.items() if vocabulary.token_to_id(token) is not None
    }


def _usual_tokens(vocabulary: Tokenizer, configured: Mapping[str, str]) -> dict[str, str]:
    """What special tokens are called, where a checkpoint does not say so."""
    is_like_bert = vocabulary.token_to_id(_USUAL_TOKENS["cls_token"]) is not None
    mask = _USUAL_TOKENS_OF_ROBERTA["mask_token"]
    if configured or is_like_bert or vocabulary.token_to_id(mask) is None:
        return _USUAL_TOKENS
    return _USUAL_TOKENS_OF_ROBERTA


def _configured_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a checkpoint names: role -> token."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", _CONFIG):
        for role, value in read_settings_file(folder / name).items():
            token = value.get("content") if isinstance(value, dict) else value
            if role.endswith("_token") and isinstance(token, str):
                found[role] = token
    return found


def _converted(folder: Path) -> PreTrainedTokenizerFast:
    """What transformers makes of the files of a checkpoint."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        found = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many libraries: what each tokenizer raises
        raise _unreadable(folder, f"{type(error).__name__}: {error}") from error
    name = type(found).__name__
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            "the tokenizer of the checkpoint has no fast version",
            where=folder,
            given=f"{name}, which is written in Python",
            fix="use a model whose tokenizer has one (tokenizer.json)",
        )
    own = {role: file for role, file in found.vocab_files_names.items() if file != TOKENIZER}
    missing = [
        file
        for role, file in own.items()
        if role in ("vocab_file", "merges_file") and not (folder / file).is_file()
    ]
    if missing:  # transformers makes one of a few tokens then
        raise _unreadable(folder, f"{name} reads {', '.join(own.values())}; no {missing[0]}")
    special = _known(found.special_tokens_map, backend)
    rows = read_config(folder / "config.json").get("vocab_size")
    size = backend.get_vocab_size(with_added_tokens=True)
    if isinstance(rows, int) and size > rows:
        raise _unreadable(
            folder,
            f"{size} tokens, where the model has rows for {rows}",
            fix="use the tokenizer that the model was trained with",
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, truncation_side=found.truncation_side, **special
    )


def _is_marian(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _MARIAN)


def _marian(folder: Path, model: str, vocabulary: str) -> PreTrainedTokenizerFast:
    """A SentencePiece model whose pieces have the ids of a vocabulary.

    Differs from MarianTokenizer where several characters that no piece has follow each other, and
    in pieces that the vocabulary lacks: both are unknown there, and here the text around them may
    be cut in another way.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import Unigram
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    proto, ids = _read_spm(folder / model), _read_ids(folder / vocabulary)
    tokens = _MARIAN_TOKENS | _configured_tokens(folder)
    missing = [tokens[role] for role in _MARIAN_TOKENS if tokens[role] not in ids]
    if missing:
        raise _unreadable(folder / vocabulary, f"it lacks {', '.join(missing)}")
    scores = {each.piece: each.score for each in proto.pieces if each.type not in _CONTROL}
    pieces = [(piece, scores.get(piece, _NEVER)) for piece in sorted(ids, key=ids.__getitem__)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=ids[tokens["unk_token"]]))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    charsmap = proto.normalizer_spec.precompiled_charsmap
    mapped = [normalizers.Precompiled(charsmap)] if charsmap else []
    tokenizer.normalizer = normalizers.Sequence([*mapped, normalizers.Strip(), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    end = tokens["eos_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, ids[end])]
    )
    languages = [piece for piece in ids if piece.startswith(">>") and piece.endswith("<<")]
    tokenizer.add_special_tokens([AddedToken(each, normalized=False) for each in languages])
    special = _known(tokens, tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _read_spm(path: Path) -> Any:
    """The message of a SentencePiece model."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf and sentencepiece each have their own
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    trained, cleaned = proto.trainer_spec, proto.normalizer_spec
    is_usual = cleaned.add_dummy_prefix and cleaned.remove_extra_whitespaces
    if trained.model_type != _UNIGRAM or trained.byte_fallback or not is_usual or not proto.pieces:
        raise _unreadable(
            path,
            f"{len(proto.pieces)} pieces, model type {trained.model_type}, byte fallback "
            f"{trained.byte_fallback}; only unigram models without byte fallback, and with the "
            "usual spaces, are supported",
            fix="save its fast form with transformers, which writes a tokenizer.json",
        )
    return proto


def _read_ids(path: Path) -> dict[str, int]:
    """Token -> id, of which none is left out."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError("its ids are not 0, 1, 2, ...")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise _unreadable(path, error) from error
    return dict(ids)


def _unreadable(
    where: Path,
    given: object,
    fix: str = "copy the checkpoint again, with all files of its tokenizer",
) -> CheckpointError:
    return CheckpointError(
        "the tokenizer of the checkpoint cannot be read",
        where=where,
        given=given,
        fix=fix,
    )
