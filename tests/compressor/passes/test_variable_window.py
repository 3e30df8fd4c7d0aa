"""Networks that hear recordings as long as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.architecture import Architecture
from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.parity import measure_parity
from compressor.passes import PassContext, PassResult
from compressor.passes.export import Export
from compressor.passes.variable_window import VariableWindow
from compressor.tasks import get_task
from targets.preprocessing.audio import FEATURES, LogMel
from tests.compressor.writers import (
    RATE,
    SPEECH,
    TRANSLATION,
    make_splits,
    make_writer,
)

TASK = get_task(SPEECH)
EIGHTH = RATE // 8  # of a second; a word of the recordings


def context(folder: Path, task: str = SPEECH) -> PassContext:
    def none() -> TorchModel:
        raise AssertionError("the untouched model is not needed")

    return PassContext(splits=make_splits(task), load_original=none, seed=0, folder=folder)


def loaded(folder: Path) -> TorchModel:
    """As the passes get it: with the network of the project."""
    make_writer("whisper").save(folder / "plain")
    return TorchModel.load(folder / "plain")


@pytest.fixture
def result(tmp_path: Path) -> PassResult:
    return VariableWindow(step=0.25).run(loaded(tmp_path), context(tmp_path))


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(1, 25), (4000, 25), (4001, 50), (9000, 75), (16_000, 100), (20_000, 100)],
)
def test_a_spectrogram_spans_the_least_number_of_steps(samples: int, frames: int) -> None:
    assert LogMel(window=RATE, step=4000).frames_of(samples) == frames
    assert LogMel(window=RATE).frames_of(samples) == 100


@pytest.mark.parametrize("step", [4001, 160])
def test_a_step_that_no_spectrogram_has_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match="step must be a multiple of hop and exceed"):
        LogMel(window=RATE, step=step)


def test_a_batch_is_as_long_as_its_longest_recording(result: PassResult) -> None:
    model: Any = result.model
    rows = TASK.encode(model, [np.zeros(2 * EIGHTH, np.float32), np.zeros(5 * EIGHTH, np.float32)])
    assert TASK.collate(model, rows[:1])[FEATURES].shape == (1, 8, 25)
    assert TASK.collate(model, rows)[FEATURES].shape == (2, 8, 75)


def test_the_beginning_is_that_of_the_whole_window(tmp_path: Path, result: PassResult) -> None:
    sound = make_splits(SPEECH).test.inputs[:1]
    whole = loaded(tmp_path)
    short, long = (
        TASK.collate(model, TASK.encode(model, sound))[FEATURES]
        for model in (result.model, whole)  # type: ignore[arg-type]
    )
    frames = short.shape[-1]
    assert frames < long.shape[-1] == 100
    # The last transform of the shorter one is mirrored at its end.
    np.testing.assert_array_equal(short[..., : frames - 2], long[..., : frames - 2])


def test_weights_stay_and_the_original_is_untouched(tmp_path: Path) -> None:
    before = loaded(tmp_path)
    model: Any = VariableWindow().run(before, context(tmp_path)).model
    assert model.module is before.module
    assert before.processor.reader.log_mel.step is None
    assert model.processor.reader.log_mel.step == RATE // 2


def test_it_is_saved_with_the_model(tmp_path: Path, result: PassResult) -> None:
    result.model.save(tmp_path / "saved")
    again = TorchModel.load(tmp_path / "saved")
    assert again.processor.reader == result.model.processor.reader


def test_the_share_of_the_window_is_told(result: PassResult) -> None:
    lengths = [len(sound) for sound in make_splits(SPEECH).validation.inputs]
    wanted = float(np.mean([np.ceil(length / 4000) * 25 for length in lengths])) / 100
    assert result.metrics["mean_share_of_window"] == pytest.approx(wanted)
    assert result.notes == (f"on average, recordings take {wanted:.0%} of the window",)


def test_every_length_is_exported(tmp_path: Path, result: PassResult) -> None:
    model: Any = result.model
    exported: Any = Export(max_batch=4).run(model, context(tmp_path)).model
    assert exported.signature.inputs[0].shape == ("batch", 8, "source")
    lengths = sorted(len(sound) for sound in make_splits(SPEECH).validation.inputs)
    usual = LogMel(window=RATE, step=4000).frames_of(lengths[len(lengths) // 2])
    assert exported.ranges["source"] == (25, usual, 100)
    for sound in (EIGHTH, 3 * EIGHTH, RATE):
        inputs = [make_splits(SPEECH).test.inputs[0][:sound]]
        parity = measure_parity(model, exported.path, inputs, exported.signature)
        assert parity.max_relative_difference < 1e-4


def test_a_step_of_no_whole_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="cannot grow in steps of this size") as caught:
        VariableWindow(step=0.123).run(loaded(tmp_path), context(tmp_path))
    assert caught.value.given == "0.123 seconds, 1968 samples"
    assert "multiple of 0.01 seconds" in str(caught.value.fix)


def test_a_step_beyond_the_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="cannot grow in steps of this size"):
        VariableWindow(step=2).run(loaded(tmp_path), context(tmp_path))


def test_networks_without_a_window_are_refused(tmp_path: Path) -> None:
    writer = make_writer("bart")
    assert VariableWindow.unsuited(Architecture.of(writer.module)) is not None
    assert VariableWindow.unsuited(Architecture.of(loaded(tmp_path).module)) is None
    with pytest.raises(PassError, match="windows of one size"):
        VariableWindow().run(writer, context(tmp_path, TRANSLATION))
