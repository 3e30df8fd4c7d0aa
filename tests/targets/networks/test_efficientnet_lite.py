from __future__ import annotations

import copy
import json
import logging
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch_pruning
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from targets.checkpoint import load_module, save_module
from targets.errors import CheckpointError
from targets.networks import register_network
from targets.networks.efficientnet_lite import (
    EfficientNetLiteBlock,
    EfficientNetLiteConfig,
    EfficientNetLiteForImageClassification,
    EfficientNetLiteModel,
    SamePadding,
    register,
)

TASK = "image-classification"
SMALL: dict[str, Any] = {
    "image_size": 32,
    "stem_channels": 16,
    "hidden_dim": 64,
    "kernel_sizes": (3, 5, 3),
    "strides": (1, 2, 2),
    "expand_ratios": (1, 4, 4),
    "out_channels": (8, 16, 24),
    "num_block_repeats": (1, 2, 2),
    "num_labels": 5,
}


def make(**changes: Any) -> EfficientNetLiteForImageClassification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = EfficientNetLiteForImageClassification(
            EfficientNetLiteConfig(**{**SMALL, **changes})
        )
        for name, value in module.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith(("bias", "running_mean")):
                value.normal_(0, 0.3)
        nn.init.normal_(module.classifier.weight)
    return module.eval()


def images(count: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def logits(module: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = module(pixel_values=pixels).logits
    assert found.std(dim=0).max() > 1e-2  # the images are told apart
    return found


# Architecture


@pytest.mark.parametrize(
    ("width", "depth", "channels", "repeats"),
    [
        (1.0, 1.0, [16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 3, 3, 4, 1]),
        (1.0, 1.1, [16, 24, 40, 80, 112, 192, 320], [1, 3, 3, 4, 4, 5, 1]),
        (1.1, 1.2, [16, 24, 48, 88, 120, 208, 352], [1, 3, 3, 4, 4, 5, 1]),
        (1.2, 1.4, [24, 32, 48, 96, 136, 232, 384], [1, 3, 3, 5, 5, 6, 1]),
        (1.4, 1.8, [24, 32, 56, 112, 160, 272, 448], [1, 4, 4, 6, 6, 8, 1]),
    ],
)
def test_stages_scale_as_published(
    width: float, depth: float, channels: list[int], repeats: list[int]
) -> None:
    config = EfficientNetLiteConfig(width_coefficient=width, depth_coefficient=depth)
    assert config.scaled_channels() == channels
    assert config.scaled_repeats() == repeats


def test_stem_and_head_do_not_scale() -> None:
    with torch.device("meta"):
        module = EfficientNetLiteModel(EfficientNetLiteConfig(width_coefficient=2.0))
    assert module.stem.conv.out_channels == 32
    assert module.head.conv.out_channels == 1280


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8, 9])
def test_padding_is_that_of_tensorflow(kernel_size: int, stride: int, size: int) -> None:
    """As tf.nn defines SAME: what is needed for ceil(size / stride), the odd one at the end."""
    needed = max((math.ceil(size / stride) - 1) * stride + kernel_size - size, 0)
    padded = SamePadding(kernel_size, stride)(torch.ones(1, 1, size, size + 1))
    before = needed // 2
    assert padded.shape[2] == size + needed
    assert padded[0, 0].any(dim=1).nonzero().flatten().tolist() == [*range(before, before + size)]
    convolved = functional.conv2d(padded, torch.ones(1, 1, kernel_size, kernel_size), stride=stride)
    assert convolved.shape[2:] == (math.ceil(size / stride), math.ceil((size + 1) / stride))


def test_only_blocks_that_keep_the_shape_have_a_skip() -> None:
    blocks = [block for block in make().modules() if isinstance(block, EfficientNetLiteBlock)]
    assert [block.has_skip for block in blocks] == [False, False, True, False, True]
    features = torch.randn(1, 16, 8, 8)
    nn.init.zeros_(blocks[2].project.norm.weight)
    nn.init.zeros_(blocks[2].project.norm.bias)
    assert torch.equal(blocks[2](features), features)


def test_outputs_have_the_promised_shapes() -> None:
    module = make()
    outputs = module(images(3), torch.tensor([0, 4, 1]), output_hidden_states=True)
    assert outputs.logits.shape == (3, 5)
    expected = functional.cross_entropy(outputs.logits, torch.tensor([0, 4, 1]))
    assert torch.equal(outputs.loss, expected)
    assert [tuple(state.shape[1:]) for state in outputs.hidden_states] == [
        (16, 16, 16),
        (8, 16, 16),
        *[(16, 8, 8)] * 2,
        *[(24, 4, 4)] * 2,
    ]
    features = module.efficientnet_lite(images(3))
    assert features.last_hidden_state.shape == (3, 64, 4, 4)
    means = features.last_hidden_state.mean((2, 3))
    torch.testing.assert_close(features.pooler_output, means)
    assert features.hidden_states is None


def test_blocks_are_dropped_in_training_by_image_and_without_bias() -> None:
    block = make(drop_connect_rate=0.5).efficientnet_lite.blocks[4]
    block.drop_rate = 0.25
    features = torch.randn(1, 24, 4, 4).repeat(4000, 1, 1, 1)
    change = block(features) - features
    for norm in (block.expand.norm, block.depthwise.norm, block.project.norm):
        norm.requires_grad_(False)
    block.drop_rate, block.training = 0.25, True  # the norms stay in eval mode
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = block(features) - features
    kept = dropped.abs().amax((1, 2, 3)) > 0
    assert 0.72 < kept.float().mean() < 0.78
    torch.testing.assert_close(dropped[kept], change[kept] / 0.75, atol=1e-5, rtol=1e-5)


def test_drop_rate_grows_with_depth() -> None:
    blocks = make(drop_connect_rate=0.2).efficientnet_lite.blocks
    assert [round(block.drop_rate, 6) for block in blocks] == [0, 0.04, 0.08, 0.12, 0.16]


def test_initial_activations_neither_vanish_nor_explode() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = EfficientNetLiteModel(EfficientNetLiteConfig(**SMALL)).train()
    outputs = module(images(8), output_hidden_states=True)
    assert all(0.1 < state.std() < 10 for state in outputs.hidden_states)
    depthwise = module.blocks[1].depthwise.conv
    assert depthwise.weight.std().item() == pytest.approx(math.sqrt(2 / 25), rel=0.1)


# Checkpoints


def test_checkpoint_loads_in_a_process_that_never_saw_the_network(tmp_path: Path) -> None:
    module = make()
    save_module(module, tmp_path)
    np.save(tmp_path / "images.npy", images().numpy())
    script = f"""
import sys, torch, numpy
from pathlib import Path
import targets, targets.checkpoint
assert "targets.networks.efficientnet_lite" not in sys.modules
folder = Path({str(tmp_path)!r})
module = targets.checkpoint.load_module(folder, {TASK!r})
assert not module.training
with torch.inference_mode():
    logits = module(torch.from_numpy(numpy.load(folder / "images.npy"))).logits
numpy.save(folder / "logits.npy", logits.numpy())
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(
        torch.from_numpy(np.load(tmp_path / "logits.npy")), logits(module, images())
    )


def test_checkpoint_comes_back_bit_equal(tmp_path: Path) -> None:
    module = make()
    save_module(module, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_module(tmp_path, TASK)
    assert isinstance(loaded, EfficientNetLiteForImageClassification)
    ours, theirs = module.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_backbone_of_a_classifier_loads_alone(tmp_path: Path) -> None:
    module = make()
    save_module(module, tmp_path)
    backbone = load_module(tmp_path, "feature-extraction")
    assert isinstance(backbone, EfficientNetLiteModel)
    with torch.inference_mode():
        found = backbone(images()).pooler_output
        expected = module.efficientnet_lite(images()).pooler_output
    assert torch.equal(found, expected)


def test_registering_twice_changes_nothing() -> None:
    register()
    register()
    config = AutoConfig.for_model("efficientnet-lite", **SMALL)
    assert isinstance(config, EfficientNetLiteConfig)
    assert isinstance(AutoModel.from_config(config), EfficientNetLiteModel)
    classifier = AutoModelForImageClassification.from_config(config)
    assert isinstance(classifier, EfficientNetLiteForImageClassification)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"model_type": "bert"}'])
def test_other_checkpoints_import_no_network(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    script = f"""
import sys
from pathlib import Path
from targets.networks import register_network
register_network(Path({str(tmp_path)!r}))
ours = [name for name in sys.modules if name.startswith("targets.networks.")]
theirs = [name for name in sys.modules if name.startswith("transformers.models.bert")]
print(*ours, *theirs)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_a_network_that_nobody_knows_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba-bert"}))
    with pytest.raises(CheckpointError, match="knows no network of this kind") as caught:
        register_network(tmp_path)
    assert caught.value.where == f"{tmp_path / 'config.json'}, field model_type"
    assert caught.value.given == "mamba-bert"
    assert "install a version of transformers" in str(caught.value.fix)


def test_network_of_a_checkpoint_is_registered(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "efficientnet-lite"}))
    register_network(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), EfficientNetLiteConfig)


# What the toolkit does to it


def test_pruned_channels_run() -> None:
    module = make()
    pruned = copy.deepcopy(module)
    pruner = torch_pruning.pruner.MetaPruner(
        pruned,
        {"pixel_values": images()},
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[pruned.classifier],
        forward_fn=lambda network, inputs: network(**inputs).logits,
    )
    pruner.step()
    stem, block = pruned.efficientnet_lite.stem, pruned.efficientnet_lite.blocks[2]
    assert stem.conv.out_channels == 8
    assert block.depthwise.conv.groups == block.depthwise.conv.in_channels == 32
    assert logits(pruned, images()).shape == (2, 5)


class Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(pixel_values).logits
        return found


def export(module: nn.Module, pixels: torch.Tensor, *, free_size: bool) -> bytes:
    free = {0: torch.export.Dim("batch")}
    if free_size:
        free |= {
            2: torch.export.Dim("height", min=16, max=512),
            3: torch.export.Dim("width", min=16, max=512),
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            Logits(module).eval(),
            (pixels,),
            dynamo=True,
            dynamic_shapes={"pixel_values": free},
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def run(content: bytes, pixels: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"pixel_values": pixels.numpy()})
    return torch.from_numpy(found)


def test_export_of_one_size_is_plain_convolutions() -> None:
    import onnx

    module = make()
    content = export(module, images(2, 33, 32), free_size=False)
    kinds = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert kinds == {"Conv", "Clip", "Add", "ReduceMean", "Reshape", "Gemm"}
    pixels = images(5, 33, 32)
    torch.testing.assert_close(run(content, pixels), logits(module, pixels), atol=1e-5, rtol=1e-5)


def test_export_of_any_size_holds_for_odd_and_even_sizes() -> None:
    module = make()
    content = export(module, images(2, 32, 48), free_size=True)
    for height, width in ((32, 32), (33, 32), (45, 37), (50, 64)):
        pixels = images(3, height, width)
        torch.testing.assert_close(
            run(content, pixels), logits(module, pixels), atol=1e-5, rtol=1e-5
        )
