"""A table of positions that was interpolated once is what transformers makes of it in every run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compressor.errors import CheckpointError
from compressor.model import TorchModel
from compressor.tasks import get_task
from compressor.tasks.positions import resize_positions

MakeVision = Callable[..., TorchModel]
TASK = get_task("image-classification")


def pixels(size: int) -> torch.Tensor:
    return torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [8, 24, 40])
@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
def test_logits_are_those_of_transformers_own_interpolation(
    vision_model: MakeVision, family: str, size: int
) -> None:
    module = vision_model(family).module
    # DINOv2 interpolates unasked.
    asked = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = module(pixels(size), **asked).logits
        resize_positions(module, size)
        torch.testing.assert_close(module(pixels(size)).logits, expected, rtol=1e-5, atol=1e-6)
    assert module.config.image_size == size


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
def test_its_own_size_changes_nothing(vision_model: MakeVision, family: str) -> None:
    module = vision_model(family).module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    resize_positions(module, 16)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "resnet"])
def test_a_resized_model_comes_back_as_it_was(
    vision_model: MakeVision, tmp_path: Path, family: str
) -> None:
    model = vision_model(family)
    processor = TASK.resized(model.module, model.processor, 24)
    resized = TorchModel(model.module, processor, model.task, 0)
    resized.save(tmp_path / "model")
    loaded = TASK.load_checkpoint(tmp_path / "model")
    assert loaded.processor == processor
    with torch.no_grad():
        logits = loaded.module(pixels(24)).logits
        assert torch.equal(logits, resized.module(pixels(24)).logits)


@pytest.mark.parametrize(("size", "fix"), [(18, "use 16"), (19, "use 20"), (1, "use 4")])
def test_a_size_that_is_no_multiple_of_a_patch(
    vision_model: MakeVision, size: int, fix: str
) -> None:
    module = vision_model("dinov2").module
    with pytest.raises(CheckpointError, match="not a multiple of the size of the") as caught:
        resize_positions(module, size)
    error = caught.value
    assert (error.where, error.given, error.fix) == ("image_size", f"{size}, patches of 4", fix)
    assert module.config.image_size == 16


@pytest.mark.parametrize("family", ["resnet", "convnext", "efficientnet-lite"])
def test_networks_without_positions_take_any_size(vision_model: MakeVision, family: str) -> None:
    module = vision_model(family).module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    resize_positions(module, 19)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with torch.no_grad():
        assert module(pixels(19)).logits.shape == (2, 3)


def test_the_cut_keeps_its_share_of_the_image(vision_model: MakeVision) -> None:
    model = vision_model("vit")
    sizes = []
    for before in (
        {"height": 16, "width": 16, "shortest_edge": 18},
        {"height": 16, "width": 16, "shortest_edge": 16},
        {"height": 16, "width": 16, "shortest_edge": None, "resized": (18, 20)},
        {"height": 16, "width": 16, "shortest_edge": None},
    ):
        processor = TASK.resized(model.module, model.processor.model_copy(update=before), 32)
        assert (processor.height, processor.width) == (32, 32)
        sizes.append(processor.size_before_crop(200, 100))
    assert sizes == [(72, 36), (64, 32), (40, 36), (32, 32)]


def test_texts_have_no_size(vision_model: MakeVision) -> None:
    model = vision_model("vit")
    with pytest.raises(CheckpointError, match="only models that read images") as caught:
        get_task("text-classification").resized(model.module, None, 32)
    assert caught.value.fix == "leave the image size out"


def test_a_network_for_images_of_another_size_is_refused(
    vision_model: MakeVision, tmp_path: Path
) -> None:
    vision_model("vit", size=24).save(tmp_path / "model")  # its positions are for 16
    with pytest.raises(CheckpointError) as caught:
        TASK.load_checkpoint(tmp_path / "model")
    error = caught.value
    assert error.what == "the network does not take the images that its preprocessing makes"
    assert error.where == "ViTForImageClassification"
    assert str(error.given).startswith("3 x 24 x 24: Input image size (24*24) doesn't match")
    assert "--image-size" in str(error.fix)


def test_a_network_that_interpolates_itself_takes_another_size(
    vision_model: MakeVision, tmp_path: Path
) -> None:
    vision_model("dinov2", size=24).save(tmp_path / "model")
    assert TASK.load_checkpoint(tmp_path / "model").processor.height == 24
