from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification

from compressor.architecture import Architecture
from compressor.data import Split, Splits
from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.passes.base import PassContext, PassResult
from compressor.passes.drop_layers import DropLayers
from compressor.tasks import get_task


@pytest.fixture
def model(word_model: Callable[..., TorchModel]) -> TorchModel:
    return word_model(num_layers=4)


@pytest.fixture
def context(model: TorchModel, word_splits: Splits, tmp_path: Path) -> PassContext:
    return PassContext(word_splits, load_original=model.clone, seed=3, folder=tmp_path)


def run(step: DropLayers, model: TorchModel, context: PassContext) -> PassResult:
    step.requires(model, context)
    result = step.run(model, context)
    step.ensures(model, result, context)
    return result


def kept(result: PassResult, model: TorchModel) -> list[int]:
    """Which layers of ``model`` the result has, told by their weights."""
    layers = model.module.bert.encoder.layer
    return [
        number
        for each in result.model.module.bert.encoder.layer
        for number, layer in enumerate(layers)
        if torch.equal(each.attention.self.query.weight, layer.attention.self.query.weight)
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set num_layers or keep, not neither"),
        ({"num_layers": 2, "keep": (0, 1)}, "set num_layers or keep, not both"),
        ({"keep": (0, 1), "strategy": "first"}, "strategy has no effect"),
        ({"num_layers": 2, "examples": 9}, "examples has no effect"),
        ({"num_layers": 0}, "greater than or equal to 1"),
        ({"keep": ()}, "at least 1 item"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        DropLayers(**settings)


@pytest.mark.parametrize(
    ("step", "layers"),
    [
        (DropLayers(num_layers=2), [1, 3]),
        (DropLayers(num_layers=3), [0, 1, 3]),
        (DropLayers(num_layers=2, strategy="first"), [0, 1]),
        (DropLayers(keep=(0, 2, 3)), [0, 2, 3]),
    ],
)
def test_the_chosen_layers_stay(
    model: TorchModel, context: PassContext, step: DropLayers, layers: list[int]
) -> None:
    result = run(step, model, context)
    assert kept(result, model) == layers
    assert Architecture.of(result.model.module) == step.plan(Architecture.of(model.module))
    assert result.metrics["num_layers_after"] == len(layers)
    assert result.metrics["num_parameters_after"] < model.num_parameters
    assert DropLayers.model_validate(step.settings()) == step


def test_the_layers_that_matter_least_are_dropped(model: TorchModel, context: PassContext) -> None:
    for number in (0, 2):  # two layers that only normalise again
        layer = model.module.bert.encoder.layer[number]
        for part in (layer.attention.output.dense, layer.output.dense):
            part.weight.data.zero_()
            part.bias.data.zero_()
    model.module.classifier.weight.data.mul_(20)
    # On what the model itself is sure of, every layer that does something lowers the loss.
    texts = context.splits.validation.inputs
    rows = get_task(model.task).collate(model, get_task(model.task).encode(model, texts))
    with torch.inference_mode():
        logits = model.module(
            **{name: torch.from_numpy(each) for name, each in rows.items()}
        ).logits
    own = Split(texts, logits.argmax(-1).numpy())
    context = replace(context, splits=replace(context.splits, validation=own))
    result = run(DropLayers(num_layers=2, strategy="importance", examples=48), model, context)
    assert kept(result, model) == [1, 3]
    assert result.notes == ("kept layers 1, 3 of 4, dropped 0, 2",)
    before, after = result.metrics["loss_before_nats"], result.metrics["loss_after_nats"]
    assert after == pytest.approx(before, abs=1e-3)


def test_the_result_reloads_as_a_plain_checkpoint(
    model: TorchModel, context: PassContext, tmp_path: Path
) -> None:
    result = run(DropLayers(num_layers=2), model, context)
    result.model.save(tmp_path)
    assert not (tmp_path / "shapes.json").exists()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).state_dict()
    ours = result.model.module.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in plain.items())


def test_the_input_stays_untouched_and_the_result_repeats(
    model: TorchModel, context: PassContext
) -> None:
    before, config = model.clone().module.state_dict(), model.module.config.to_dict()
    step = DropLayers(num_layers=1, strategy="importance", examples=16)
    first, again = run(step, model, context), run(step, model, context)
    assert kept(first, model) == kept(again, model)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items()
    )
    assert model.module.config.to_dict() == config


@pytest.mark.parametrize("step", [DropLayers(num_layers=4), DropLayers(keep=(0, 1, 2, 3))])
def test_dropping_nothing_is_refused(
    model: TorchModel, context: PassContext, step: DropLayers
) -> None:
    with pytest.raises(PassError, match="nothing would be dropped") as error:
        step.requires(model, context)
    assert "at most 3" in str(error.value.fix)
    with pytest.raises(PassError, match="nothing would be dropped"):
        step.plan(Architecture.of(model.module))


def test_layers_that_do_not_exist_are_named(model: TorchModel) -> None:
    with pytest.raises(PassError, match=r"the model has no layers \[4\]"):
        DropLayers(keep=(0, 4)).plan(Architecture.of(model.module))


def test_a_model_of_another_kind_is_refused(model: TorchModel, context: PassContext) -> None:
    other = replace(model, module=torch.nn.Linear(2, 2))
    with pytest.raises(PassError, match="it has no layers to choose from"):
        DropLayers(num_layers=1).requires(other, context)


def test_another_number_of_layers_breaks_the_promise(
    model: TorchModel, context: PassContext
) -> None:
    with pytest.raises(PassError, match="planned number of layers"):
        DropLayers(num_layers=2).ensures(model, PassResult(model), context)
