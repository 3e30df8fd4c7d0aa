"""Models that write learn to write: what is trained is what is written afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize("family", ["whisper", "bart", "marian", "t5"])
def test_dropout_is_replaced_wherever_a_network_has_it_and_put_back(
    family: str, tmp_path: Path
) -> None:
    """Layers of encoders with decoders have numbers, and no modules for it."""
    model = make_writer(family)
    few = make_split(model.task, 8, 1)
    splits = Splits(few, few, few, ())
    rates = [0.125, 0.25, 0.375]

    def set_all(network: nn.Module) -> None:
        for number, part in enumerate(network.modules()):
            for name in vars(part):
                if "dropout" in name and isinstance(getattr(part, name), float):
                    setattr(part, name, rates[number % 3])
            if isinstance(part, nn.Dropout):
                part.p = rates[number % 3]

    def found(network: nn.Module) -> list[float]:
        return [
            value
            for part in network.modules()
            for name, value in vars(part).items()
            if ("dropout" in name or name == "p") and isinstance(value, float)
        ]

    set_all(model.module)
    before = found(model.module)
    assert set(before) == set(rates)
    weights = []
    for folder, dropout in (("a", 0.0), ("b", 0.0), ("c", None)):
        settings = FinetuneSettings(epochs=1, batch_size=8, dropout=dropout)
        result = finetune(
            model.clone(),
            splits,
            settings,
            seed=0 if folder == "a" else 1,
            folder=tmp_path / folder,
            progress=lambda fraction, line: None,
        )
        assert found(result.model.module) == before
        weights.append(result.history[0]["loss"])
    assert weights[0] == pytest.approx(weights[1], rel=1e-5)  # the seed is of dropout alone
    assert weights[2] != pytest.approx(weights[1], rel=1e-3)


def test_what_a_network_holds_fixed_stays_fixed(splits: Splits, tmp_path: Path) -> None:
    """The sines that are the positions of Whisper's encoder."""
    model = make_writer("whisper")
    before = {name: each.clone() for name, each in model.module.state_dict().items()}
    settings = FinetuneSettings(epochs=3, batch_size=8, learning_rate=0.1)
    result = finetune(
        model, splits, settings, seed=0, folder=tmp_path, progress=lambda fraction, line: None
    )
    after = result.model.module.state_dict()
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert "model.encoder.embed_positions.weight" in same
    assert "model.decoder.embed_positions.weight" not in same
    assert not result.model.module.model.encoder.embed_positions.weight.requires_grad


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


@pytest.mark.parametrize(
    ("task", "share"),
    [
        ("text-classification", 0.3), ("text-embedding", 0.3), ("image-classification", 0.1),
        ("audio-classification", 0.1), ("translation", 0.0), (SPEECH, 0.0),
        ("text-generation", 0.0),
    ],
)  # fmt: skip
def test_inputs_are_changed_by_default_only_where_the_answer_may_change_with_them(
    task: str, share: float
) -> None:
    usual = get_task(task).distillation
    assert DistillSettings().for_task(usual).augmentation == share
    assert DistillSettings(augmentation=0.2).for_task(usual).augmentation == 0.2


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
