"""Recordings: WAV files of every kind, resampling, and the features of two Hugging Face models."""

from __future__ import annotations

import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from targets import Signature, TensorSpec
from targets.errors import InputError
from targets.evaluation_pack import EvaluationPack
from targets.feeds import FeedsSpec, synthetic_feeds
from targets.preprocessing import AudioPreprocessing
from targets.preprocessing.audio import LogMel
from targets.preprocessing.wav import read_wav, resample

RATE = 16_000


def speech(seconds: float, seed: int = 0, rate: int = RATE) -> NDArray[np.float64]:
    """A voice-like signal in [-1, 1]: harmonics of a gliding pitch, in syllables, with noise."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = 110 + 40 * np.sin(2 * np.pi * 0.7 * time + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tones = sum(np.sin(k * phase) / k for k in range(1, 30))
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * time)
    mixed = loudness * tones + 0.02 * random.standard_normal(len(time))
    return np.asarray(0.4 * mixed / np.abs(mixed).max())


def int16(waveform: NDArray[np.float64]) -> NDArray[np.int16]:
    return np.rint(waveform * 32767).astype(np.int16)


def wav(
    samples: NDArray[Any], *, rate: int = RATE, bits: int = 16, extensible: bool = False
) -> bytes:
    """A WAV file of floats in [-1, 1], (samples,) or (samples, channels); bits=-32 for floats."""
    frames = np.atleast_2d(samples.T).T
    if bits == -32:
        form, raw = 3, frames.astype("<f4").tobytes()
    elif bits == 8:
        form, raw = 1, np.rint(frames * 127 + 128).astype(np.uint8).tobytes()
    else:
        whole = np.rint(frames * (2 ** (bits - 1) - 1)).astype("<i4")
        raw = whole.reshape(-1, 1).view(np.uint8)[:, : bits // 8].tobytes()
        form = 1
    bits, channels = abs(bits), frames.shape[1]
    width = channels * bits // 8
    head = struct.pack(
        "<HHIIHH", 0xFFFE if extensible else form, channels, rate, rate * width, width, bits
    )
    if extensible:
        head += struct.pack(
            "<HHIH14s", 22, bits, 0, form, b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
        )
    chunks = b"".join(
        name + struct.pack("<I", len(each)) + each + b"\0" * (len(each) % 2)
        for name, each in ((b"LIST", b"odd"), (b"fmt ", head), (b"data", raw))
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def signature(*names: str) -> Signature:
    shapes: dict[str, tuple[int | str, ...]] = {"input_features": ("batch", 80, "frames")}
    return Signature(
        inputs=tuple(
            TensorSpec(
                name=name,
                dtype="int64" if name == "attention_mask" else "float32",
                shape=shapes.get(name, ("batch", "sequence")),
            )
            for name in names
        ),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
    )


def waveforms(**settings: Any) -> AudioPreprocessing:
    return AudioPreprocessing(**{"max_samples": 10 * RATE, **settings})


def spectrograms(seconds: int = 2, **settings: Any) -> AudioPreprocessing:
    size = seconds * RATE
    return AudioPreprocessing(
        **{"max_samples": size, "normalize": False, "log_mel": LogMel(window=size), **settings}
    )


def floats(array: NDArray[Any]) -> NDArray[np.float64]:
    return array.astype(np.float64)


def encode(preprocessing: AudioPreprocessing, *inputs: Any) -> list[NDArray[Any]]:
    return preprocessing.open(Path()).encode(list(inputs)).rows["samples"]


# WAV files


@pytest.mark.parametrize(
    ("bits", "error"), [(8, 1 / 64), (16, 1e-4), (24, 1e-6), (32, 1e-6), (-32, 1e-6)]
)
@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_every_kind_of_wav_is_read(
    bits: int, error: float, extensible: bool, channels: int
) -> None:
    frames = np.stack([speech(0.1, seed) for seed in range(channels)], axis=1)
    found, rate = read_wav(wav(frames, bits=bits, rate=8000, extensible=extensible), where="it")
    assert rate == 8000
    np.testing.assert_allclose(found, frames.mean(axis=1), atol=error)


def test_a_file_of_pythons_own_module_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "own.wav"
    samples = int16(speech(0.2))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    for given_ in (path, str(path), path.read_bytes(), samples, samples / 32768):
        np.testing.assert_array_equal(encode(waveforms(), given_)[0], samples)


def test_a_file_written_into_a_pipe_goes_on_to_its_end() -> None:
    content = wav(speech(0.1))
    place = content.index(b"data") + 4
    piped = content[:place] + b"\xff\xff\xff\xff" + content[place + 4 :]
    found, expected = (encode(waveforms(), each)[0] for each in (piped, content))
    np.testing.assert_array_equal(found, expected)


def test_loud_floats_are_clipped() -> None:
    assert encode(waveforms(), np.array([1.2, -1.2]))[0].tolist() == [32767, -32768]
    assert encode(waveforms(), wav(np.array([1.2, -1.2]), bits=-32))[0].tolist() == [32767, -32768]


ALL_KINDS = "pass WAV with integers of 8 to 32 bits or 32-bit floats"


@pytest.mark.parametrize(
    ("content", "given_", "fix"),
    [
        (b"", "an empty file", ALL_KINDS),
        (b"ID3\x04 an MP3 file", "it begins with b'ID3", ALL_KINDS),
        (wav(speech(0.1))[:92], "it ends early: 36 bytes of 3200 in 'data'", ALL_KINDS),
        (wav(speech(0.1))[:44], "it ends early: 12 bytes of 16 in 'fmt '", ALL_KINDS),
        (wav(speech(0.1))[:24], "no samples", ALL_KINDS),
        (wav(np.zeros(0)), "no samples", ALL_KINDS),
        (wav(speech(0.1), rate=0), "1 channels at 0 Hz", ALL_KINDS),
        (
            wav(speech(0.1)).replace(b"\x01\x00\x01\x00", b"\x07\x00\x01\x00", 1),
            "samples are mu-law of 16 bits",
            "ffmpeg",
        ),
        (wav(np.array([np.nan]), bits=-32), "samples that are not finite", ALL_KINDS),
    ],
    ids=["empty", "mp3", "samples", "format", "head", "none", "rate", "mu-law", "nan"],
)
def test_a_file_that_is_no_wav_is_named(
    tmp_path: Path, content: bytes, given_: str, fix: str
) -> None:
    path = tmp_path / "prompt.wav"
    path.write_bytes(content)
    for source, where in ((path, str(path)), (content, "recordings[1]")):
        with pytest.raises(InputError, match="is not a WAV file that can be read") as caught:
            encode(waveforms(), speech(0.1), source)
        assert caught.value.where == where
        assert given_ in str(caught.value.given)
        assert fix in str(caught.value.fix)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the recording cannot be read") as caught:
        encode(waveforms(), tmp_path / "absent.wav")
    assert caught.value.where == str(tmp_path / "absent.wav")
    assert "No such file" in str(caught.value.given)


@pytest.mark.parametrize(
    ("value", "given_"),
    [
        (3, "int 3"),
        (np.zeros((4, 2)), "float64 of shape (4, 2)"),
        (np.zeros(0), "float64 of shape (0,)"),
        (np.zeros(4, np.int32), "int32 of shape (4,)"),
    ],
)
def test_what_is_no_recording_is_refused(value: Any, given_: str) -> None:
    with pytest.raises(InputError, match="this is not a recording") as caught:
        encode(waveforms(), value)
    assert caught.value.where == "recordings[0]"
    assert given_ in str(caught.value.given)
    assert "a path, the content of a WAV file" in str(caught.value.fix)


@pytest.mark.parametrize("value", [3000.0, np.nan, -np.inf])
def test_samples_of_another_scale_are_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"are not in \[-1, 1\]") as caught:
        encode(waveforms(), np.array([0.5, value]))
    assert "divide them" in str(caught.value.fix)


def test_a_single_recording_is_no_list() -> None:
    with pytest.raises(InputError, match="takes a list of recordings"):
        waveforms().open(Path()).encode(wav(speech(0.1)))


# Resampling


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [
        (8000, RATE),
        (44_100, RATE),
        (48_000, RATE),
        (22_050, RATE),
        (RATE, 8000),
        (11_025, RATE),
    ],
)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_sine_below_the_band_stays_itself(rate: int, wanted: int, share: float) -> None:
    hz = share * min(rate, wanted) / 2
    result = resample(np.sin(2 * np.pi * hz * np.arange(rate) / rate), rate, wanted)
    assert len(result) == wanted
    expected = np.sin(2 * np.pi * hz * np.arange(wanted) / wanted)
    middle = slice(wanted // 10, -wanted // 10)  # silence around it bends its ends
    assert np.abs(result - expected)[middle].max() < 1e-3


@pytest.mark.parametrize("rate", [22_050, 32_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("share", [1.01, 1.1, 1.3, 1.37])
def test_a_sine_above_the_band_is_gone(rate: int, share: float) -> None:
    hz = share * RATE / 2
    result = resample(np.sin(2 * np.pi * hz * np.arange(rate) / rate), rate, RATE)
    assert 20 * np.log10(np.abs(result[RATE // 10 : -RATE // 10]).max()) < -60


def test_no_image_of_a_sine_appears_above_the_old_band() -> None:
    result = resample(np.sin(2 * np.pi * 3000 * np.arange(8000) / 8000), 8000, RATE)
    spectrum = np.abs(np.fft.rfft(result * np.kaiser(len(result), 14)))
    level = 20 * np.log10(spectrum / spectrum.max())
    assert level[4000:].max() < -60


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_resampling_agrees_with_scipy_on_speech(rate: int) -> None:
    from scipy.signal import resample_poly

    signal = speech(1, rate=rate)
    common = np.gcd(rate, RATE)
    expected = resample_poly(signal, RATE // common, rate // common)
    found = resample(signal, rate, RATE)
    assert found.shape == expected.shape
    # Their filters end differently near the band's edge, where speech has little.
    difference = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert difference < 0.02


def test_resampling_takes_one_sample_and_any_ratio() -> None:
    hum = np.sin(2 * np.pi * 100 * np.arange(4410) / 44_101)
    found = resample(hum, 44_101, RATE)
    expected = np.sin(2 * np.pi * 100 * np.arange(1600) / RATE)
    assert np.abs(found - expected)[200:1400].max() < 1e-3
    assert len(resample(np.ones(1), 8000, RATE)) == 2
    assert len(resample(np.ones(1), 48_000, RATE)) == 1


def test_a_recording_at_another_rate_is_resampled_and_then_cut() -> None:
    encoder = waveforms(max_samples=1000).open(Path())
    encoded = encoder.encode(
        [wav(speech(0.1, rate=8000), rate=8000), wav(speech(0.05, rate=8000), rate=8000)]
    )
    assert [len(row) for row in encoded.rows["samples"]] == [1000, 800]
    assert encoded.truncated == (True, False)


def test_of_a_long_recording_no_more_is_resampled_than_is_kept() -> None:
    signal = speech(5, rate=44_100)
    whole = encode(waveforms(), wav(signal, rate=44_100))[0]
    encoded = waveforms(max_samples=RATE).open(Path()).encode([wav(signal, rate=44_100)])
    np.testing.assert_array_equal(encoded.rows["samples"][0], whole[:RATE])
    assert encoded.truncated == (True,)


def test_a_short_recording_is_followed_by_silence() -> None:
    rows = encode(waveforms(min_samples=400), np.full(10, 0.5), np.full(500, 0.5))
    assert [len(row) for row in rows] == [400, 500]
    assert rows[0][:10].tolist() == [16384] * 10
    assert not rows[0][10:].any()


# Features


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_waveforms_are_those_of_wav2vec2(normalize: bool, mask: bool) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=mask)
    samples = [int16(speech(seconds, seed)) for seed, seconds in enumerate((0.7, 1.3, 0.4))]
    # Without its mask, transformers normalizes after the padding; alone, there is none.
    batches = [samples] if mask or not normalize else [[each] for each in samples]
    names = ("input_values", "attention_mask") if mask else ("input_values",)
    for batch in batches:
        expected = extractor(
            [each / np.float32(32768) for each in batch],
            sampling_rate=RATE,
            padding=True,
            return_tensors="np",
        )
        preprocessing = waveforms(normalize=normalize, attention_mask=mask)
        feeds = preprocessing.feeds({"samples": encode(preprocessing, *batch)}, signature(*names))
        assert feeds.keys() == expected.keys()
        assert feeds["input_values"].dtype == np.float32
        np.testing.assert_allclose(
            floats(feeds["input_values"]), expected["input_values"], atol=1e-4
        )
        if mask:
            assert feeds["attention_mask"].dtype == np.int64
            np.testing.assert_array_equal(feeds["attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize("num_mel", [80, 128])
@pytest.mark.parametrize("use_numpy", [True, False])
def test_spectrograms_are_those_of_whisper(
    num_mel: int, use_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import WhisperFeatureExtractor
    from transformers.models.whisper import feature_extraction_whisper

    if use_numpy:
        monkeypatch.setattr(feature_extraction_whisper, "is_torch_available", lambda: False)
    extractor = WhisperFeatureExtractor(feature_size=num_mel, chunk_length=2)
    batch = [int16(speech(seconds, seed)) for seed, seconds in enumerate((0.7, 2.0, 3.1))]
    expected = extractor(
        [each / np.float32(32768) for each in batch], sampling_rate=RATE, return_tensors="np"
    )
    preprocessing = spectrograms(log_mel=LogMel(num_mel=num_mel, window=2 * RATE))
    feeds = preprocessing.feeds(
        {"samples": encode(preprocessing, *batch)}, signature("input_features")
    )
    assert feeds["input_features"].dtype == np.float32
    assert feeds["input_features"].shape == (3, num_mel, 200)
    np.testing.assert_allclose(
        floats(feeds["input_features"]), expected["input_features"], atol=1e-4
    )


def test_silence_is_finite() -> None:
    rows = {"samples": [np.zeros(800, np.int16)]}
    assert not waveforms().feeds(rows, signature("input_values"))["input_values"].any()
    features = spectrograms().feeds(rows, signature("input_features"))["input_features"]
    np.testing.assert_allclose(floats(features), (np.log10(1e-10) + 4) / 4)


@pytest.mark.parametrize(
    ("preprocessing", "name", "known"),
    [
        (waveforms(), "input_features", "input_values, attention_mask"),
        (spectrograms(), "input_values", "input_features"),
    ],
)
def test_an_input_that_recordings_do_not_provide_is_refused(
    preprocessing: AudioPreprocessing, name: str, known: str
) -> None:
    with pytest.raises(
        InputError, match=f"takes an input {name!r}, which recording does not"
    ) as caught:
        preprocessing.feeds({"samples": [np.zeros(800, np.int16)]}, signature(name))
    assert caught.value.given == known


@given(st.lists(st.integers(1, 900), min_size=1, max_size=9), st.integers(1, 10))
def test_packs_keep_recordings(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], batch_size: int
) -> None:
    path = tmp_path_factory.mktemp("pack") / "pack.safetensors"
    random = np.random.default_rng(0)
    rows = [random.integers(-32768, 32768, length).astype(np.int16) for length in lengths]
    preprocessing = waveforms(normalize=False, attention_mask=True)
    EvaluationPack.from_rows({"samples": rows}, [0] * len(rows), preprocessing=preprocessing).save(
        path
    )
    pack = EvaluationPack.load(path)
    assert pack.preprocessing == preprocessing
    assert pack.inputs["samples"].dtype == np.int16
    seen = {}
    for batch in pack.batches(batch_size, signature("input_values", "attention_mask")):
        for index, values, mask in zip(batch.indices, *batch.feeds.values(), strict=True):
            seen[int(index)] = np.rint(values[: mask.sum()] * 32768).astype(np.int64)
            assert not values[mask.sum() :].any()
    for index, row in enumerate(rows):
        np.testing.assert_array_equal(seen[index], row)


@pytest.mark.parametrize(
    ("preprocessing", "shape"),
    [(waveforms(min_samples=400), (2, 600)), (spectrograms(), (2, 80, 200))],
)
def test_synthetic_recordings_fit_the_model(
    preprocessing: AudioPreprocessing, shape: tuple[int, ...]
) -> None:
    name = "input_values" if len(shape) == 2 else "input_features"
    feeds = synthetic_feeds(
        signature(name), FeedsSpec(lengths=(600, 1), preprocessing=preprocessing)
    )
    assert feeds[name].shape == shape
    assert feeds[name].std() > 0.1


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_samples is at most max_samples"):
        AudioPreprocessing(max_samples=10, min_samples=20)
    with pytest.raises(ValidationError, match="at most the window"):
        AudioPreprocessing(max_samples=RATE + 1, log_mel=LogMel(window=RATE))
    with pytest.raises(ValidationError, match="a multiple of hop"):
        LogMel(window=1001)


def test_a_manifest_tells_the_whole_preprocessing() -> None:
    for each in (waveforms(attention_mask=True, min_samples=400), spectrograms()):
        assert AudioPreprocessing.model_validate_json(each.model_dump_json()) == each
