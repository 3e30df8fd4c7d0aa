"""Cut the longest input of a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.passes.base import PassContext
from compressor.passes.shorten import Shorten
from compressor.training.distillation import distill
from compressor.training.settings import DistillSettings
from tests.compressor.writers import RATE, SPEECH, make_splits, make_writer


def slow_whisper() -> TorchModel:
    """Its window is two seconds long, as a second has half of the samples."""
    model = make_writer("whisper")
    reader = model.processor.reader.model_copy(update={"sampling_rate": RATE // 2})
    return replace(model, processor=replace(model.processor, reader=reader))


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    return PassContext(
        splits=make_splits(SPEECH), load_original=slow_whisper, seed=0, folder=tmp_path
    )


def test_half_of_the_window_of_whisper_goes(context: PassContext) -> None:
    model = slow_whisper()
    cutting = Shorten(max_length=8000)
    cutting.requires(model, context)
    result = cutting.run(model, context)
    short: Any = result.model
    assert short.max_length == 8000
    assert short.processor.reader.log_mel.num_frames == 50
    assert short.module.config.max_source_positions == 25
    assert model.module.config.max_source_positions == 50  # type: ignore[union-attr]
    cut = sum(len(each) > 8000 for each in context.splits.validation.inputs)
    assert 0 < cut == result.metrics["validation_inputs_cut"]
    assert result.notes[0].startswith(f"{cut} of the 12 inputs for validation")


@pytest.mark.parametrize(
    ("length", "message"),
    [(RATE, "nothing would be cut"), (9000, "hears whole seconds")],
)
def test_a_length_that_cannot_be_is_refused(
    context: PassContext, length: int, message: str
) -> None:
    cutting = Shorten(max_length=length)

    def cut() -> None:
        cutting.requires(slow_whisper(), context)
        cutting.run(slow_whisper(), context)

    with pytest.raises(PassError, match=message) as caught:
        cut()
    assert caught.value.where == "shorten.max_length"


def test_a_teacher_of_another_window_is_refused(context: PassContext, tmp_path: Path) -> None:
    student: Any = Shorten(max_length=8000).run(slow_whisper(), context).model
    with pytest.raises(PassError, match="take inputs of other sizes") as caught:
        distill(
            student,
            slow_whisper(),
            context.splits,
            DistillSettings(epochs=1),
            layer_map=None,
            seed=0,
            folder=tmp_path,
            progress=lambda fraction, line: None,
        )
    assert "input_features (8, 50)" in str(caught.value.given)
