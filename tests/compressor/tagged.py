"""Words with labels, and a tiny network that can learn them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from tests.compressor.conftest import NOUNS, QUESTIONS, make_wordpiece

TAGS = ("ADV", "NOUN", "OTHER", "VERB")


def tag(words: list[str], place: int) -> str:
    """By the word, and for nouns by the word before them."""
    word = words[place]
    if word in QUESTIONS:
        return "ADV"
    if word not in NOUNS:
        return "OTHER"
    return "VERB" if place and words[place - 1] in QUESTIONS else "NOUN"


def make_sentences(num_rows: int, seed: int) -> list[list[str]]:
    generator = random.Random(seed)
    pool = [*QUESTIONS, *QUESTIONS, *NOUNS, "Oslo", "Rome", "o'er"]
    return [generator.choices(pool, k=generator.randint(2, 7)) for _ in range(num_rows)]


def write_sentences(path: Path, sentences: list[list[str]]) -> None:
    rows = [
        {"tokens": words, "tags": [tag(words, place) for place in range(len(words))]}
        for words in sentences
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_encoder(folder: Path) -> None:
    """A BERT without a head, and its tokenizer."""
    tokenizer = make_wordpiece()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=40,
            initializer_range=0.1,
        )
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
