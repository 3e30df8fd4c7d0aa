import pickle

import pytest
import torch
from torch import nn

from compressor.training import trainer
from compressor.training.distillation import distill
from compressor.training.finetuning import finetune
from compressor.training.settings import DistillSettings, FinetuneSettings


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (("avx2",), False),
        (("avx2", "avx512f", "avx512_vnni"), False),
        (("avx512f", "avx512_bf16"), True),
        (("asimddp", "bf16"), True),
    ],
)
def test_bf16_is_used_where_the_cpu_multiplies_it(monkeypatch, features, expected):
    monkeypatch.setattr(trainer, "cpu_features", lambda: features)
    assert trainer.has_bf16(nn.Linear(2, 2)) is expected
    assert trainer.has_bf16(nn.Conv2d(3, 8, 3)) is False


@pytest.mark.parametrize("method", ["finetune", "distill"])
def test_training_in_bf16_gives_a_plain_float32_model(
    word_model, word_splits, tmp_path, monkeypatch, method
):
    monkeypatch.setattr(trainer, "has_bf16", lambda module: True)
    seen = set()
    original = torch.nn.Linear.forward

    def forward(self, inputs):
        outputs = original(self, inputs)
        seen.add(outputs.dtype)
        return outputs

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    common = {"epochs": 1, "batch_size": 32}
    keywords = {"seed": 0, "folder": tmp_path, "progress": lambda fraction, line: None}
    student = word_model(num_layers=1)
    if method == "finetune":
        result = finetune(student, word_splits, FinetuneSettings(**common), **keywords)
    else:
        settings = DistillSettings(**common, relation_weight=1, relation_heads=4, cache_mib=0)
        result = distill(student, word_model(), word_splits, settings, layer_map=None, **keywords)
    assert torch.bfloat16 in seen
    seen.clear()
    module = result.model.module
    assert module(input_ids=torch.tensor([[2, 5, 3]])).logits.dtype == torch.float32
    assert seen == {torch.float32}
    assert {each.dtype for each in module.parameters()} == {torch.float32}
    assert pickle.loads(pickle.dumps(module)) is not None  # noqa: S301  (our own)


def test_a_process_uses_one_gpu_of_several(monkeypatch, tmp_path):
    """Else rows a step would be multiplied by their number."""

    def four(settings):
        settings._n_gpu = 4
        return torch.device("cpu")

    monkeypatch.setattr(trainer.TrainingArguments, "_setup_devices", property(four))
    found = trainer.arguments(
        FinetuneSettings(batch_size=24), num_rows=100, seed=0, folder=tmp_path, bf16=False
    )
    assert found.n_gpu == 1
    assert found.train_batch_size == 24


def test_a_training_tells_how_long_an_epoch_took(word_model, word_splits, tmp_path):
    keywords = {"seed": 0, "folder": tmp_path, "progress": lambda fraction, line: None}
    settings = FinetuneSettings(epochs=4, batch_size=32)
    found = finetune(word_model(num_layers=1), word_splits, settings, **keywords).metrics
    assert 0 < 4 * found["epoch_s"] <= found["train_s"]
    assert 0 < found["prepare_s"] <= found["train_s"] - 4 * found["epoch_s"]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate_rises_and_falls_as_set(word_model, word_splits, tmp_path, schedule):
    settings = FinetuneSettings(
        epochs=2, batch_size=8, learning_rate=1e-3, warmup=0.5, schedule=schedule
    )
    result = finetune(
        word_model(num_layers=1),
        word_splits,
        settings,
        seed=0,
        folder=tmp_path,
        progress=lambda fraction, line: None,
    )
    rates = [entry["learning_rate"] for entry in result.history if "learning_rate" in entry]
    assert max(rates) == pytest.approx(1e-3, rel=0.2)
    assert rates[0] < 0.5e-3
    assert rates[-1] == pytest.approx(1e-3) if schedule == "constant" else rates[-1] < 0.2e-3


def test_progress_rises_to_one(word_model, word_splits, tmp_path):
    seen = []
    finetune(
        word_model(num_layers=1),
        word_splits,
        FinetuneSettings(epochs=2, batch_size=32),
        seed=0,
        folder=tmp_path,
        progress=lambda fraction, line: seen.append((fraction, line)),
    )
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert "epoch 2.0 of 2, validation accuracy" in seen[-1][1]
