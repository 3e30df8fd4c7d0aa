"""Tiny models with an encoder and a decoder, and data for them."""

from __future__ import annotations

import csv
import json
import random
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from compressor.data import Split, Splits
from compressor.model import TorchModel
from compressor.tasks.feature_extractor import write_extractor
from compressor.tasks.sequence_to_sequence import Processor
from targets.preprocessing import AudioPreprocessing
from targets.preprocessing.audio import LogMel

SPEECH, TRANSLATION = "automatic-speech-recognition", "translation"
WORDS = tuple(f"w{number}" for number in range(20))
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<quiet>")
PAD, START, END, QUIET = 0, 1, 2, 4
VOCABULARY = len(SPECIAL) + len(WORDS)
LONGEST = 24
RATE = 16_000
_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "init_std": 0.3,
    "pad_token_id": PAD,
    "eos_token_id": END,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "whisper": lambda: WhisperForConditionalGeneration(
        WhisperConfig(
            **_SHARED,
            bos_token_id=START,
            decoder_start_token_id=START,
            num_mel_bins=8,
            max_source_positions=50,
            max_target_positions=LONGEST,
        )
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            **_SHARED,
            bos_token_id=START,
            decoder_start_token_id=END,
            forced_bos_token_id=START,
            forced_eos_token_id=None,
            max_position_embeddings=LONGEST,
        )
    ),
    "marian": lambda: MarianMTModel(
        MarianConfig(
            **_SHARED,
            decoder_start_token_id=PAD,
            forced_eos_token_id=None,
            max_position_embeddings=LONGEST,
        )
    ),
    "t5": lambda: _t5(),
    "flan-t5": lambda: _with_own_head(_t5(feed_forward_proj="gated-gelu")),
}


def _t5(**settings: Any) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=6,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            initializer_factor=1.0,
            pad_token_id=PAD,
            eos_token_id=END,
            decoder_start_token_id=PAD,
            **settings,
        )
    )


def _with_own_head(module: T5ForConditionalGeneration) -> T5ForConditionalGeneration:
    """As the checkpoints of T5 v1.1 and after are, whatever their config says."""
    module.lm_head.weight = torch.nn.Parameter(torch.randn_like(module.lm_head.weight))
    tied: Any = module.all_tied_weights_keys
    del tied["lm_head.weight"]
    return module


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
    )


def audio_preprocessing() -> AudioPreprocessing:
    return AudioPreprocessing(
        max_samples=RATE, normalize=False, log_mel=LogMel(num_mel=8, window=RATE)
    )


def settings_of(family: str) -> dict[str, Any]:
    """What generation_config.json says."""
    found: dict[str, Any] = {"eos_token_id": END, "pad_token_id": PAD, "max_length": 14}
    if family == "whisper":
        return {
            **found,
            "decoder_start_token_id": START,
            "no_timestamps_token_id": QUIET,
            "is_multilingual": False,
            "suppress_tokens": [START, PAD, QUIET, 7],
            "begin_suppress_tokens": [END, 9],
        }
    if family == "bart":
        return {**found, "decoder_start_token_id": END, "forced_bos_token_id": START}
    return {**found, "decoder_start_token_id": PAD, "bad_words_ids": [[PAD]]}


def make_writer(family: str = "whisper", *, seed: int = 0) -> TorchModel:
    """A random model whose biases are not zero, and whose answers depend on what it reads."""
    from compressor.tasks.generation_config import _from_settings

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = FAMILIES[family]()
        module.set_attn_implementation("eager")
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(0, 0.1)
            if "decoder.embed_positions" in name:
                parameter.data.mul_(4)
            if "encoder_attn" in name or "EncDecAttention" in name:
                parameter.data.mul_(2)
    tokenizer = make_tokenizer()
    is_speech = family == "whisper"
    processor = Processor(
        audio_preprocessing() if is_speech else tokenizer,
        tokenizer,
        _from_settings(settings_of(family)),
    )
    task = SPEECH if is_speech else TRANSLATION
    return TorchModel(module.eval(), processor, task, RATE if is_speech else LONGEST)


def make_recording(words: list[str], seed: int) -> NDArray[np.float32]:
    """A tone a word, each an eighth of a second, with a little noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(RATE // 8) / RATE
    tones = [np.sin(2 * np.pi * (200 + 150 * WORDS.index(word)) * time) for word in words]
    sound = 0.3 * np.concatenate(tones)
    noisy: NDArray[np.float32] = (sound + generator.normal(0, 0.01, len(sound))).astype(np.float32)
    return noisy


def write_wav(path: Path, sound: NDArray[np.float32]) -> None:
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(RATE)
        stream.writeframes((sound * 32767).astype("<i2").tobytes())


def make_words(num_rows: int, seed: int) -> list[list[str]]:
    generator = random.Random(seed)
    return [generator.choices(WORDS[:8], k=generator.randint(2, 6)) for _ in range(num_rows)]


def make_split(task: str, num_rows: int, seed: int) -> Split:
    """What is said in a recording; or each word of a text and the one after it."""
    rows = make_words(num_rows, seed)
    targets = tuple(" ".join(row) for row in rows)
    if task == SPEECH:
        sounds = tuple(make_recording(row, seed + place) for place, row in enumerate(rows))
        return Split(sounds, targets)
    return Split(
        tuple(" ".join(WORDS[WORDS.index(word) + 1] for word in row) for row in rows), targets
    )


def make_splits(task: str) -> Splits:
    return Splits(make_split(task, 48, 1), make_split(task, 12, 100), make_split(task, 12, 200), ())


def write_writer(folder: Path, family: str = "whisper") -> None:
    """A checkpoint as a user has it, and data to compress it with."""
    model = make_writer(family)
    target = folder / "model"
    cast("Any", model.module).save_pretrained(target)
    model.processor.tokenizer.save_pretrained(target)
    text = json.dumps(settings_of(family))
    (target / "generation_config.json").write_text(text, encoding="utf-8")
    if family == "whisper":
        write_extractor(model.processor.reader, target)
        (folder / "sounds").mkdir()
    for split, count, seed in (("train", 40, 1), ("validation", 12, 100), ("test", 12, 200)):
        rows = make_split(model.task, count, seed)
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["audio" if family == "whisper" else "text", "target"])
            for number, (value, wanted) in enumerate(zip(rows.inputs, rows.labels, strict=True)):
                if family == "whisper":
                    name = f"sounds/{split}{number}.wav"
                    write_wav(folder / name, value)
                    value = name
                writer.writerow([value, wanted])
