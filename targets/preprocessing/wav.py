"""Read WAV files, and bring sound to another sampling rate, with numpy alone.

The ``wave`` module of Python reads neither floats nor, before 3.12, the extensible format that
24-bit files usually have.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from targets.errors import InputError

__all__ = ["read_wav", "resample"]

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_NAMES = {2: "ADPCM", 6: "A-law", 7: "mu-law", 0x11: "IMA ADPCM", 0x55: "MP3"}
_RATES = (1000, 768_000)
_OPEN_END = 0xFFFFFFFF
"""Size of a chunk that was written into a pipe: it goes on to the end."""

_NUM_ZEROS = 64
"""Zero crossings of the sinc on each side."""
_BETA = 7.857
"""Of the Kaiser window: 80 dB below the pass band where the filter ends (Kaiser, 1974)."""
_ROLLOFF = 0.96
"""Middle of the transition as a share of the lower Nyquist frequency, at which it ends: half of
the width (80 - 8) / (2.285 * 2 * 64 * pi) of the Kaiser window's transition below 1."""


def read_wav(source: bytes | str | Path, *, where: str) -> tuple[NDArray[np.float64], int]:
    """Read a WAV file of 8, 16, 24 or 32-bit integers or 32-bit floats.

    Args:
        source: Its path or its content.
        where: What to call it in messages.

    Returns:
        The waveform in [-1, 1], channels averaged, and the sampling rate in Hz.  # (samples,)

    Raises:
        InputError: It cannot be read, is not such a file, or holds no sound.
    """
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            "the recording cannot be read",
            where=where,
            given=getattr(error, "strerror", None) or error,
            fix="pass the path of a WAV file",
        ) from error
    try:
        return _parse(content)
    except (ValueError, struct.error) as error:
        raise InputError(
            "the recording is not a WAV file that can be read",
            where=where,
            given=error,
            fix="pass WAV with integers of 8 to 32 bits or 32-bit floats: "
            "ffmpeg -i FILE -c:a pcm_s16le out.wav",
        ) from error


def _parse(content: bytes) -> tuple[NDArray[np.float64], int]:
    if not content:
        raise ValueError("an empty file")
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError(f"it begins with {content[:12]!r}")
    layout: tuple[int, int, int, int] | None = None
    for name, chunk in _chunks(content):
        if name == b"fmt ":
            layout = _layout(chunk)
        elif name == b"data":
            if layout is None:
                raise ValueError("no format before the samples")
            return _samples(chunk, *layout[:3]), layout[3]
    raise ValueError("no samples")


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 12
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        place += 8
        rest = len(content) - place
        if size == _OPEN_END:
            size = rest
        if size > rest:
            raise ValueError(f"it ends early: {rest} bytes of {size} in {name.decode('latin-1')!r}")
        yield name, content[place : place + size]
        place += size + size % 2


def _layout(chunk: bytes) -> tuple[int, int, int, int]:
    """Format, bits a sample, channels and rate."""
    form, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if form == _EXTENSIBLE:
        (form,) = struct.unpack_from("<H", chunk, 24)
    if (form, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32)}:
        kind = {_PCM: "integers", _FLOAT: "floats"}.get(form, _NAMES.get(form, f"format {form}"))
        raise ValueError(f"samples are {kind} of {bits} bits")
    if not channels or not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(f"{channels} channels at {rate} Hz")
    return form, bits, channels, rate


def _samples(chunk: bytes, form: int, bits: int, channels: int) -> NDArray[np.float64]:
    width = bits // 8
    count = len(chunk) // (width * channels)
    if not count:
        raise ValueError("no samples")
    raw = np.frombuffer(chunk, np.uint8, count * channels * width)
    if form == _FLOAT:
        values = raw.view("<f4").astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("samples that are not finite")
    elif bits == 8:
        values = (raw.astype(np.float64) - 128) / 128
    else:
        filled = np.zeros((count * channels, 4), np.uint8)  # the upper bytes of 32 bits
        filled[:, 4 - width :] = raw.reshape(-1, width)
        values = filled.view("<i4").reshape(-1) / 2.0**31
    mono: NDArray[np.float64] = values.reshape(count, channels).mean(axis=1)
    return mono


def resample(waveform: NDArray[np.float64], rate: int, wanted: int) -> NDArray[np.float64]:
    """Bring a waveform to another rate, band-limited: each output is a windowed sinc's sum.

    Up to 0.92 of the lower Nyquist frequency all is kept; what would be mirrored below it is at
    least 80 dB lower than it was.

    Args:
        waveform: (samples,)
        rate: Its samples a second.
        wanted: Those of the result.

    Returns:
        (ceil(samples * wanted / rate),)
    """
    if rate == wanted:
        return waveform
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    count = -(-len(waveform) * up // down)
    reach = math.ceil(_NUM_ZEROS * max(1.0, down / up) / _ROLLOFF)
    padded = np.pad(waveform, (reach, reach + down))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    result = np.empty(count)
    for first in range(min(up, count)):
        # Output n lies n * down / up inputs from the start: those of one remainder share a filter.
        place, remainder = divmod(first * down, up)
        size = len(range(first, count, up))
        result[first::up] = windows[place::down][:size] @ _filter(up, down, reach, remainder)
    return result


@functools.lru_cache(maxsize=1024)
def _filter(up: int, down: int, reach: int, remainder: int) -> NDArray[np.float64]:
    """Weights of the inputs around one output, which lies remainder / up behind the middle one."""
    cutoff = _ROLLOFF * min(1.0, up / down)
    distance = np.arange(-reach, reach + 1) - remainder / up
    inside = np.clip(1 - (distance * cutoff / _NUM_ZEROS) ** 2, 0, None)
    weights: NDArray[np.float64] = np.sinc(distance * cutoff) * np.i0(_BETA * np.sqrt(inside))
    weights[inside == 0] = 0
    weights /= weights.sum()  # a constant stays what it is
    return weights
