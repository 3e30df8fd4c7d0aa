import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from compressor.architecture import Architecture, LayerShape
from compressor.errors import PassError
from compressor.passes import PassContext, available_passes
from compressor.passes.distill import Distill
from compressor.training import distillation

QUICK = {"epochs": 1, "batch_size": 32, "augmentation_copies": 1}


@pytest.fixture
def context(word_splits, word_model, tmp_path):
    return PassContext(
        splits=word_splits,
        load_original=lambda: word_model(num_layers=4, seed=1),
        seed=0,
        folder=tmp_path,
    )


@pytest.fixture
def maps(monkeypatch):
    """The layer maps with which distill was called."""
    seen = []
    original = distillation.distill

    def spy(*arguments, layer_map, **keywords):
        seen.append(layer_map)
        return original(*arguments, layer_map=layer_map, **keywords)

    monkeypatch.setattr(distillation, "distill", spy)
    return seen


def test_discovery_finds_it():
    assert available_passes()["distill"] is Distill


def test_naming_it_imports_no_torch():
    code = "import sys, compressor.passes.distill, compressor.passes.finetune; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_student_keeps_the_layers_it_is_given_and_learns_from_where_they_were(
    context, word_model, maps
):
    model = word_model(num_layers=4, seed=1)
    result = Distill(layers=(0, 3), **QUICK).run(model, context)
    assert len(result.model.module.bert.encoder.layer) == 2
    assert result.model.module.config.num_hidden_layers == 2
    assert len(model.module.bert.encoder.layer) == 4
    assert maps == [((0, 0), (1, 3))]
    assert result.notes == ("the student keeps layers 0, 3 of 4",)


def test_number_of_layers_spreads_them(context, word_model, maps):
    Distill(num_layers=2, **QUICK).run(word_model(num_layers=4, seed=1), context)
    assert maps == [((0, 1), (1, 3))]


def test_student_of_dropped_layers_gets_an_even_map(context, word_model):
    model = word_model(num_layers=2, seed=1)
    result = Distill(**QUICK).run(model, context)
    explicit = Distill(layer_map=((0, 1), (1, 3)), **QUICK).run(model, context)
    first, second = (each.model.module.state_dict() for each in (result, explicit))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_explicit_map_is_passed_on(context, word_model, maps):
    model = word_model(num_layers=4, seed=1)
    Distill(num_layers=1, layer_map=((0, 2),), **QUICK).run(model, context)
    assert maps == [((0, 2),)]


def architecture(num_layers):
    layers = tuple(LayerShape(num_heads=4 - index % 2, ffn_width=64) for index in range(num_layers))
    return Architecture(
        family="bert",
        layers=layers,
        head_size=8,
        hidden_size=32,
        vocabulary_size=29,
        num_labels=3,
        max_positions=32,
    )


def test_plan_tells_the_layers_of_the_student():
    before = architecture(4)
    assert Distill().plan(before) == before
    assert Distill(layers=(0, 3)).plan(before).layers == (before.layers[0], before.layers[3])
    assert Distill(num_layers=2).plan(before).layers == (before.layers[1], before.layers[3])


def test_plan_agrees_with_the_run(context, word_model):
    model = word_model(num_layers=4, seed=1)
    settings = Distill(num_layers=3, **QUICK)
    planned = settings.plan(Architecture.of(model.module))
    assert planned == Architecture.of(settings.run(model, context).model.module)


@pytest.mark.parametrize("wrong", [{"num_layers": 5}, {"layers": (0, 4)}, {"layers": (1, 0)}])
def test_layers_that_are_not_there_are_refused_before_the_run(wrong):
    with pytest.raises(PassError) as caught:
        Distill(**wrong).plan(architecture(4))
    assert caught.value.fix


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_layers": 2, "layers": (0, 1)}, "exclude each other"),
        ({"layer_map": ((0, 0),), "hidden_weight": 0}, "layer_map has no effect"),
        ({"logits_weight": 0, "labels_weight": 0, "hidden_weight": 0}, "all weights"),
        ({"temperature": 0}, "greater than 0"),
        ({"temperatur": 2}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_hold_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Distill(**wrong)


def test_settings_survive_a_round_trip():
    settings = Distill(layers=(0, 2), layer_map=((0, 1),), augmentation=0.2)
    assert Distill.model_validate(settings.settings()) == settings
