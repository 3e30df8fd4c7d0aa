"""The pass merge_tokens: patches of vision transformers, against the paper's rule in numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor
from transformers import (
    ASTConfig,
    AutoModelForImageClassification,
    Data2VecVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    PatchTSTConfig,
    Wav2Vec2Config,
    YolosConfig,
)

from compressor.architecture import Architecture, _from_config
from compressor.data import Splits
from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.passes.base import PassContext, PassResult
from compressor.passes.distill import Distill
from compressor.passes.drop_layers import DropLayers
from compressor.passes.export import Export
from compressor.passes.merge_tokens import MergeTokens
from compressor.passes.prune import Prune
from compressor.tasks import get_task
from compressor.training.finetuning import new_classifier
from targets.encoder import layer_stacks
from targets.errors import CheckpointError
from targets.networks.token_merging import TokenMerging, merged_tokens
from targets.shapes import SHAPES_FILE, MergedTokens
from tests.compressor.writers import make_writer

MakeVision = Callable[..., TorchModel]
FAMILIES = {"vit": 1, "deit": 2, "dinov2": 1}
"""Family -> tokens before those of the patches."""


@pytest.fixture
def context(image_splits: Splits, tmp_path: Path) -> PassContext:
    def no_original() -> TorchModel:
        raise AssertionError

    return PassContext(image_splits, load_original=no_original, seed=3, folder=tmp_path / "work")


def run(step: MergeTokens, model: TorchModel, context: PassContext) -> PassResult:
    step.requires(model, context)
    result = step.run(model, context)
    step.ensures(model, result, context)
    return result


def of_config(config: Any, vision_model: MakeVision) -> TorchModel:
    """A random classifier of another family, that reads as the others do."""
    module = AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    return replace(vision_model("vit"), module=module.eval())


def pixels(count: int = 4, size: int = 16) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(1))


def by_the_paper(states: NDArray[np.float64], num_first: int, count: int) -> NDArray[np.float64]:
    """Bipartite soft matching, one patch at a time; sorted, for the order of patches is free."""
    first, patches = states[:num_first], states[num_first:]
    ours, others = patches[::2], patches[1::2]
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (ours, others)]
    likeness = unit[0] @ unit[1].T
    going = np.argsort(-likeness.max(axis=1))[:count]
    groups = [[each] for each in others]
    for number in going:
        groups[likeness[number].argmax()].append(ours[number])
    left = [each for number, each in enumerate(ours) if number not in going]
    return np.array([*first, *sorted([*left, *(np.mean(g, axis=0) for g in groups)], key=tuple)])


@pytest.mark.parametrize(("tokens", "count"), [(9, 1), (9, 4), (10, 4), (17, 8)])
@pytest.mark.parametrize("num_first", [0, 1, 2])
def test_the_patches_most_alike_become_their_mean(tokens: int, count: int, num_first: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    states = torch.randn((3, tokens + num_first, 5), generator=generator, dtype=torch.float64)
    found = TokenMerging(num_first, count)(states).numpy()
    assert found.shape == (3, tokens + num_first - count, 5)
    for row, given in zip(found, states.numpy(), strict=True):
        sorted_row = np.array([*row[:num_first], *sorted(row[num_first:], key=tuple)])
        np.testing.assert_allclose(sorted_row, by_the_paper(given, num_first, count), atol=1e-12)


def test_copies_of_patches_are_merged_first_and_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn((1, 4, 8), generator=generator).repeat_interleave(2, dim=1)
    states = torch.cat([torch.zeros((1, 1, 8)), patches], dim=1)
    found = TokenMerging(1, 4)(states)
    assert torch.allclose(found[0, 1:], patches[0, ::2])


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_read_fewer_tokens(
    vision_model: MakeVision, context: PassContext, family: str
) -> None:
    model = vision_model(family)
    result = run(MergeTokens(ratio=0.5), model, context)
    merged = result.model
    assert isinstance(merged, TorchModel)
    assert merged_tokens(model.module) is None
    assert merged_tokens(merged.module) == MergedTokens(FAMILIES[family], (8, 0))
    lengths: list[int] = []
    (stack,) = layer_stacks(merged.module)
    for layer in stack:
        layer.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    with torch.no_grad():
        assert merged.module(pixels()).logits.shape == (4, 3)
    assert lengths == [16 + FAMILIES[family], 8 + FAMILIES[family]]
    assert result.metrics["num_patches_before"] == 16
    assert result.metrics["num_patches_after"] == 8
    first = FAMILIES[family]
    assert result.metrics["mean_share_of_tokens"] == pytest.approx((12 + first) / (16 + first))


def test_registers_are_no_patches(vision_model: MakeVision, context: PassContext) -> None:
    config = Dinov2WithRegistersConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        num_register_tokens=4,
        num_labels=3,
    )
    model = of_config(config, vision_model)
    merged = run(MergeTokens(ratio=0.5), model, context).model
    assert merged_tokens(merged.module) == MergedTokens(5, (4, 4, 0))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("step", "counts"),
    [
        (MergeTokens(ratio=0.5), (4, 4, 3, 4, 0)),
        (MergeTokens(ratio=0.5, first_layer=2), (0, 0, 8, 7, 0)),
        (MergeTokens(ratio=0.7), (5, 5, 6, 5, 0)),
        (MergeTokens(ratio=0.04), (0, 0, 1, 0, 0)),
    ],
    ids=str,
)
def test_the_same_number_goes_behind_each_layer(step: MergeTokens, counts: Any) -> None:
    assert step.counts(30, 5) == counts
    assert sum(counts) == round(30 * step.ratio)


def test_what_is_merged_comes_back_and_runs_as_it_is_exported(
    vision_model: MakeVision, context: PassContext, tmp_path: Path
) -> None:
    merged: Any = run(MergeTokens(ratio=0.5), vision_model("dinov2"), context).model
    with torch.no_grad():
        expected = merged.module(pixels()).logits
    merged.save(tmp_path / "saved")
    again = TorchModel.load(tmp_path / "saved")
    assert merged_tokens(again.module) == merged_tokens(merged.module)
    with torch.no_grad():
        assert torch.equal(again.module(pixels()).logits, expected)
        assert torch.equal(again.clone().module(pixels()).logits, expected)
    again.save(tmp_path / "twice")
    manifests = [(tmp_path / each / SHAPES_FILE).read_text() for each in ("saved", "twice")]
    assert manifests[0] == manifests[1]

    from targets.runtimes.onnxruntime import create_session

    (tmp_path / "onnx").mkdir()
    exported: Any = Export().run(merged, replace(context, folder=tmp_path / "onnx")).model
    for count in (1, 4):
        feeds = {"pixel_values": pixels()[:count].numpy()}
        [found] = create_session(exported.path).run(None, feeds)
        np.testing.assert_allclose(found, expected[:count].numpy(), atol=1e-4)


def test_other_passes_go_on_from_there(
    vision_model: MakeVision, context: PassContext, image_splits: Splits
) -> None:
    original = vision_model("vit")
    merged: Any = run(MergeTokens(ratio=0.5), original, context).model
    pruned: Any = Prune(ratio=0.5, importance="second-order", refit=True).run(merged, context).model
    assert merged_tokens(pruned.module) == merged_tokens(merged.module)
    teaching = replace(context, load_original=original.clone)
    settings = Distill(epochs=1, batch_size=16)
    settings.requires(pruned, teaching)
    trained: Any = settings.run(pruned, teaching).model
    assert merged_tokens(trained.module) == merged_tokens(merged.module)
    asked = Distill(epochs=1, batch_size=16, hidden_weight=2)
    with pytest.raises(PassError, match="into different numbers of parts"):
        asked.run(pruned, teaching)
    fewer: Any = DropLayers(keep=(0,)).run(merged, context).model
    assert merged_tokens(fewer.module) is None, "no layer would read fewer"
    task = get_task(fewer.task)
    batch = task.collate(fewer, task.encode(fewer, image_splits.test.inputs[:2]))
    with torch.no_grad():
        feeds = {name: torch.from_numpy(each) for name, each in batch.items()}
        assert fewer.module(**feeds).logits.shape == (2, 3)


def test_patches_are_those_of_the_images_and_not_of_the_config(
    vision_model: MakeVision, context: PassContext
) -> None:
    model = vision_model("dinov2", size=24)  # its positions are interpolated
    result = run(MergeTokens(ratio=0.5), model, context)
    assert result.metrics["num_patches_before"] == 36
    assert merged_tokens(result.model.module) == MergedTokens(1, (18, 0))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "what", "where", "given", "fix"),
    [
        (
            {"ratio": 0.02},
            "none of the 16 patches would be merged",
            "merge_tokens.ratio",
            "0.02",
            "set ratio to 0.062 or more, or leave the pass out",
        ),
        (
            {"ratio": 0.7},
            "of 16 patches, more than half of those left would be merged after a single one of 1 "
            "layers",
            "merge_tokens.ratio",
            "0.7",
            "lower the ratio",
        ),
        (
            {"ratio": 0.5, "first_layer": 1},
            "the network has 2 layers: merging must begin before the last one to have an effect",
            "merge_tokens.first_layer",
            "1",
            "use at most 0",
        ),
    ],
    ids=["nothing", "too much", "too late"],
)
def test_settings_that_do_not_fit(
    vision_model: MakeVision,
    context: PassContext,
    settings: dict[str, Any],
    what: str,
    where: str,
    given: str,
    fix: str,
) -> None:
    with pytest.raises(PassError) as caught:
        run(MergeTokens(**settings), vision_model("vit"), context)
    error = caught.value
    assert (error.what, error.where, error.given, error.fix) == (what, where, given, fix)


def test_they_are_merged_once(vision_model: MakeVision, context: PassContext) -> None:
    merged: Any = run(MergeTokens(ratio=0.5), vision_model("vit"), context).model
    with pytest.raises(PassError, match="cannot be merged") as caught:
        run(MergeTokens(ratio=0.5), merged, context)
    assert caught.value.given == "its tokens are already merged"
    assert caught.value.where == "merge_tokens: ViTForImageClassification"


def test_networks_without_patches_are_refused(
    vision_model: MakeVision, word_model: Callable[..., TorchModel], context: PassContext
) -> None:
    reason = "it is not an image classifier that attends to patches"
    for model in (vision_model("resnet"), word_model(), make_writer("whisper")):
        with pytest.raises(PassError, match="has no patches to merge") as caught:
            MergeTokens(ratio=0.5).requires(model, context)
        assert caught.value.given == reason


@pytest.mark.parametrize(
    "config",
    [
        YolosConfig(architectures=["YolosForObjectDetection"]),
        ASTConfig(architectures=["ASTForAudioClassification"]),
        Wav2Vec2Config(architectures=["Wav2Vec2ForSequenceClassification"]),
        PatchTSTConfig(architectures=["PatchTSTForClassification"]),
        Dinov2Config(architectures=["Dinov2Model"]),
    ],
    ids=lambda config: config.model_type,
)
def test_planning_knows_networks_without_patches_by_their_configs(config: Any) -> None:
    found = _from_config(json.loads(config.to_json_string(use_diff=False)))
    assert MergeTokens.unsuited(found) is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_planning_knows_networks_with_patches(vision_model: MakeVision, family: str) -> None:
    assert MergeTokens.unsuited(Architecture.of(vision_model(family).module)) is None


def test_a_new_head_does_not_go_with_merged_tokens(
    vision_model: MakeVision, context: PassContext, tmp_path: Path
) -> None:
    merged: Any = run(MergeTokens(ratio=0.5), vision_model("vit"), context).model
    merged.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="merges tokens") as caught:
        new_classifier(tmp_path / "saved", ("a", "b"), task="image-classification")
    assert str(caught.value.fix).startswith("fine-tune the checkpoint that it was made from")


def test_layers_that_are_not_known_are_refused(
    vision_model: MakeVision, context: PassContext
) -> None:
    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        use_swiglu_ffn=True,
        num_labels=3,
    )
    model = of_config(config, vision_model)
    with pytest.raises(PassError, match="cannot be merged") as caught:
        MergeTokens(ratio=0.5).requires(model, context)
    assert caught.value.given == "its layers, or its patches, are of a kind that is not known"


def test_attention_that_counts_on_all_patches_is_refused(
    vision_model: MakeVision, context: PassContext
) -> None:
    config = Data2VecVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        use_relative_position_bias=True,
        num_labels=3,
    )
    model = of_config(config, vision_model)
    with pytest.raises(PassError, match="cannot be merged"):
        MergeTokens(ratio=0.5).requires(model, context)


def test_a_ratio_has_to_be_given() -> None:
    with pytest.raises(ValidationError, match="ratio"):
        MergeTokens()  # type: ignore[call-arg]


def test_a_manifest_of_another_network_is_refused(
    vision_model: MakeVision, context: PassContext, tmp_path: Path
) -> None:
    merged: Any = run(MergeTokens(ratio=0.5), vision_model("vit"), context).model
    merged.save(tmp_path / "saved")
    path = tmp_path / "saved" / SHAPES_FILE
    document = json.loads(path.read_text())
    document["merged"]["counts"] = [1, 1, 1]
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="belongs to another checkpoint") as caught:
        TorchModel.load(tmp_path / "saved")
    assert caught.value.given == "it merges tokens behind 3 layers, of 2"
    document["merged"]["counts"] = [-1, 0]
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="is damaged"):
        TorchModel.load(tmp_path / "saved")
