"""Recordings: mono sound at the rate of the model, kept as 16-bit samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from targets.preprocessing.base import Encoded, Encoder, Preprocessing, Rows
from targets.signature import Arrays, Signature

__all__ = ["FEATURES", "WAVEFORM", "AudioEncoder", "AudioPreprocessing"]

WAVEFORM = "input_values"
FEATURES = "input_features"
MASK = "attention_mask"
SAMPLES = "samples"
_FULL_SCALE = 32768.0


class AudioPreprocessing(Preprocessing):
    """Read, resample, and give the model the waveform or its log-mel spectrogram."""

    kind: Literal["audio"] = "audio"
    sampling_rate: int = Field(default=16_000, ge=1000, le=384_000)
    """Samples a second."""
    max_samples: int = Field(ge=1)
    """Longest input; the end of a longer one is left out."""
    normalize: bool = True
    """Bring each waveform to mean 0 and variance 1, as Wav2Vec2 was trained."""

    noun: ClassVar[str] = "recording"
    needs: ClassVar[str] = WAVEFORM
    unit: ClassVar[str | None] = "samples"
    usual_length: ClassVar[int] = 16_000
    libraries: ClassVar[tuple[str, ...]] = ()

    @property
    def longest(self) -> int:
        """See the base class."""
        return self.max_samples

    def open(self, folder: Path, *, source: Path | None = None) -> AudioEncoder:
        """See the base class."""
        return AudioEncoder(self)

    def feeds(self, rows: Rows, signature: Signature) -> Arrays:
        """See the base class: waveforms padded with silence, and their mask.  # (N, samples)"""
        raise NotImplementedError

    def synthetic(
        self, lengths: Sequence[int], *, num_ids: int, random: np.random.Generator
    ) -> dict[str, list[NDArray[np.generic]]]:
        """See the base class."""
        raise NotImplementedError


class AudioEncoder(Encoder):
    """Reads recordings."""

    def __init__(self, preprocessing: AudioPreprocessing) -> None:
        self.preprocessing = preprocessing

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """See the base class."""
        raise NotImplementedError
