"""A tiny Marian as its authors publish theirs: two SentencePiece models, and no tokenizer.json."""

from __future__ import annotations

import codecs
import csv
import io
import json
import warnings
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

LICENSE = Path(__file__).resolve().parents[2] / "LICENSE"
LANGUAGE = ">>fra<<"
_PIECES = 300


def english() -> list[str]:
    """Lines that are read: of a text that never changes, as the vocabulary is made from it."""
    lines = LICENSE.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if len(line.split()) > 4]


def foreign() -> list[str]:
    """What is written of them."""
    return [codecs.encode(line, "rot13") for line in english()]


def write_spm(path: Path, sentences: list[str], *, model_type: str = "unigram") -> None:
    """Train a SentencePiece model, as those of Marian are."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        vocab_size=_PIECES,
        model_type=model_type,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
        num_threads=1,
    )
    path.write_bytes(written.getvalue())


def _pieces(path: Path) -> list[str]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    found = [model.IdToPiece(number) for number in range(model.GetPieceSize())]
    return [piece for piece in found if piece not in ("<s>", "</s>", "<unk>")]


def write_tokenizer(folder: Path, *, separate: bool) -> MarianTokenizer:
    """The files of a tokenizer, with a vocabulary for each side or one for both."""
    folder.mkdir(parents=True, exist_ok=True)
    write_spm(folder / "source.spm", english())
    write_spm(folder / "target.spm", foreign())
    source, target = (_pieces(folder / f"{side}.spm") for side in ("source", "target"))
    files = {"vocab": [LANGUAGE, *source], "target_vocab": [LANGUAGE, *target]}
    if not separate:
        files = {"vocab": [LANGUAGE, *dict.fromkeys([*target, *source])]}
    for name, pieces in files.items():
        names = ["</s>", "<unk>", *pieces, "<pad>"]
        ids = {piece: number for number, piece in enumerate(names)}
        (folder / f"{name}.json").write_text(json.dumps(ids), encoding="utf-8")
    config = {"separate_vocabs": separate, "tokenizer_class": "MarianTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return reference(folder, separate=separate)


def reference(folder: Path, *, separate: bool) -> MarianTokenizer:
    """The tokenizer of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends what it does not use
        return _tokenizer(folder, separate=separate)


def _tokenizer(folder: Path, *, separate: bool) -> MarianTokenizer:
    return MarianTokenizer(
        str(folder / "source.spm"),
        str(folder / "target.spm"),
        str(folder / "vocab.json"),
        target_vocab_file=str(folder / "target_vocab.json") if separate else None,
        separate_vocabs=separate,
    )


def write_marian(folder: Path) -> None:
    """A checkpoint with a vocabulary for each side, and data to compress it with."""
    model = folder / "model"
    tokenizer = write_tokenizer(model, separate=True)
    pad, end = len(tokenizer.encoder) - 1, 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = MarianMTModel(
            MarianConfig(
                vocab_size=len(tokenizer.encoder),
                decoder_vocab_size=len(tokenizer.target_encoder),
                share_encoder_decoder_embeddings=False,
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
                max_position_embeddings=64,
                pad_token_id=pad,
                eos_token_id=end,
                decoder_start_token_id=pad,
                init_std=0.3,
            )
        )
    network.eval().save_pretrained(model)
    settings = {
        "num_beams": 3, "renormalize_logits": True, "max_length": 24, "bad_words_ids": [[pad]],
        "pad_token_id": pad, "eos_token_id": end, "forced_eos_token_id": end,
        "decoder_start_token_id": pad,
    }  # fmt: skip
    text = json.dumps(settings)
    (model / "generation_config.json").write_text(text, encoding="utf-8")
    rows = [
        (" ".join(line.split()[:6]), " ".join(other.split()[:6]))
        for line, other in zip(english(), foreign(), strict=True)
    ]
    splits = {"train": rows[:40], "validation": rows[40:52], "test": rows[52:64]}
    for split, found in splits.items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("text", "target"), *found])
