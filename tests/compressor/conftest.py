"""Tiny models and a tiny task: which of two words a sentence begins with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from compressor.data import Split, Splits
from compressor.model import TorchModel

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["who", "where", "when", *(f"w{number}" for number in range(21))]
LABELS = ("person", "place", "time")


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_model(
    *, num_layers: int = 2, hidden_size: int = 32, seed: int = 0, words: list[str] = WORDS
) -> TorchModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(SPECIAL) + len(words),
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            intermediate_size=2 * hidden_size,
            max_position_embeddings=32,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={name: index for index, name in enumerate(LABELS)},
            initializer_range=0.2,
        )
        module = BertForSequenceClassification._from_config(config, attn_implementation="eager")
    return TorchModel(module.eval(), make_tokenizer(words), "text-classification", 32)


def make_split(num_rows: int, seed: int) -> Split:
    generator = random.Random(seed)
    labels = [generator.randrange(3) for _ in range(num_rows)]
    texts = tuple(
        " ".join([WORDS[label], *generator.choices(WORDS[3:], k=generator.randint(2, 9))])
        for label in labels
    )
    return Split(texts, np.array(labels, dtype=np.int64))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from a second thread, and on a busy machine lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def word_splits() -> Splits:
    return Splits(make_split(96, 1), make_split(48, 2), make_split(48, 3), LABELS)


@pytest.fixture
def word_model() -> Callable[..., TorchModel]:
    """Makes a random classifier: word_model(num_layers=, hidden_size=, seed=, words=)."""
    return make_model


@pytest.fixture
def vocabulary() -> list[str]:
    return list(WORDS)
