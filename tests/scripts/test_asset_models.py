"""Conversion of image models: tiny ones, exported as the packages were made."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from assets.dinov2 import convert_backbone
from assets.errors import PackageError
from assets.image_processor import write_image_processor
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model

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
    with pytest.raises(PackageError, match="computes something else") as caught:
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
