"""The pass drop_blocks: residual blocks of networks of convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ConvNextConfig,
    EfficientNetConfig,
    MobileNetV2Config,
    MobileViTConfig,
    RegNetConfig,
    ResNetConfig,
)

from compressor.architecture import Architecture
from compressor.data import Splits
from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.passes.base import PassContext, PassResult
from compressor.passes.drop_blocks import DropBlocks
from compressor.passes.prune import Prune
from compressor.pruning.blocks import drop_blocks, residual_blocks
from compressor.pruning.prune import mean_loss, sample_batches
from targets.checkpoint import load_module, save_module
from targets.errors import CheckpointError
from targets.shapes import SHAPES_FILE, ShapeManifest

MakeVision = Callable[..., TorchModel]
STEM = "efficientnet_lite.blocks"
PIXELS = {"pixel_values": torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))}

# Family -> its config, and its residual blocks, as its publication has them.
FAMILIES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "resnet, basic": (
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 3], layer_type="basic"),
        (
            "resnet.encoder.stages.0.layers.0",
            "resnet.encoder.stages.0.layers.1",
            "resnet.encoder.stages.1.layers.1",
            "resnet.encoder.stages.1.layers.2",
        ),
    ),
    "resnet, bottleneck": (
        ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2]),
        ("resnet.encoder.stages.1.layers.1",),
    ),
    "regnet, squeezed": (
        RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=8),
        ("regnet.encoder.stages.1.layers.1",),
    ),
    "convnext": (
        ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 2], patch_size=2),
        (
            "convnext.encoder.stages.0.layers.0",
            "convnext.encoder.stages.1.layers.0",
            "convnext.encoder.stages.1.layers.1",
        ),
    ),
    "mobilenet v2": (
        MobileNetV2Config(depth_multiplier=0.25),
        tuple(f"mobilenet_v2.layer.{number}" for number in (1, 3, 4, 6, 7, 8, 10, 11, 13, 14)),
    ),
    "efficientnet": (
        EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.5, hidden_dim=320),
        tuple(f"efficientnet.encoder.blocks.{number}" for number in (4, 6, 8)),
    ),
}


@pytest.fixture
def context(image_splits: Splits, tmp_path: Path) -> PassContext:
    def no_original() -> TorchModel:
        raise AssertionError

    return PassContext(image_splits, load_original=no_original, seed=3, folder=tmp_path / "work")


def run(step: DropBlocks, model: TorchModel, context: PassContext) -> PassResult:
    step.requires(model, context)
    result = step.run(model, context)
    step.ensures(model, result, context)
    return result


def logits(module: Any, inputs: Any = PIXELS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module.eval()(**inputs).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_of_known_networks(family: str, tmp_path: Path) -> None:
    config, blocks = FAMILIES[family]
    module = AutoModelForImageClassification.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # some begin with nothing but zeros
        for each in module.parameters():
            each += 0.1 * torch.randn(each.shape, generator=generator)
    before = logits(module)
    assert residual_blocks(module, PIXELS) == blocks
    assert torch.equal(logits(module), before)
    left = drop_blocks(module, blocks)
    save_module(left, tmp_path)
    loaded = load_module(tmp_path, "image-classification")
    assert torch.equal(logits(loaded), logits(left))
    assert torch.equal(logits(module), before)
    assert logits(left).shape == before.shape
    assert not torch.equal(logits(left), before)
    assert residual_blocks(left, PIXELS) == ()


def test_what_a_block_adds_is_all_that_goes(vision_model: MakeVision) -> None:
    module = vision_model("efficientnet-lite").module
    name = f"{STEM}.0"
    quiet = drop_blocks(module, ())
    for parameter in quiet.get_submodule(name).parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(logits(drop_blocks(module, [name])), logits(quiet))


def test_the_share_goes_that_costs_the_least(
    vision_model: MakeVision, context: PassContext
) -> None:
    model = vision_model("efficientnet-lite")
    result = run(DropBlocks(ratio=0.5), model, context)
    batches = sample_batches(
        model, context.splits.validation, num_rows=256, batch_size=32, seed=context.seed
    )
    losses = {
        name: mean_loss(replace(model, module=drop_blocks(model.module, [name])), batches)
        for name in (f"{STEM}.0", f"{STEM}.2")
    }
    least = min(losses, key=lambda name: losses[name])
    assert result.notes == (f"dropped 1 of 2 residual blocks: {least}",)
    metrics = result.metrics
    assert metrics["loss_before_nats"] == pytest.approx(mean_loss(model, batches))
    assert metrics["loss_after_nats"] == pytest.approx(losses[least])
    assert (metrics["num_blocks_before"], metrics["num_blocks_after"]) == (2, 1)
    assert metrics["num_parameters_after"] < metrics["num_parameters_before"]


def test_all_may_go_and_what_is_left_comes_back_bit_equal(
    vision_model: MakeVision, context: PassContext, tmp_path: Path
) -> None:
    model = vision_model("efficientnet-lite")
    result = run(DropBlocks(ratio=1.0), model, context).model
    assert isinstance(result, TorchModel)
    result.save(tmp_path / "left")
    loaded = TorchModel.load(tmp_path / "left")
    assert torch.equal(logits(loaded.module), logits(result.module))
    assert loaded.num_parameters == result.num_parameters
    # Channels can go before and after; both are in the manifest then.
    thin = Prune(ratio=0.5).run(loaded, context).model
    assert isinstance(thin, TorchModel)
    thin.save(tmp_path / "thin")
    again = TorchModel.load(tmp_path / "thin")
    assert torch.equal(logits(again.module), logits(thin.module))
    manifest = ShapeManifest.read(tmp_path / "thin")
    assert manifest is not None
    assert manifest.dropped == (f"{STEM}.0", f"{STEM}.2")
    assert manifest.tensors
    with pytest.raises(PassError, match="no residual blocks that can be dropped"):
        DropBlocks(ratio=1.0).requires(loaded, context)


def test_blocks_can_be_named(vision_model: MakeVision, context: PassContext) -> None:
    result = run(DropBlocks(blocks=(f"{STEM}.2",)), vision_model("efficientnet-lite"), context)
    module = result.model.module  # type: ignore[union-attr]
    kinds = [type(module.get_submodule(f"{STEM}.{number}")) for number in range(4)]
    assert [kind is nn.Identity for kind in kinds] == [False, False, True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set ratio or blocks, not neither"),
        ({"ratio": 0.5, "blocks": ["a"]}, "set ratio or blocks, not both"),
        ({"blocks": ["a", "a"]}, "blocks names a block twice"),
        ({"blocks": ["a"], "examples": 8}, "examples has no effect"),
    ],
)
def test_settings_without_effect(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DropBlocks.model_validate(settings)


@pytest.mark.parametrize(
    ("family", "settings", "what", "where"),
    [
        ("vit", {"ratio": 0.5}, "no residual blocks of convolutions", "drop_blocks"),
        (
            "efficientnet-lite",
            {"ratio": 0.1},
            "2 residual blocks: none would be dropped",
            "drop_blocks.ratio",
        ),
        (
            "efficientnet-lite",
            {"blocks": [f"{STEM}.1"]},
            "blocks names parts that are not residual blocks",
            "drop_blocks.blocks",
        ),
    ],
)
def test_what_cannot_be_dropped_is_said(
    vision_model: MakeVision,
    context: PassContext,
    family: str,
    settings: dict[str, Any],
    what: str,
    where: str,
) -> None:
    with pytest.raises(PassError, match=what) as caught:
        DropBlocks.model_validate(settings).requires(vision_model(family), context)
    assert caught.value.where == where
    assert caught.value.fix


def test_a_network_that_attends_in_stages_keeps_its_heads(tmp_path: Path) -> None:
    config = MobileViTConfig(
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        num_attention_heads=4,
        image_size=64,
    )
    assert "unknown" in str(DropBlocks.unsuited(Architecture.of(AutoModel.from_config(config))))
    module = AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in module.parameters():
            if each.ndim > 1:
                each += torch.randn(each.shape, generator=generator) / each[0].numel() ** 0.5
    large = {"pixel_values": PIXELS["pixel_values"].repeat(1, 1, 2, 2)}  # of several patches
    left = drop_blocks(module, residual_blocks(module, PIXELS)[:1])
    assert not torch.equal(logits(left, large), logits(module, large))
    save_module(left, tmp_path)
    loaded = load_module(tmp_path, "image-classification")
    assert torch.equal(logits(loaded, large), logits(left, large))


def test_a_frozen_normalization_hides_no_block() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 3, 3, padding=1)
            self.register_buffer("shift", torch.ones(1, 3, 1, 1))

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            shift: Any = self.shift
            return pixel_values + self.convolution(pixel_values) + shift

    assert residual_blocks(Holder(Frozen()), PIXELS) == ("block",)


class Holder(nn.Module):
    """Hands on what one part makes."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.block(pixel_values)
        return found


def test_a_manifest_of_another_network(
    vision_model: MakeVision, context: PassContext, tmp_path: Path
) -> None:
    result = run(DropBlocks(ratio=1.0), vision_model("efficientnet-lite"), context)
    result.model.save(tmp_path)
    path = tmp_path / SHAPES_FILE
    path.write_text(path.read_text().replace(f"{STEM}.2", f"{STEM}.7"))
    with pytest.raises(CheckpointError, match="belongs to another checkpoint") as caught:
        TorchModel.load(tmp_path)
    assert f"{STEM}.7" in str(caught.value.given)
