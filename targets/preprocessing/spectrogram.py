"""The log-mel spectrogram of Whisper, with numpy alone."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

__all__ = ["log_mel_spectrogram"]

_TOP_HZ = 8000.0
_BREAK_HZ, _HZ_A_MEL, _LOG_STEP = 1000.0, 200 / 3, np.log(6.4) / 27
"""Slaney's mel scale: linear below 1 kHz, logarithmic above it."""
_FLOOR = 1e-10
_RANGE = 8.0  # decades below the loudest band that are told apart


def log_mel_spectrogram(
    waveform: NDArray[np.float64], *, num_mel: int, fft_size: int, hop: int, sampling_rate: int
) -> NDArray[np.float32]:
    """What Whisper hears (Radford et al. 2022, arXiv 2212.04356, section 2.2).

    Args:
        waveform: (samples,) in [-1, 1], longer than half of ``fft_size``.
        num_mel: Bands of the mel scale, up to 8 kHz.
        fft_size: Samples of one Fourier transform, under a Hann window.
        hop: Samples between two transforms.
        sampling_rate: Samples a second.

    Returns:
        (num_mel, samples // hop), about in [-1, 1.5]
    """
    padded = np.pad(waveform, fft_size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft_size)[::hop][:-1]
    window = np.hanning(fft_size + 1)[:-1]  # periodic
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    bands = _mel_filters(num_mel, fft_size, sampling_rate) @ power.T
    levels: NDArray[np.float64] = np.log10(np.maximum(bands, _FLOOR))
    levels = np.maximum(levels, levels.max() - _RANGE)
    return np.asarray((levels + 4) / 4, np.float32)


@functools.lru_cache(maxsize=8)
def _mel_filters(num_mel: int, fft_size: int, sampling_rate: int) -> NDArray[np.float64]:
    """Triangles of equal area, evenly spread on Slaney's mel scale.  # (num_mel, frequencies)"""
    frequencies = np.fft.rfftfreq(fft_size, 1 / sampling_rate)
    corners = _hz(np.linspace(0, _mel(_TOP_HZ), num_mel + 2))
    widths = np.diff(corners)
    slopes = corners[:, None] - frequencies
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    triangles: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling))
    return triangles * (2 / (corners[2:] - corners[:-2]))[:, None]


def _mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _HZ_A_MEL
    return float(_BREAK_HZ / _HZ_A_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP)


def _hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = mel - _BREAK_HZ / _HZ_A_MEL
    return np.where(above < 0, mel * _HZ_A_MEL, _BREAK_HZ * np.exp(above * _LOG_STEP))
