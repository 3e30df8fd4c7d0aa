"""Conversion of image models: tiny ones, exported as the packages were made."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from assets.dinov2 import convert_backbone
from assets.efficientnet_lite import convert_classifier
from assets.errors import PackageError
from assets.image_processor import write_image_processor
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model

from targets.checkpoint import load_module
from targets.networks.efficientnet_lite import EfficientNetLiteConfig

CONFIG = {"hidden_size": 24, "num_attention_heads": 3, "image_size": 70, "patch_size": 14}


class Saliency(nn.Module):
    """A backbone with a head, as the ONNX file has them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Dinov2Model(Dinov2Config(**CONFIG, num_hidden_layers=2))
        self.decoder = nn.Linear(24, 1)

    def forward(self, input_image: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.decoder(self.backbone(input_image).last_hidden_state)
        return tokens.sigmoid()


@pytest.fixture(scope="module")
def saliency() -> Saliency:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Saliency().eval()
        for parameter in module.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return module


@pytest.fixture(scope="module")
def exported(saliency: Saliency) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated; it made the package's file
        torch.onnx.export(
            saliency,
            (torch.randn(1, 3, 56, 56),),
            file,
            dynamo=False,
            opset_version=14,
            input_names=["input_image"],
            dynamic_axes={"input_image": {0: "batch_size"}},
        )
    return file.getvalue()


def config(**changes: int) -> Dinov2Config:
    return Dinov2Config(**{**CONFIG, "num_hidden_layers": 2, **changes})


def test_dinov2_comes_back_out_of_an_onnx_file(
    saliency: Saliency, exported: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    convert_backbone(exported, config(), tmp_path)
    assert capfd.readouterr() == ("", "")
    converted = AutoModel.from_pretrained(tmp_path).state_dict()
    expected = saliency.backbone.state_dict()
    assert list(converted) == list(expected)
    assert not converted.pop("embeddings.mask_token").any()
    assert all(torch.equal(value, expected[name]) for name, value in converted.items())


def test_dinov2_of_another_size_is_a_clear_error(exported: bytes, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="not those of this DINOv2") as caught:
        convert_backbone(exported, config(num_hidden_layers=3), tmp_path)
    assert "encoder.layer.2." in caught.value.given
    assert not list(tmp_path.iterdir())


def test_dinov2_that_computes_something_else_is_a_clear_error(
    exported: bytes, tmp_path: Path
) -> None:
    with pytest.raises(PackageError, match="give different results") as caught:
        convert_backbone(exported, config(num_attention_heads=4), tmp_path)
    assert "a difference of" in caught.value.given
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rescale", [True, False])
def test_image_processor_resizes_crops_and_normalizes(tmp_path: Path, rescale: bool) -> None:
    mean, std = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)) if rescale else ((127.0,) * 3, (128.0,) * 3)
    write_image_processor(tmp_path, shortest_edge=20, crop=16, mean=mean, std=std, rescale=rescale)
    levels = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    found = processor(image, return_tensors="np")["pixel_values"]
    cropped = image.resize((40, 20), Image.Resampling.BICUBIC).crop((12, 2, 28, 18))
    scaled = np.asarray(cropped, np.float32) / (255 if rescale else 1)
    expected = ((scaled - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(found, expected[None], atol=1e-5)


def weights_of(package: nn.Module) -> bytes:
    """Its weights as a file, after giving every layer something to do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, value in package.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith(("bias", "running_mean")):
                value.normal_(0, 0.3)
            elif value.ndim == 4:  # as large as it must be for images to matter at the end
                value.normal_(0, (2 / value[0].numel()) ** 0.5)
    file = io.BytesIO()
    torch.save(package.state_dict(), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "settings", "num_parameters"),
    [
        ("efficientnet-lite0", {}, 4_652_008),
        ("efficientnet-lite1", {"depth_coefficient": 1.1, "image_size": 240}, 5_416_680),
        (
            "efficientnet-lite2",
            {"width_coefficient": 1.1, "depth_coefficient": 1.2, "image_size": 260},
            6_092_072,
        ),
    ],
)
def test_efficientnet_lite_computes_what_its_package_does(
    name: str, settings: dict[str, Any], num_parameters: int, tmp_path: Path
) -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch", reason="not installed")
    package = reference.EfficientNet.from_name(name).eval()
    config = EfficientNetLiteConfig(**settings, num_labels=1000)
    details = convert_classifier(weights_of(package), config, tmp_path)
    assert details["model"] == {
        "architectures": ["EfficientNetLiteForImageClassification"],
        "num_parameters": num_parameters,
    }
    module = load_module(tmp_path, "image-classification")
    size = config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = package(pixels), module(pixel_values=pixels).logits
    assert expected.std(dim=0).max() > 1e-3  # the images are told apart
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    grey = Image.new("RGB", (2 * size, 2 * size), (255, 127, 0))
    red, green, blue = processor(grey, return_tensors="np")["pixel_values"][0]
    assert red.shape == (size, size)
    for channel, level in ((red, 1.0), (green, 0.0), (blue, -127 / 128)):
        np.testing.assert_allclose(channel, level, atol=1e-6)


@pytest.mark.parametrize("change", ["surplus", "absent", "no weights"])
def test_other_weights_than_efficientnet_lites_are_a_clear_error(
    change: str, tmp_path: Path
) -> None:
    weights = {"_fc.weight": torch.zeros(1000, 1280)}
    if change == "surplus":
        weights["_blocks.0._se_reduce.weight"] = torch.zeros(8, 32, 1, 1)
    file = io.BytesIO()
    torch.save(weights, file)
    content = b"no file of torch" if change == "no weights" else file.getvalue()
    with pytest.raises(PackageError, match="not those of this EfficientNet-Lite") as caught:
        convert_classifier(content, EfficientNetLiteConfig(num_labels=1000), tmp_path)
    named = {"surplus": "_se_reduce", "absent": "stem.conv.weight", "no weights": ""}
    assert named[change] in caught.value.given
    assert not list(tmp_path.iterdir())


def test_code_in_weights_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    file = io.BytesIO()
    torch.save({"_fc.weight": Evil()}, file)
    with pytest.raises(PackageError, match="not those of this EfficientNet-Lite"):
        convert_classifier(file.getvalue(), EfficientNetLiteConfig(), tmp_path)
    assert not (tmp_path / "ran").exists()
