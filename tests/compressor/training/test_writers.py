"""Models that write learn to write: what is trained is what is written afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compressor.answering import answer
from compressor.data import Splits
from compressor.pruning.layers import select_layers
from compressor.tasks import get_task
from compressor.training.distillation import distill
from compressor.training.finetuning import finetune
from compressor.training.settings import DistillSettings, FinetuneSettings
from targets.answers.written import as_texts
from tests.compressor.writers import SPEECH, make_split, make_writer


@pytest.fixture(scope="module")
def splits() -> Splits:
    few = make_split(SPEECH, 8, 1)
    return Splits(few, few, few, ())


def test_what_was_learnt_by_heart_is_written(splits: Splits, tmp_path: Path) -> None:
    model = make_writer("whisper")
    writing = replace(model.processor.writing, suppressed=(), suppressed_first=())
    model = replace(model, processor=replace(model.processor, writing=writing))
    settings = FinetuneSettings(epochs=60, batch_size=8, learning_rate=5e-3, evaluate_every=60)
    accuracies: list[float] = []
    result = finetune(
        model,
        splits,
        settings,
        seed=0,
        folder=tmp_path,
        progress=lambda fraction, line: None,
        on_evaluation=lambda epoch, accuracy: accuracies.append(accuracy),
    )
    before = get_task(SPEECH).answers.overall(answer(model, splits.train))
    units = answer(result.model, splits.train)
    assert accuracies[-1] > 0.9  # tokens, each after the right ones before it
    assert get_task(SPEECH).answers.overall(units) > max(0.9, before)
    given, wanted = as_texts(units.scores), as_texts(units.labels)
    right = [a.split() == b.split() for a, b in zip(given, wanted, strict=True)]
    assert any(right)


def test_a_student_of_fewer_layers_comes_nearer_to_its_teacher(
    splits: Splits, tmp_path: Path
) -> None:
    teacher = make_writer("whisper")
    student = replace(teacher, module=select_layers(teacher.module, (0, 1, 3)))
    settings = DistillSettings(
        epochs=8, batch_size=8, learning_rate=5e-3, labels_weight=0, evaluate_every=8
    )
    result = distill(
        student,
        teacher,
        splits,
        settings,
        layer_map=None,
        seed=0,
        folder=tmp_path,
        progress=lambda fraction, line: None,
    )
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
