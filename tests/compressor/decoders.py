"""Tiny language models of the kinds of Llama and GPT-2, and texts to judge them by."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from compressor.data import Split, Splits
from compressor.model import TorchModel

WORDS = tuple(f"w{number}" for number in range(20))
SPECIAL = ("<unk>", "<s>", "</s>")
CHAT_TEMPLATE = "{% for message in messages %}<s> {{ message['content'] }} </s>{% endfor %}"
TASK = "text-generation"
MAX_LENGTH = 24
_SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
SIZES: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
    **_SPECIAL_IDS,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "gpt2": lambda: GPT2Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.3,
        **_SPECIAL_IDS,
    ),
}
"""Family -> its config. In the first two, two queries share a key."""


def make_word_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="</s>",  # noqa: S106
        chat_template=CHAT_TEMPLATE,
    )


def make_decoder(family: str = "llama", *, seed: int = 0) -> TorchModel:
    """A random model whose biases, if any, are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager")
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(0, 0.1)
    return TorchModel(module.eval(), make_word_tokenizer(), TASK, MAX_LENGTH)


def make_texts(num_rows: int, seed: int) -> tuple[str, ...]:
    """Texts that count: each word is mostly the one after that before it."""
    generator = random.Random(seed)
    texts = []
    for _ in range(num_rows):
        place, words = generator.randrange(len(WORDS)), []
        for _ in range(generator.randint(4, 12)):
            words.append(WORDS[place])
            step = 1 if generator.random() < 0.8 else generator.randrange(len(WORDS))
            place = (place + step) % len(WORDS)
        texts.append(" ".join(words))
    return tuple(texts)


def make_plain_split(num_rows: int, seed: int) -> Split:
    return Split(make_texts(num_rows, seed), np.zeros(num_rows, dtype=np.int64))


def plain_splits() -> Splits:
    return Splits(
        make_plain_split(64, 1), make_plain_split(24, 2), make_plain_split(24, 3), label_names=()
    )


def write_decoder(folder: Path, family: str = "llama") -> None:
    """A checkpoint as a user has it, and texts to compress it with."""
    model = make_decoder(family)
    model.module.save_pretrained(folder / "model")  # type: ignore[operator]
    model.processor.save_pretrained(folder / "model")
    for split, seed in (("train", 1), ("validation", 2), ("test", 3)):
        lines = (json.dumps({"text": text}) + "\n" for text in make_texts(40, seed))
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
