"""Recordings: mono sound at the rate of the model, kept as 16-bit samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from targets.errors import InputError
from targets.preprocessing.base import DECODER_IDS, Encoded, Encoder, Preprocessing, Rows
from targets.preprocessing.spectrogram import log_mel_spectrogram
from targets.preprocessing.wav import read_wav, resample
from targets.signature import Arrays, Signature

__all__ = [
    "FEATURES",
    "MASK",
    "SAMPLES",
    "WAVEFORM",
    "AudioEncoder",
    "AudioPreprocessing",
    "LogMel",
]

WAVEFORM = "input_values"
FEATURES = "input_features"
MASK = "attention_mask"
SAMPLES = "samples"
_FULL_SCALE = 32768.0
_LOUDEST = 8.0
"""Floats this far from [-1, 1] are of another scale; a little beyond it, they are clipped."""
_LEAST_VARIANCE = 1e-7  # keeps silence finite; that of Wav2Vec2FeatureExtractor


class LogMel(BaseModel):
    """The log-mel spectrogram of Whisper: always of one size, unless there is a ``step``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_mel: int = Field(default=80, ge=1, le=512)
    """Bands of the mel scale."""
    window: int = Field(default=480_000, ge=1)
    """Samples that it spans; shorter recordings are padded with silence."""
    fft_size: int = Field(default=400, ge=2)
    """Samples of one Fourier transform."""
    hop: int = Field(default=160, ge=1)
    """Samples between two transforms."""
    step: int | None = Field(default=None, ge=1, exclude_if=lambda step: step is None)
    """Samples: the spectrogram spans the longest recording of a batch, rounded up to a multiple of
    this, and at most the window."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for name in ("window", "step"):
            size = getattr(self, name)
            if size is not None and (size % self.hop or size <= self.fft_size // 2):
                raise ValueError(f"{name} must be a multiple of hop and exceed half of fft_size")
        return self

    @property
    def num_frames(self) -> int:
        """Columns of the largest spectrogram."""
        return self.window // self.hop

    def frames_of(self, num_samples: int) -> int:
        """Columns of the spectrogram of recordings that are at most so many samples long."""
        if self.step is None:
            return self.num_frames
        steps = max(1, -(-num_samples // self.step))
        return min(steps * self.step, self.window) // self.hop


class AudioPreprocessing(Preprocessing):
    """Read, resample, and give the model the waveform or its log-mel spectrogram.

    Recordings have lengths of their own, in samples, until a batch is made of them. A spectrogram
    then has one size, so that lengths have no influence on the work of the model, unless it has a
    `LogMel.step`.
    """

    kind: Literal["audio"] = "audio"
    sampling_rate: int = Field(default=16_000, ge=1000, le=384_000)
    """Samples a second."""
    max_samples: int = Field(ge=1)
    """Longest input; the end of a longer one is left out."""
    min_samples: int = Field(default=1, ge=1)
    """A shorter input is followed by silence up to this length: what a model needs at least."""
    normalize: bool = True
    """Bring each waveform to mean 0 and variance 1, as Wav2Vec2 was trained."""
    attention_mask: bool = False
    """Whether the model is told which samples are padding, where its inputs are waveforms."""
    log_mel: LogMel | None = None
    """Give the model spectrograms; without it, waveforms."""

    noun: ClassVar[str] = "recording"
    needs: ClassVar[str] = SAMPLES
    unit: ClassVar[str | None] = "samples"
    usual_length: ClassVar[int] = 16_000
    libraries: ClassVar[tuple[str, ...]] = ()
    wanted: ClassVar[str] = "a recording's file"
    suffixes: ClassVar[tuple[str, ...]] = (".wav",)

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.min_samples > self.max_samples:
            raise ValueError("min_samples is at most max_samples")
        if self.log_mel is not None and self.max_samples > self.log_mel.window:
            raise ValueError("max_samples is at most the window of the spectrogram")
        return self

    @property
    def has_common_window(self) -> bool:
        """See the base class."""
        return self.log_mel is not None and self.log_mel.step is not None

    @property
    def longest(self) -> int:
        """See the base class."""
        return self.max_samples

    def open(self, folder: Path, *, source: Path | None = None) -> AudioEncoder:
        """See the base class."""
        return AudioEncoder(self)

    def feeds(self, rows: Rows, signature: Signature) -> Arrays:
        """See the base class.

        Waveforms are normalized, then padded with 0 to the longest: (N, samples) float32, and their
        mask; spectrograms are (N, num_mel, frames) float32.
        """
        known = [FEATURES] if self.log_mel is not None else [WAVEFORM, MASK]
        samples = [np.asarray(row) for row in rows[SAMPLES]]
        feeds: Arrays = {}
        for spec in signature.inputs:
            if spec.name == DECODER_IDS and self.decoder_start:
                feeds[spec.name] = self.started(len(samples)).astype(spec.dtype)
                continue
            if spec.name not in known:
                raise self.unknown_input(spec.name, known)
            if spec.name == MASK:
                values: NDArray[np.generic] = _pad([np.ones(len(row)) for row in samples])
            elif self.log_mel is None:
                values = _pad([self._waveform(row) for row in samples])
            else:
                values = self._spectrograms(samples, self.log_mel)
            feeds[spec.name] = values.astype(spec.dtype)
        return feeds

    def synthetic(
        self, lengths: Sequence[int], *, num_ids: int, random: np.random.Generator
    ) -> dict[str, list[NDArray[np.generic]]]:
        """See the base class: noise; what is shorter than the model takes is as long as that."""
        lengths = [max(length, self.min_samples) for length in lengths]
        noise = np.rint(random.normal(scale=_FULL_SCALE / 16, size=sum(lengths)))
        return {SAMPLES: list(np.split(_clipped(noise), np.cumsum(lengths)[:-1]))}

    def _waveform(self, samples: NDArray[np.generic]) -> NDArray[np.float64]:
        values = samples.astype(np.float64) / _FULL_SCALE
        if self.normalize:
            values = (values - values.mean()) / np.sqrt(values.var() + _LEAST_VARIANCE)
        return values

    def _spectrograms(
        self, samples: Sequence[NDArray[np.generic]], wanted: LogMel
    ) -> NDArray[np.float32]:
        num_frames = wanted.frames_of(max(map(len, samples)))
        features = np.empty((len(samples), wanted.num_mel, num_frames), np.float32)
        for index, row in enumerate(samples):
            waveform = np.zeros(num_frames * wanted.hop)
            waveform[: len(row)] = self._waveform(row)
            features[index] = log_mel_spectrogram(
                waveform,
                num_mel=wanted.num_mel,
                fft_size=wanted.fft_size,
                hop=wanted.hop,
                sampling_rate=self.sampling_rate,
            )
        return features


class AudioEncoder(Encoder):
    """Reads recordings: paths or the content of WAV files; or 1-D arrays at the model's rate.

    Arrays are floats in [-1, 1] or int16.
    """

    def __init__(self, preprocessing: AudioPreprocessing) -> None:
        self.preprocessing = preprocessing

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """See the base class.  # (samples,) int16 a row"""
        self.preprocessing.check_inputs(inputs)
        longest, shortest = self.preprocessing.max_samples, self.preprocessing.min_samples
        rows: list[NDArray[np.generic]] = []
        truncated = []
        for index, each in enumerate(inputs):
            samples = self._read(each, index)
            truncated.append(len(samples) > longest)
            samples = samples[:longest]
            rows.append(np.pad(samples, (0, max(0, shortest - len(samples)))))
        return Encoded({SAMPLES: rows}, tuple(truncated))

    def _read(self, value: Any, index: int) -> NDArray[np.int16]:
        where = f"recordings[{index}]"
        if isinstance(value, np.ndarray):
            return _from_array(value, where)
        if not isinstance(value, bytes | str | Path):
            raise _not_a_recording(value, where)
        waveform, rate = read_wav(value, where=where if isinstance(value, bytes) else str(value))
        wanted = self.preprocessing.sampling_rate
        # A second more than is kept: what follows has a part in the last samples that are kept.
        waveform = waveform[: rate + self.preprocessing.max_samples * rate // wanted]
        return _to_int16(resample(waveform, rate, wanted))


def _from_array(array: NDArray[Any], where: str) -> NDArray[np.int16]:
    if (
        array.ndim != 1
        or not len(array)
        or not (array.dtype == np.int16 or array.dtype.kind == "f")
    ):
        raise _not_a_recording(f"{array.dtype} of shape {array.shape}", where)
    if array.dtype == np.int16:
        return array
    loudest = float(np.abs(array).max())
    if not loudest <= _LOUDEST:  # NaN is refused too
        raise InputError(
            "the samples of a recording are not in [-1, 1]",
            where=where,
            given=f"a sample of {loudest:g}",
            fix="divide them by the largest value of their format, such as 32768",
        )
    return _to_int16(array)


def _not_a_recording(value: Any, where: str) -> InputError:
    return InputError(
        "this is not a recording",
        where=where,
        given=value if isinstance(value, str) else f"{type(value).__name__} {value!r:.60}",
        fix="pass a path, the content of a WAV file, or a 1-D array at the rate of the model: "
        "floats in [-1, 1], or int16",
    )


def _to_int16(waveform: NDArray[np.floating]) -> NDArray[np.int16]:
    return _clipped(np.rint(waveform.astype(np.float64) * _FULL_SCALE))


def _clipped(values: NDArray[np.float64]) -> NDArray[np.int16]:
    return np.clip(values, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def _pad(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    padded = np.zeros((len(rows), max(map(len, rows))))
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
