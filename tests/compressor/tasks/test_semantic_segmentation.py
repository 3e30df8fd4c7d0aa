"""Networks with a class for each pixel: loaded, exported, pruned where that is known."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForSemanticSegmentation,
    ConvNextConfig,
    Dinov2Config,
    DPTConfig,
    PretrainedConfig,
    SegformerConfig,
    UperNetConfig,
)

from compressor.data import Split, Splits
from compressor.errors import CheckpointError, PassError
from compressor.export import export_onnx
from compressor.inspection import inspect_checkpoint
from compressor.model import TorchModel
from compressor.parity import measure_parity
from compressor.passes import PassContext
from compressor.passes.prune import Prune
from compressor.pruning.channels import count_channels, prune_channels
from compressor.pruning.layers import select_layers
from compressor.tasks import get_task
from compressor.tasks.base import LABELS
from compressor.training.losses import logits_kl
from compressor.training.taps import TappedEncoder
from compressor.training.teacher import Teacher
from targets.answers import IGNORED
from targets.checkpoint import load_module, save_module
from targets.encoder import encoder_layers
from targets.preprocessing import ImagePreprocessing
from targets.preprocessing.image import PIXELS

TASK = get_task("semantic-segmentation")
SIDE = 32
NAMES = ("sky", "road", "tree")
FAMILIES: dict[str, Callable[..., PretrainedConfig]] = {
    "segformer": lambda **more: SegformerConfig(
        num_encoder_blocks=2, depths=[1, 2], sr_ratios=[2, 1], hidden_sizes=[16, 32],
        patch_sizes=[3, 3], strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
        decoder_hidden_size=32, **more,
    ),
    "dpt": lambda **more: DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        image_size=SIDE, patch_size=8, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
        **{"use_auxiliary_head": False, **more},
    ),
    "upernet": lambda **more: UperNetConfig(
        **{
            "backbone_config": ConvNextConfig(
                num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], patch_size=2,
                out_features=["stage1", "stage2"],
            ),
            "hidden_size": 16, "use_auxiliary_head": False, **more,
        },
    ),
    "upernet-dinov2": lambda **more: UperNetConfig(
        backbone_config=Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2,
            image_size=SIDE, patch_size=8, out_features=["stage1", "stage2"],
            reshape_hidden_states=True,
        ),
        hidden_size=16, use_auxiliary_head=False, **more,
    ),
}  # fmt: skip
"""Of a few thousand weights."""


def make(family: str, names: tuple[str, ...] = NAMES, **more: Any) -> TorchModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = FAMILIES[family](
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            **more,
        )
        module = AutoModelForSemanticSegmentation.from_config(config, attn_implementation="eager")
    processor = ImagePreprocessing(height=SIDE, width=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)
    return TorchModel(module.eval(), processor, "semantic-segmentation", 0)


def make_split(count: int) -> Split:
    generator = np.random.default_rng(0)

    def png(shape: tuple[int, ...], limit: int) -> bytes:
        stream = io.BytesIO()
        pixels = generator.integers(0, limit, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()

    images = tuple(png((40, 36, 3), 256) for _ in range(count))
    return Split(images, tuple(png((40, 36), len(NAMES)) for _ in range(count)))


def batch_of(model: TorchModel, split: Split) -> dict[str, torch.Tensor]:
    rows = TASK.encode_labelled(model, split)
    batch = {name: torch.from_numpy(each) for name, each in TASK.collate(model, rows).items()}
    return {**batch, LABELS: torch.from_numpy(TASK.collate_labels(rows))}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_comes_back_and_its_export_agrees(family: str, tmp_path: Path) -> None:
    model = make(family)
    model.save(tmp_path / "saved")
    loaded = TASK.load_checkpoint(tmp_path / "saved")
    assert loaded.labels == NAMES
    assert loaded.processor == model.processor
    signature = TASK.signature(loaded)
    batch = batch_of(loaded, make_split(2))
    with torch.no_grad():
        logits = loaded.module(batch[PIXELS]).logits
    torch.testing.assert_close(logits, model.module(batch[PIXELS]).logits)
    assert signature.outputs[0].shape == ("batch", *logits.shape[1:])
    export_onnx(loaded, signature, tmp_path / "model.onnx")
    assert (
        measure_parity(loaded, tmp_path / "model.onnx", make_split(4).inputs).max_abs_difference
        < 1e-3
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert session.get_outputs()[0].shape[1:] == list(logits.shape[1:])


@pytest.mark.parametrize("family", ["segformer", "upernet"])
def test_the_loss_is_that_of_transformers(family: str) -> None:
    model = make(family)
    batch = batch_of(model, make_split(3))
    batch[LABELS][0, :5] = IGNORED
    with torch.no_grad():
        theirs = model.module(
            batch[PIXELS], labels=batch[LABELS].masked_fill(batch[LABELS] == IGNORED, 255)
        )
        logits, labels = TASK.judged(theirs.logits, batch)
        found = torch.nn.functional.cross_entropy(logits, labels)
        classes, kept = TASK.evaluated(theirs.logits, batch[LABELS])
    assert len(labels) == 3 * SIDE * SIDE - 5 * SIDE
    torch.testing.assert_close(found, theirs.loss)
    assert classes.shape == kept.shape == (3, SIDE, SIDE)
    right = (classes[kept != IGNORED] == kept[kept != IGNORED]).float().mean()
    torch.testing.assert_close(right, (logits.argmax(dim=1) == labels).float().mean())


def test_a_student_learns_every_place_and_the_teacher_recalls_it() -> None:
    model = make("segformer")
    rows = [
        {**row, "noisy": 0, "slot": slot}
        for slot, row in enumerate(TASK.encode_unlabeled(model, make_split(3).inputs))
    ]

    def collate(some: Any) -> dict[str, torch.Tensor]:
        found = {name: torch.from_numpy(each) for name, each in TASK.collate(model, some).items()}
        return {**found, "slot": torch.tensor([row["slot"] for row in some])}

    teacher = Teacher(TappedEncoder(model.module), (PIXELS,), None)
    direct = teacher.outputs(collate(rows)).logits
    assert not teacher.remember(rows, [0] * 3, collate, limit_bytes=direct.numel() * 4 - 1)
    assert teacher.remember(rows, [0] * 3, collate, limit_bytes=direct.numel() * 4)
    recalled = teacher.outputs(
        {**collate(rows[::-1]), PIXELS: torch.zeros(3, 3, SIDE, SIDE)}
    ).logits
    torch.testing.assert_close(recalled, direct.flip(0), atol=1e-2, rtol=0)
    every = TASK.answered(direct, {})
    assert every.shape == (3 * (SIDE // 2) ** 2, len(NAMES))
    torch.testing.assert_close(every[1], direct[0, :, 0, 1])
    assert logits_kl(every, TASK.answered(recalled.flip(0), {}), temperature=1.0) < 1e-3
    assert all((row[LABELS] == IGNORED).all() for row in rows)


def test_stages_are_no_layers_of_one_width_and_are_not_pruned(tmp_path: Path) -> None:
    model = make("segformer")
    model.save(tmp_path)
    assert encoder_layers(model.module) == ()
    save_module(model.module, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_attention_heads"] == [1, 2]
    assert not (tmp_path / "shapes.json").exists()
    again = load_module(tmp_path, "semantic-segmentation")
    for name, value in model.module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    found = inspect_checkpoint(tmp_path)
    assert (found.task, found.has_head) == ("semantic-segmentation", True)
    assert found.passes["prune"] == "its layers are of an unknown kind"
    assert found.passes["prune"] == Prune.unsuited(found.architecture)
    assert found.passes["drop_layers"] == "its layers are of an unknown kind"
    assert found.passes["distill"] is found.passes["quantize"] is None


def test_layers_of_a_vision_transformer_under_a_decoder_are_found(tmp_path: Path) -> None:
    model = make("dpt")
    model.save(tmp_path)
    found = inspect_checkpoint(tmp_path)
    assert found.architecture.describe().startswith("4 layers x 4 heads")
    assert len(encoder_layers(model.module)) == 4
    assert found.passes["prune"] is None


def test_layers_that_a_neck_reads_by_their_numbers_stay(tmp_path: Path) -> None:
    model = make("dpt")
    model.save(tmp_path)
    reason = "other parts of the network read its layers 0, 1, 2, 3 by index"
    assert inspect_checkpoint(tmp_path).passes["drop_layers"] == reason
    with pytest.raises(PassError, match="read layers by index") as caught:
        select_layers(model.module, [0, 1, 3])
    assert caught.value.given == "backbone_out_indices 0, 1, 2, 3"
    assert len(encoder_layers(select_layers(model.module, [0, 1, 2, 3]))) == 4


def test_a_backbone_keeps_its_sizes_in_a_config_of_its_own(tmp_path: Path) -> None:
    model = make("upernet-dinov2")
    model.save(tmp_path)
    assert encoder_layers(model.module) == ()
    assert not (tmp_path / "shapes.json").exists()
    assert TASK.load_checkpoint(tmp_path).module.config.hidden_size == 16
    found = inspect_checkpoint(tmp_path)
    assert found.passes["prune"] == "its layers are of an unknown kind"


@pytest.mark.parametrize(("importance", "refits"), [("taylor", False), ("second-order", True)])
def test_channels_of_a_network_of_convolutions_go_and_its_classes_stay(
    importance: Any, refits: bool
) -> None:
    model = make("upernet")
    before = count_channels(model.module)
    pruned = prune_channels(
        model, 0.5, [batch_of(model, make_split(2))],
        importance=importance, across_layers=False, multiple=4, refits=refits, seed=0,
    )  # fmt: skip
    assert count_channels(pruned.module) < 0.7 * before
    assert pruned.module(torch.zeros(1, 3, SIDE, SIDE)).logits.shape[1] == len(NAMES)


def test_more_classes_than_a_mask_has_values_for_are_refused() -> None:
    model = make("segformer", tuple(f"c{index}" for index in range(256)))
    with pytest.raises(CheckpointError, match="more classes than a mask has values for") as caught:
        TASK.check_fit(model.module, model.processor)
    assert caught.value.given == "256 classes"


@pytest.mark.parametrize(("kind", "resample"), [("Segformer", "bilinear"), ("DPT", "bicubic")])
def test_processors_of_segmentation_are_read(kind: str, resample: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "image_processor_type": f"{kind}ImageProcessor",
        "size": {"height": 64, "width": 48},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(config))
    found = TASK.load_processor(tmp_path)
    assert (found.height, found.width, found.resample) == (64, 48, resample)
    TASK.save_processor(found, tmp_path)
    assert json.loads(path.read_text())["image_processor_type"] == "SegformerImageProcessor"
    assert TASK.load_processor(tmp_path) == found
    path.write_text(json.dumps({**config, "keep_aspect_ratio": True}))
    with pytest.raises(CheckpointError, match="preprocessing of the checkpoint is not supported"):
        TASK.load_processor(tmp_path)


def test_another_size_of_images_is_another_size_of_labels() -> None:
    model = make("segformer")
    processor = TASK.resized(model.module, model.processor, 48)
    batch = batch_of(replace(model, processor=processor), make_split(1))
    assert batch[LABELS].shape == (1, 48, 48)


@pytest.mark.parametrize("family", ["dpt", "upernet"])
def test_a_head_that_is_only_trained_along_is_left_behind(family: str, tmp_path: Path) -> None:
    """It answers as without it, and channels of a network with convolutions can go."""
    more: dict[str, Any] = {"use_auxiliary_head": True}
    if family == "upernet":  # its head reads the third stage
        backbone = ConvNextConfig(
            num_stages=3, hidden_sizes=[16, 16, 32], depths=[1, 1, 1], patch_size=2,
            out_features=["stage1", "stage2", "stage3"],
        )  # fmt: skip
        more |= {"backbone_config": backbone, "auxiliary_in_channels": 32}
    model = make(family, **more)
    assert model.module.auxiliary_head is not None
    expected = model.module(torch.ones(1, 3, SIDE, SIDE)).logits
    # As a user saves it: what the toolkit writes has none.
    model.module.save_pretrained(tmp_path / "theirs")
    TASK.save_processor(model.processor, tmp_path / "theirs")
    loaded = TASK.load_checkpoint(tmp_path / "theirs")
    assert not [name for name in loaded.module.state_dict() if "auxiliary" in name]
    torch.testing.assert_close(loaded.module(torch.ones(1, 3, SIDE, SIDE)).logits, expected)
    loaded.save(tmp_path / "ours")
    again = TorchModel.load(tmp_path / "ours")
    torch.testing.assert_close(again.module(torch.ones(1, 3, SIDE, SIDE)).logits, expected)
    split = make_split(4)
    splits = Splits(split, split, split, NAMES)
    context = PassContext(splits, load_original=lambda: loaded, seed=0, folder=tmp_path / "work")
    pruned = Prune(ratio=0.5, importance="magnitude").run(loaded, context).model
    assert pruned.num_parameters < loaded.num_parameters
