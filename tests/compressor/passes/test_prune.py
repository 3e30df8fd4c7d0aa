from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from compressor.architecture import Architecture, LayerShape
from compressor.data import Splits
from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.passes.base import PassContext, PassResult
from compressor.passes.prune import Prune
from compressor.pruning.layers import select_layers
from compressor.pruning.planning import KeptLayer, plan_shape
from compressor.pruning.prune import sample_batches
from compressor.training import distillation
from compressor.training.loop import TrainingResult
from compressor.training.settings import DistillSettings
from tests.compressor.conftest import make_image_splits, make_vision
from tests.compressor.decoders import make_decoder, plain_splits
from tests.compressor.detection import NAMES, make_network, make_scenes
from tests.compressor.tasks.test_time_series_classification import make as make_series
from tests.compressor.tasks.test_time_series_classification import make_splits as series_splits

MakeModel = Callable[..., TorchModel]
SCENES = make_scenes(4, 1)
RECOVERY = DistillSettings(epochs=1, batch_size=32, augmentation=0.0, augmentation_copies=None)


@pytest.fixture
def model(word_model: MakeModel) -> TorchModel:
    return word_model()


@pytest.fixture
def context(model: TorchModel, word_splits: Splits, tmp_path: Path) -> PassContext:
    return PassContext(word_splits, load_original=lambda: model.clone(), seed=3, folder=tmp_path)


def state(model: TorchModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def run(step: Prune, model: TorchModel, context: PassContext) -> PassResult:
    step.requires(model, context)
    result = step.run(model, context)
    step.ensures(model, result, context)
    return result


OTHER_FAMILIES: dict[str, Callable[[], tuple[TorchModel, Splits]]] = {
    **{
        family: partial(lambda family: (make_vision(family), make_image_splits()), family)
        for family in ("vit", "deit", "dinov2")
    },
    **{
        family: partial(lambda family: (make_decoder(family), plain_splits()), family)
        for family in ("llama", "qwen2")
    },
    "yolos": lambda: (make_network("yolos-middle"), Splits(SCENES, SCENES, SCENES, NAMES)),
    "patchtst": lambda: (make_series("patchtst"), series_splits()),
}


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_families_with_more_in_a_layer_than_is_counted_reach_a_shape(
    family: str, tmp_path: Path
) -> None:
    """Scales, norms with buffers, positions and biases that go with layers and heads."""
    model, splits = OTHER_FAMILIES[family]()
    context = PassContext(splits, load_original=lambda: model, seed=0, folder=tmp_path)
    architecture = Architecture.of(model.module)
    last = len(architecture.layers) - 1
    kept = KeptLayer(layer=last, heads=architecture.layers[last].num_heads // 2, ffn=24)
    step = Prune(shape=(kept,), importance="random")
    found = run(step, model, context).model
    assert isinstance(found, TorchModel)
    assert Architecture.of(found.module).layers == (LayerShape(kept.heads, kept.ffn),)


@pytest.mark.parametrize("settings", [{}, {"heads": 0.0}, {"heads": 0.0, "ffn": 0.0}])
def test_pruning_nothing_is_an_error(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="nothing to prune: set ratio, or heads"):
        Prune(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.5, "heads": 0.5, "ffn": 0.5}, "ratio has no effect"),
        ({"ratio": 0.5, "importance": "magnitude", "examples": 64}, "examples has no effect"),
        ({"ratio": 1.0}, "less than 1"),
        ({"ratio": 0.0}, "greater than 0"),
        ({"ratio": 0.5, "steps": 0}, "greater than or equal to 1"),
        (
            {"ratio": 0.5, "importance": "hessian"},
            "'taylor', 'second-order', 'magnitude' or 'random'",
        ),
        ({"ratio": 0.5, "ration": 0.5}, "Extra inputs"),
    ],
)
def test_settings_without_effect_or_out_of_range_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Prune(**settings)


def test_ratio_stands_for_heads_and_ffn_unless_they_are_given() -> None:
    assert Prune(ratio=0.3) != Prune(ratio=0.5)
    assert (Prune(ratio=0.3).ratios.heads, Prune(ratio=0.3).ratios.ffn) == (0.3, 0.3)
    mixed = Prune(ratio=0.3, heads=0.0).ratios
    assert (mixed.heads, mixed.ffn, mixed.hidden) == (0.0, 0.3, 0.0)


def test_settings_survive_a_round_trip() -> None:
    step = Prune(ratio=0.5, importance="magnitude", steps=3, recovery=RECOVERY)
    assert Prune.model_validate(step.settings()) == step


def test_planning_imports_no_torch() -> None:
    code = "import sys, compressor.passes.prune, compressor.passes.drop_layers as d\n"
    code += "sys.exit(any(n in sys.modules for n in ('torch', 'transformers', 'torch_pruning')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_plan_names_the_layer_that_would_lose_all_heads(model: TorchModel) -> None:
    architecture = Architecture.of(model.module)
    with pytest.raises(PassError, match="layer 0 has 4 heads") as error:
        Prune(heads=0.9).plan(architecture)
    assert error.value.fix == "use at most 0.75"
    Prune(heads=0.75).plan(architecture)


@pytest.mark.parametrize("importance", ["taylor", "magnitude", "random"])
def test_the_result_has_the_planned_sizes(
    model: TorchModel, context: PassContext, importance: Any
) -> None:
    step = Prune(ratio=0.5, hidden=0.25, importance=importance)
    result = run(step, model, context)
    planned = step.plan(Architecture.of(model.module))
    assert planned.layers == (LayerShape(2, 32),) * 2
    assert planned.hidden_size == 24
    assert Architecture.of(result.model.module) == planned
    metrics = result.metrics
    assert metrics["num_parameters_before"] == model.num_parameters
    assert metrics["num_parameters_after"] == result.model.num_parameters
    assert (metrics["num_heads_before"], metrics["num_heads_after"]) == (8, 4)
    assert (metrics["num_ffn_neurons_before"], metrics["num_ffn_neurons_after"]) == (128, 64)
    assert (metrics["hidden_size_before"], metrics["hidden_size_after"]) == (32, 24)


def test_layers_that_compete_share_out_the_planned_totals(
    model: TorchModel, context: PassContext
) -> None:
    layer = model.module.bert.encoder.layer[0]
    with torch.no_grad():  # what a layer without output computes does not matter
        layer.attention.output.dense.weight.zero_()
        layer.output.dense.weight.zero_()
    result = run(Prune(ratio=0.5, scope="global"), model, context)
    layers = Architecture.of(result.model.module).layers
    assert layers == (LayerShape(1, 8), LayerShape(3, 56))


def test_the_result_reloads_bit_equal(
    model: TorchModel, context: PassContext, tmp_path: Path
) -> None:
    result = run(Prune(ratio=0.5, scope="global"), model, context)
    result.model.save(tmp_path / "saved")
    loaded = TorchModel.load(tmp_path / "saved")
    assert same(state(result.model), state(loaded))
    assert Architecture.read(tmp_path / "saved") == Architecture.of(result.model.module)


@pytest.mark.parametrize("importance", ["taylor", "random"])
def test_the_input_stays_untouched_and_the_result_repeats(
    model: TorchModel, context: PassContext, importance: Any
) -> None:
    before, config = state(model), model.module.config.to_dict()
    step = Prune(ratio=0.5, importance=importance)
    first, again = run(step, model, context), run(step, model, context)
    assert same(before, state(model))
    assert model.module.config.to_dict() == config
    assert same(state(first.model), state(again.model))


def test_another_seed_chooses_other_units_at_random(
    model: TorchModel, context: PassContext
) -> None:
    step = Prune(ratio=0.5, importance="random")
    other = run(step, model, replace(context, seed=4))
    assert not same(state(run(step, model, context).model), state(other.model))


def test_rounding_is_noted(model: TorchModel, context: PassContext) -> None:
    result = run(Prune(ratio=0.4), model, context)
    assert result.notes == (
        "2 layers x 4 heads x 64 FFN, hidden 32, vocabulary 29 -> "
        "2 layers x 2 heads x 40 FFN, hidden 32, vocabulary 29",
        "heads: 50.0% removed instead of 40.0%, rounded to whole heads and multiples of 8",
        "feed-forward neurons: 37.5% removed instead of 40.0%, "
        "rounded to whole heads and multiples of 8",
    )
    assert len(run(Prune(ratio=0.5), model, context).notes) == 1


def test_widths_are_rounded_to_what_the_targets_run_best(
    model: TorchModel, context: PassContext
) -> None:
    result = run(Prune(ffn=0.4), model, replace(context, width_multiple=32))
    assert Architecture.of(result.model.module).layers == (LayerShape(4, 32),) * 2


def test_steps_end_at_the_planned_sizes(model: TorchModel, context: PassContext) -> None:
    reported: list[float] = []
    telling = replace(context, progress=lambda fraction, line: reported.append(fraction))
    step = Prune(ratio=0.75, steps=3)
    result = run(step, model, telling)
    assert Architecture.of(result.model.module) == step.plan(Architecture.of(model.module))
    assert reported == sorted(reported)
    assert reported[-1] == pytest.approx(1.0)


SHAPE = ({"layer": 1, "heads": 3, "ffn": 24},)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_shape_is_reached_exactly_and_other_layers_are_dropped(
    model: TorchModel, context: PassContext, steps: int
) -> None:
    step = Prune(shape=SHAPE, steps=steps)
    result = run(step, model, context)
    found = Architecture.of(result.model.module)
    assert found.layers == (LayerShape(3, 24),)
    assert found == step.plan(Architecture.of(model.module))
    assert result.notes[0].endswith(found.describe())


def test_a_whole_shape_leaves_the_model_as_it_was(model: TorchModel, context: PassContext) -> None:
    whole = tuple({"layer": layer, "heads": 4, "ffn": 64} for layer in (0, 1))
    result = run(Prune(shape=whole), model, context)
    assert same(state(result.model), state(model))


def test_each_layer_keeps_the_units_that_matter_most_while_all_layers_are_there(
    model: TorchModel, context: PassContext
) -> None:
    wanted = [0, 2, *range(10, 32)]
    with torch.no_grad():
        for neuron in set(range(64)) - set(wanted):
            model.module.bert.encoder.layer[1].intermediate.dense.weight[neuron] = 0
            model.module.bert.encoder.layer[1].output.dense.weight[:, neuron] = 0
    result = run(Prune(shape=SHAPE, importance="magnitude"), model, context)
    kept = result.model.module.bert.encoder.layer[0].intermediate.dense.weight
    before = model.module.bert.encoder.layer[1].intermediate.dense.weight
    assert torch.equal(kept, before[wanted])


def test_a_shape_on_the_way_takes_equal_shares_and_ends_exactly() -> None:
    whole = Architecture("bert", (LayerShape(12, 1536),) * 6, 32, 384, 1000, 2, 512)
    kept = (KeptLayer(layer=2, heads=3, ffn=100), KeptLayer(layer=5, heads=12, ffn=1536))
    sizes = [plan_shape(whole, kept, step=step, num_steps=2, multiple=8).layers for step in (1, 2)]
    assert sizes == [
        (LayerShape(6, 392), LayerShape(12, 1536)),
        (LayerShape(3, 100), LayerShape(12, 1536)),
    ]


@pytest.mark.parametrize(
    ("shape", "message", "fix"),
    [
        ({"layer": 2, "heads": 1, "ffn": 8}, "no layer 2", "name layers from 0 to 1"),
        (
            {"layer": 1, "heads": 5, "ffn": 8},
            "shape keeps more of layer 1",
            "keep at most 4 heads and 64",
        ),
        (
            {"layer": 1, "heads": 1, "ffn": 65},
            "shape keeps more of layer 1",
            "keep at most 4 heads and 64",
        ),
    ],
)
def test_a_shape_that_the_model_cannot_have_is_refused(
    model: TorchModel, shape: dict[str, int], message: str, fix: str
) -> None:
    with pytest.raises(PassError, match=message) as error:
        Prune(shape=(shape,)).plan(Architecture.of(model.module))
    assert fix in str(error.value.fix)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": ()}, "in ascending order, each once"),
        ({"shape": (*SHAPE, *SHAPE)}, "in ascending order, each once"),
        ({"shape": SHAPE, "ratio": 0.5}, "replaces ratio, heads, ffn and hidden"),
        ({"shape": SHAPE, "scope": "global"}, "scope global has no effect"),
        ({"shape": ({"layer": 0, "heads": 0, "ffn": 8},)}, "greater than or equal to 1"),
    ],
)
def test_a_shape_that_contradicts_itself_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Prune(**settings)


def test_a_model_of_another_kind_is_refused(model: TorchModel, context: PassContext) -> None:
    config = DebertaV2Config(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
    )
    other = replace(model, module=DebertaV2ForSequenceClassification(config))
    with pytest.raises(PassError, match="not a BERT-like encoder: its layers were not") as caught:
        Prune(ratio=0.5).requires(other, context)
    assert caught.value.where == "DebertaV2ForSequenceClassification"
    assert caught.value.given == "model_type deberta-v2"


def test_outputs_that_are_not_finite_break_the_promise(
    model: TorchModel, context: PassContext
) -> None:
    step = Prune(ratio=0.5)
    result = step.run(model, context)
    result.model.module.classifier.bias.data[0] = float("nan")
    with pytest.raises(PassError, match="not finite"):
        step.ensures(model, result, context)


def test_other_sizes_than_planned_break_the_promise(
    model: TorchModel, context: PassContext
) -> None:
    result = PassResult(model)
    for scope in ("layer", "global"):
        with pytest.raises(PassError, match="did not reach the planned sizes"):
            Prune(ratio=0.5, scope=scope).ensures(model, result, context)


def test_recovery_brings_the_pruned_model_nearer_to_the_original(
    model: TorchModel, context: PassContext
) -> None:
    settings = RECOVERY.model_copy(
        update={"epochs": 6, "learning_rate": 1e-3, "labels_weight": 0.0}
    )
    cut = run(Prune(ratio=0.5), model, context)
    result = run(Prune(ratio=0.5, steps=2, recovery=settings), model, context)
    (batch,) = sample_batches(model, context.splits.validation, num_rows=48, batch_size=48, seed=0)
    batch.pop("labels")
    with torch.inference_mode():
        wanted, without, recovered = (
            each.module(**batch).logits.softmax(-1) for each in (model, cut.model, result.model)
        )
    assert (recovered - wanted).abs().mean() < 0.7 * (without - wanted).abs().mean()
    assert {entry["prune_step"] for entry in result.history} == {1, 2}


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [((1, 2, 3), ((0, 1), (1, 3))), ((0, 1, 2, 3), ((0, 0), (1, 2)))],
)
def test_a_shape_of_a_model_that_lost_layers_learns_from_an_even_spread(
    word_model: MakeModel,
    word_splits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layers: tuple[int, ...],
    pairs: tuple[tuple[int, int], ...],
) -> None:
    """Numbers of its own layers are not those of the untouched model."""
    whole = word_model(num_layers=4)
    model = replace(whole, module=select_layers(whole.module, layers))
    context = PassContext(word_splits, lambda: whole, 0, tmp_path)
    seen: list[Any] = []

    def watch(student: TorchModel, *_: Any, layer_map: Any, **__: Any) -> Any:
        seen.append(layer_map)
        return TrainingResult(student, (), {})

    monkeypatch.setattr(distillation, "distill", watch)
    shape = tuple(KeptLayer(layer=number, heads=2, ffn=16) for number in (0, 2))
    run(Prune(shape=shape, recovery=RECOVERY), model, context)
    assert seen == [pairs]


class StoppedError(Exception):
    pass


def test_finished_steps_are_not_redone_after_an_interruption(
    model: TorchModel, context: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    broken = True
    genuine = distillation.distill

    def distill(*args: Any, folder: Path, **kwargs: Any) -> Any:
        calls.append(folder)
        if broken and len(calls) == 3:
            raise StoppedError
        return genuine(*args, folder=folder, **kwargs)

    monkeypatch.setattr(distillation, "distill", distill)
    step = Prune(ratio=0.75, steps=3, recovery=RECOVERY)
    with pytest.raises(StoppedError):
        step.run(model, context)
    broken = False
    resumed = step.run(model, context)
    names = [folder.relative_to(context.folder).parts[0] for folder in calls]
    assert names == ["step-1", "step-2", "step-3", "step-3"]
    whole = step.run(model, replace(context, folder=context.folder / "anew"))
    assert same(state(resumed.model), state(whole.model))
    assert resumed.history == whole.history


def test_a_step_that_was_half_written_is_made_anew(model: TorchModel, context: PassContext) -> None:
    unfinished = context.folder / "step-1" / "unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "config.json").write_text("{")
    step = Prune(ratio=0.5, recovery=RECOVERY)
    again = run(step, model, context)
    whole = run(step, model, replace(context, folder=context.folder / "anew"))
    assert same(state(again.model), state(whole.model))
