"""Tones of three heights, and tiny networks that can learn to tell them apart."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

RATE = 8000
LABELS = {"high": 1800, "low": 200, "middle": 700}
SPLITS = {"train": 8, "validation": 4, "test": 4}


def tone(hz: float, seed: int) -> NDArray[np.int16]:
    """A third of a second to a whole one."""
    random = np.random.default_rng(seed)
    time = np.arange(int(RATE * random.uniform(0.35, 1.0))) / RATE
    sound = np.sin(2 * np.pi * hz * random.uniform(0.9, 1.1) * time)
    return np.rint(8000 * (sound + 0.1 * random.standard_normal(len(time)))).astype(np.int16)


def write_wav(path: Path, samples: NDArray[np.int16]) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


def wav2vec2(folder: Path) -> None:
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 8, 8),
        conv_stride=(5, 8, 8),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        classifier_proj_size=16,
        initializer_range=0.2,
    )
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


def whisper(folder: Path) -> None:
    config = WhisperConfig(
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        vocab_size=100,
        max_source_positions=100,
        classifier_proj_size=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.2,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {"wav2vec2": wav2vec2, "whisper": whisper}


def write_tones(folder: Path) -> None:
    """A folder of recordings for each class of each split."""
    for number, (split, count) in enumerate(SPLITS.items()):
        for label, hz in LABELS.items():
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                samples = tone(hz, seed=1000 * number + 100 * len(label) + index)
                write_wav(folder / split / label / f"{index}.wav", samples)


def write_network(folder: Path, family: str) -> None:
    """A network as it is before it is fine-tuned, and its preprocessing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MAKERS[family](folder)
