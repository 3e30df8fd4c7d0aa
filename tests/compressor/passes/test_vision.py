"""Passes on networks that see: heads and neurons of transformers, channels of convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from transformers import AutoModelForImageClassification, RegNetConfig

from compressor.answering import answer
from compressor.architecture import Architecture, LayerShape
from compressor.data import Splits
from compressor.errors import PassError
from compressor.model import OnnxModel, TorchModel
from compressor.passes.base import Pass, PassContext, PassResult
from compressor.passes.distill import Distill
from compressor.passes.drop_layers import DropLayers
from compressor.passes.export import Export
from compressor.passes.finetune import Finetune
from compressor.passes.prune import Prune
from compressor.passes.quantize import Quantize
from compressor.pruning.channels import count_channels, prune_channels
from compressor.pruning.prune import mean_loss, sample_batches
from compressor.training.settings import DistillSettings
from targets.registry import get
from tests.compressor.test_sequence_to_sequence import lower

MakeVision = Callable[..., TorchModel]
TRANSFORMERS = ["vit", "deit", "dinov2"]
CONVOLUTIONS = ["resnet", "efficientnet-lite", "convnext"]
QUICK = {"epochs": 1, "batch_size": 32, "augmentation_copies": 1}


@pytest.fixture
def context(image_splits: Splits, tmp_path: Path) -> PassContext:
    def no_original() -> TorchModel:
        raise AssertionError

    return PassContext(image_splits, load_original=no_original, seed=3, folder=tmp_path / "work")


def run(step: Pass, model: TorchModel, context: PassContext) -> PassResult:
    before = {name: each.clone() for name, each in model.module.state_dict().items()}
    step.requires(model, context)
    result = step.run(model, context)
    step.ensures(model, result, context)
    after = model.module.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    return result


def widths(model: Any) -> dict[str, int]:
    return {
        name: part.out_channels
        for name, part in model.module.named_modules()
        if isinstance(part, nn.Conv2d)
    }


def logits(model: Any) -> torch.Tensor:
    pixels = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: torch.Tensor = model.module(pixels).logits
    return found


# Channels


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("importance", ["taylor", "magnitude", "random"])
@pytest.mark.parametrize("family", CONVOLUTIONS)
def test_channels_go_in_multiples_and_the_answers_keep_their_size(
    vision_model: MakeVision, context: PassContext, family: str, importance: Any, scope: Any
) -> None:
    model = vision_model(family)
    result = run(Prune(ratio=0.5, importance=importance, scope=scope), model, context)
    before, after = widths(model), widths(result.model)
    assert before.keys() == after.keys()
    assert all(after[name] <= before[name] and after[name] % 8 == 0 for name in before)
    if scope == "layer":
        assert sum(after.values()) == pytest.approx(0.5 * sum(before.values()), rel=0.15)
    assert logits(result.model).shape == (3, 3)
    metrics = result.metrics
    assert metrics["num_channels_before"] == count_channels(model.module) == sum(before.values())
    assert metrics["num_channels_after"] == sum(after.values()) < sum(before.values())
    assert metrics["num_parameters_after"] < metrics["num_parameters_before"]
    assert len(result.notes) == 1
    assert "M parameters -> " in result.notes[0]
    assert all(each.requires_grad for each in result.model.module.parameters())
    assert all(each.grad is None for each in result.model.module.parameters())
    assert not result.model.module.training


@pytest.mark.parametrize(("ratio", "kept"), [(0.25, 12), (0.5, 8), (0.75, 4)])
def test_groups_of_channels_lose_the_share_that_was_asked_for(
    vision_model: MakeVision, context: PassContext, ratio: float, kept: int
) -> None:
    """RegNet's convolutions read groups of 16 channels, of each of which the same share goes."""
    config = RegNetConfig(
        embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], groups_width=16, layer_type="x",
        id2label={0: "blue", 1: "green", 2: "red"}, architectures=[],
    )  # fmt: skip
    module = AutoModelForImageClassification.from_config(config).eval()
    model = replace(vision_model("resnet"), module=module)
    result = run(Prune(ratio=ratio, importance="magnitude"), model, context)
    grouped = [
        (part.groups, part.out_channels)
        for part in result.model.module.modules()
        if isinstance(part, nn.Conv2d) and part.groups > 1
    ]
    assert grouped == [(2, 2 * kept), (4, 4 * kept)]


@pytest.mark.parametrize("family", CONVOLUTIONS)
def test_a_pruned_network_comes_back_bit_equal(
    vision_model: MakeVision, context: PassContext, tmp_path: Path, family: str
) -> None:
    result = run(Prune(ratio=0.5), vision_model(family), context)
    result.model.save(tmp_path / "pruned")
    assert (tmp_path / "pruned" / "shapes.json").is_file()
    loaded = TorchModel.load(tmp_path / "pruned")
    before, after = result.model.module.state_dict(), loaded.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(loaded), logits(result.model))
    assert widths(loaded) == widths(result.model)
    architecture = Architecture.read(tmp_path / "pruned")
    assert architecture == Architecture.of(loaded.module)
    assert architecture.layers == ()
    again = run(Prune(ratio=0.3), loaded, context)  # and can be cut further
    assert again.metrics["num_channels_after"] < result.metrics["num_channels_after"]


def test_several_steps_reach_the_ratio_of_one(
    vision_model: MakeVision, context: PassContext
) -> None:
    model = vision_model("resnet")
    one = run(Prune(ratio=0.5, importance="magnitude"), model, context)
    two = run(Prune(ratio=0.5, importance="magnitude", steps=2), model, context)
    assert two.metrics["num_channels_after"] == pytest.approx(
        one.metrics["num_channels_after"], rel=0.2
    )


@pytest.mark.parametrize("importance", ["taylor", "random"])
def test_the_cut_repeats(vision_model: MakeVision, context: PassContext, importance: Any) -> None:
    model = vision_model("resnet")
    first, second = (run(Prune(ratio=0.5, importance=importance), model, context) for _ in "ab")
    states = [each.model.module.state_dict() for each in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.fixture(scope="module")
def trained(image_splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    """A network of convolutions that has learnt the colours."""
    from tests.compressor.conftest import make_vision

    model = make_vision("resnet")
    folder = tmp_path_factory.mktemp("trained")
    context = PassContext(image_splits, load_original=lambda: model, seed=0, folder=folder)
    settings = Finetune(epochs=12, batch_size=16, learning_rate=3e-3)
    found = settings.run(model, context).model
    assert isinstance(found, TorchModel)
    return found


def test_the_trained_network_knows_the_colours(trained: TorchModel, image_splits: Splits) -> None:
    found = answer(trained, image_splits.test)
    assert found.labels.tolist() == image_splits.test.labels.tolist()
    assert found.right.mean() > 0.9


def test_taylor_keeps_more_of_what_was_learnt_than_chance(
    trained: TorchModel, image_splits: Splits
) -> None:
    batches = sample_batches(trained, image_splits.train, num_rows=96, batch_size=8, seed=0)
    held_out = sample_batches(trained, image_splits.test, num_rows=36, batch_size=36, seed=0)

    def loss(importance: Any, seed: int) -> float:
        pruned = prune_channels(
            trained,
            0.5,
            batches,
            importance=importance,
            across_layers=False,
            multiple=1,
            refits=False,
            seed=seed,
        )
        return mean_loss(pruned, held_out)

    by_chance = sorted(loss("random", seed) for seed in range(5))
    assert loss("taylor", 0) < by_chance[2]


def test_a_network_that_cannot_be_traced_is_named(
    vision_model: MakeVision, context: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch_pruning

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no graph")

    monkeypatch.setattr(torch_pruning.DependencyGraph, "build_dependency", fail)
    with pytest.raises(PassError, match="dependencies between its layers were not found") as caught:
        run(Prune(ratio=0.5), vision_model("resnet"), context)
    error = caught.value
    assert (error.where, error.given) == (
        "ResNetForImageClassification",
        "RuntimeError: no graph",
    )
    assert error.fix == "leave the pass out"


def test_a_ratio_that_removes_nothing_is_an_error(
    vision_model: MakeVision, context: PassContext
) -> None:
    with pytest.raises(PassError, match="pruning removed no channel") as caught:
        run(Prune(ratio=0.01), vision_model("resnet"), context)
    assert caught.value.given == "ratio 0.01, multiples of 8"
    assert caught.value.fix == "raise the ratio, or leave the pass out"


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"heads": 0.5}, "heads"),
        ({"ratio": 0.5, "ffn": 0.2}, "ffn"),
        ({"ratio": 0.5, "hidden": 0.2}, "hidden"),
        ({"shape": ({"layer": 0, "heads": 1, "ffn": 8},)}, "shape"),
    ],
)
def test_settings_about_transformers_are_refused_before_the_run(
    vision_model: MakeVision, context: PassContext, settings: dict[str, Any], given: str
) -> None:
    model = vision_model("resnet")
    step = Prune.model_validate(settings)
    for check in (
        lambda: step.plan(Architecture.of(model.module)),
        lambda: step.requires(model, context),
    ):
        with pytest.raises(PassError, match="it has channels, but no heads or layers") as caught:
            check()
        assert (caught.value.where, caught.value.given) == ("prune", given)
        assert caught.value.fix == "set ratio alone, or leave the pass out"


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (DropLayers(num_layers=1), "it has no layers to choose from"),
        (DropLayers(keep=(0,)), "it has no layers to choose from"),
        (Distill(num_layers=1), "it has no layers to choose from"),
        (Distill(layers=(0, 1)), "it has no layers to choose from"),
        (Distill(hidden_weight=0.5), "it has no layers to compare"),
        (Distill(relation_weight=0.5), "it has no layers to compare"),
        (Distill(layer_map=((0, 0),)), "it has no layers to compare"),
        (Prune(ratio=0.5, recovery=DistillSettings(hidden_weight=2.0)), "no layers to compare"),
    ],
    ids=str,
)
def test_layers_of_a_network_of_convolutions_are_refused_before_the_run(
    vision_model: MakeVision, step: Pass, what: str
) -> None:
    with pytest.raises(PassError, match=what) as caught:
        step.plan(Architecture.of(vision_model("resnet").module))
    assert caught.value.given == "0 layers"
    assert str(caught.value.fix).startswith("leave the")


@pytest.mark.parametrize("family", CONVOLUTIONS)
def test_the_plan_of_channels_is_a_guess_that_is_near(
    vision_model: MakeVision, context: PassContext, family: str
) -> None:
    model = vision_model(family)
    planned = Prune(ratio=0.5).plan(Architecture.of(model.module))
    found = Architecture.of(run(Prune(ratio=0.5), model, context).model.module)
    assert planned.layers == found.layers == ()
    assert planned.num_parameters == pytest.approx(found.num_parameters, rel=0.8)
    assert planned.describe() == family


# Heads and neurons


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("importance", ["taylor", "magnitude", "random"])
def test_heads_and_neurons_of_vision_transformers_go(
    vision_model: MakeVision, context: PassContext, family: str, importance: Any
) -> None:
    model = vision_model(family)
    step = Prune(ratio=0.5, importance=importance)
    result = run(step, model, context)
    planned = step.plan(Architecture.of(model.module))
    found = Architecture.of(result.model.module)
    assert found == planned
    assert found.layers == (LayerShape(2, 32),) * 2
    assert found.hidden_size == 32
    assert found.num_parameters == result.model.num_parameters
    assert result.metrics["num_parameters_before"] == model.num_parameters
    assert logits(result.model).shape == (3, 3)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_pruned_vision_transformer_comes_back_bit_equal(
    vision_model: MakeVision, context: PassContext, tmp_path: Path, family: str
) -> None:
    result = run(Prune(ratio=0.5, scope="global"), vision_model(family), context)
    result.model.save(tmp_path / "pruned")
    loaded = TorchModel.load(tmp_path / "pruned")
    assert torch.equal(logits(loaded), logits(result.model))
    assert Architecture.read(tmp_path / "pruned") == Architecture.of(result.model.module)


def test_heads_that_do_nothing_are_the_first_to_go(
    vision_model: MakeVision, context: PassContext
) -> None:
    model = vision_model("vit")
    with torch.no_grad():  # what nobody reads does not matter
        for layer in model.module.vit.layers:
            layer.attention.o_proj.weight[:, 8:24] = 0
    result = run(Prune(heads=0.5, ffn=0.0), model, context)
    torch.testing.assert_close(logits(result.model), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_the_residual_stream_stays_as_wide_as_it_is(
    vision_model: MakeVision, context: PassContext, family: str
) -> None:
    model = vision_model(family)
    step = Prune(hidden=0.25)
    for check in (
        lambda: step.plan(Architecture.of(model.module)),
        lambda: step.requires(model, context),
    ):
        with pytest.raises(PassError, match="narrowed only in text encoders") as caught:
            check()
        assert caught.value.given == f"0.25, model_type {family}"
        assert caught.value.fix == "leave hidden at 0"


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("strategy", ["spread", "first", "importance"])
def test_layers_of_vision_transformers_are_dropped(
    vision_model: MakeVision, context: PassContext, tmp_path: Path, family: str, strategy: Any
) -> None:
    result = run(DropLayers(num_layers=1, strategy=strategy), vision_model(family), context)
    assert len(Architecture.of(result.model.module).layers) == 1
    result.model.save(tmp_path / "model")
    assert torch.equal(logits(TorchModel.load(tmp_path / "model")), logits(result.model))


# Distillation


@pytest.mark.parametrize("family", ["vit", "dinov2", "resnet", "efficientnet-lite"])
def test_a_student_comes_nearer_to_its_teacher(
    vision_model: MakeVision, image_splits: Splits, tmp_path: Path, family: str
) -> None:
    teacher, student = vision_model(family, seed=1), vision_model(family, seed=2)
    context = PassContext(image_splits, load_original=teacher.clone, seed=0, folder=tmp_path)
    step = Distill(**{**QUICK, "epochs": 3}, labels_weight=0.0, learning_rate=3e-3)
    result = run(step, student, context)

    def distance(model: Any) -> float:
        (batch,) = sample_batches(model, image_splits.test, num_rows=36, batch_size=36, seed=0)
        with torch.no_grad():
            ours, theirs = (each.module(batch["pixel_values"]).logits for each in (model, teacher))
        return float((ours.softmax(-1) - theirs.softmax(-1)).abs().mean())

    assert distance(result.model) < 0.7 * distance(student)


def test_a_student_of_fewer_layers_learns_from_where_they_were(
    vision_model: MakeVision, image_splits: Splits, tmp_path: Path
) -> None:
    model = vision_model("vit")
    context = PassContext(image_splits, load_original=model.clone, seed=0, folder=tmp_path)
    step = Distill(**QUICK, num_layers=1, relation_weight=0.1, relation_heads=4)
    result = run(step, model, context)
    assert len(Architecture.of(result.model.module).layers) == 1
    assert result.notes == ("the student keeps layers 1 of 2",)


def test_training_from_memory_and_live_is_the_same(
    vision_model: MakeVision, image_splits: Splits, tmp_path: Path
) -> None:
    model = vision_model("vit")
    found = []
    for memory in (0, 64):
        folder = tmp_path / str(memory)
        context = PassContext(image_splits, load_original=model.clone, seed=0, folder=folder)
        step = Distill(**QUICK, num_layers=1, cache_mib=memory)
        found.append(run(step, model, context).model)
    torch.testing.assert_close(logits(found[0]), logits(found[1]), rtol=5e-3, atol=5e-3)


def test_pruned_channels_recover(trained: TorchModel, image_splits: Splits, tmp_path: Path) -> None:
    context = PassContext(image_splits, load_original=trained.clone, seed=0, folder=tmp_path)
    recovery = DistillSettings(**{**QUICK, "epochs": 4}, learning_rate=3e-3)
    cut = run(Prune(ratio=0.5), trained, context)
    recovered = run(Prune(ratio=0.5, recovery=recovery), trained, context)
    held_out = sample_batches(trained, image_splits.test, num_rows=36, batch_size=36, seed=0)
    assert isinstance(cut.model, TorchModel)
    assert isinstance(recovered.model, TorchModel)
    assert mean_loss(recovered.model, held_out) < mean_loss(cut.model, held_out)
    assert {entry["prune_step"] for entry in recovered.history} == {1}


def test_an_int8_network_is_asked_before_it_is_lowered(
    vision_model: MakeVision, context: PassContext, image_splits: Splits
) -> None:
    """The optimizer of ONNX Runtime refuses what it makes of a convolution with int8 inputs."""
    model = vision_model("vit")
    exported = Export().run(model, context).model
    folder = context.folder.parent / "int8"
    folder.mkdir()
    quantized = Quantize(method="static").run(exported, replace(context, folder=folder)).model
    expected, found = (answer(each, image_splits.test) for each in (model, quantized))
    assert (found.labels == expected.labels).mean() > 0.8


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("family", [*TRANSFORMERS, *CONVOLUTIONS])
def test_integers_give_on_every_target_what_they_give_by_the_book(
    vision_model: MakeVision, context: PassContext, family: str, target: str, tmp_path: Path
) -> None:
    exported = Export().run(vision_model(family), context).model
    folder = tmp_path / "quantize"
    folder.mkdir()
    model = (
        Quantize(method="static", weight_bits=7)
        .run(exported, replace(context, folder=folder))
        .model
    )
    assert isinstance(model, OnnxModel)
    feeds = {"pixel_values": np.random.default_rng(0).random((3, 3, 16, 16), np.float32)}
    [expected] = ReferenceEvaluator(str(model.path)).run(None, feeds)
    session = get(target).load(lower(model, tmp_path / "bundle", target, model.folder), threads=1)
    found = session.run(feeds)["logits"]
    session.close()
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
