"""How Hugging Face writes down the preprocessing of sound, and what of it is supported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.errors import CheckpointError
from compressor.tasks.preprocessor_config import PROCESSOR, config_path, read_preprocessor_config
from targets.preprocessing import AudioPreprocessing
from targets.preprocessing.audio import LogMel

__all__ = ["LONGEST_S", "read_extractor", "write_extractor"]

LONGEST_S = 30
"""Seconds of the longest waveform, where a checkpoint does not say: what attention, whose cost
grows with the square, takes in its stride, and the window of Whisper."""

_WAVEFORM, _SPECTROGRAM = "Wav2Vec2FeatureExtractor", "WhisperFeatureExtractor"


def read_extractor(folder: Path) -> AudioPreprocessing:
    """The preprocessing of a checkpoint folder.

    Raises:
        CheckpointError: It has none, or one that is not supported.
    """
    config = read_preprocessor_config(folder, noun="recordings", saver="AutoFeatureExtractor")
    try:
        return _from_config(config, folder)
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise CheckpointError(
            "the preprocessing of the checkpoint is not supported",
            where=config_path(folder),
            given=f"{config.get('feature_extractor_type')}: {error}"
            if isinstance(config, dict)
            else type(config).__name__,
            fix=f"use a model with a {_WAVEFORM} or a {_SPECTROGRAM}",
        ) from error


def write_extractor(processor: AudioPreprocessing, folder: Path) -> None:
    """Write the preprocessing so that transformers and :func:`read_extractor` read the same.

    What transformers has no word for, it passes over.
    """
    config: dict[str, Any] = {
        "sampling_rate": processor.sampling_rate,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": processor.attention_mask,
        "do_normalize": processor.normalize,
        "max_samples": processor.max_samples,
        "min_samples": processor.min_samples,
    }
    log_mel = processor.log_mel
    if log_mel is None:
        config |= {"feature_extractor_type": _WAVEFORM, "feature_size": 1}
    else:
        config |= {
            "feature_extractor_type": _SPECTROGRAM,
            "feature_size": log_mel.num_mel,
            "chunk_length": log_mel.window // processor.sampling_rate,
            "n_fft": log_mel.fft_size,
            "hop_length": log_mel.hop,
        }
        if log_mel.step is not None:
            config["window_step"] = log_mel.step
    (folder / PROCESSOR).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _from_config(config: Mapping[str, Any], folder: Path) -> AudioPreprocessing:
    if not isinstance(config, Mapping):
        raise TypeError("no JSON object")
    kind = config.get("feature_extractor_type")
    if kind not in (_WAVEFORM, _SPECTROGRAM):
        raise ValueError("not a supported feature extractor")
    for name, known in (("padding_value", 0), ("padding_side", "right"), ("dither", 0)):
        if config.get(name, known) != known:
            raise ValueError(f"{name} is {config[name]!r}")
    rate = config.get("sampling_rate", 16_000)
    if kind == _WAVEFORM:
        if config.get("feature_size", 1) != 1:
            raise ValueError(f"feature_size is {config['feature_size']!r}")
        return AudioPreprocessing(
            sampling_rate=rate,
            max_samples=config.get("max_samples", LONGEST_S * rate),
            min_samples=config.get("min_samples", _least_samples(folder)),
            normalize=config.get("do_normalize", True),
            attention_mask=config.get("return_attention_mask", False),
        )
    window = config.get("chunk_length", 30) * rate
    return AudioPreprocessing(
        sampling_rate=rate,
        max_samples=config.get("max_samples", window),
        normalize=False,  # that of Whisper looks at the argument of a call, and not at its file
        log_mel=LogMel(
            num_mel=config.get("feature_size", 80),
            window=window,
            fft_size=config.get("n_fft", 400),
            hop=config.get("hop_length", 160),
            step=config.get("window_step"),
        ),
    )


def _least_samples(folder: Path) -> int:
    """Samples of which the convolutions of a network make one state; 1 where it has none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layers = zip(config["conv_kernel"], config["conv_stride"], strict=True)
        samples, distance = 1, 1  # that a state stands for, and between two states
        for kernel, stride in layers:
            samples += (int(kernel) - 1) * distance
            distance *= int(stride)
    except (OSError, ValueError, KeyError, TypeError):
        return 1  # what is wrong with the config is found where the network is loaded
    return samples
