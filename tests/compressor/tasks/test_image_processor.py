"""`preprocessor_config.json` as it is published is read as transformers reads it, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compressor.errors import CheckpointError
from compressor.tasks.image_processor import read_processor, write_processor
from targets.preprocessing import ImagePreprocessing

PIXELS = "pixel_values"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


PUBLISHED: dict[str, dict[str, Any]] = {
    "ViT": {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "ViTImageProcessor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": square(224),
        **HALVES,
    },
    "EfficientNet": {
        "crop_size": square(224),
        "do_center_crop": False,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "EfficientNetImageProcessor",
        "image_std": [0.47853944, 0.4732864, 0.47434163],
        "include_top": True,
        "resample": 0,
        "rescale_factor": 0.00392156862745098,
        "rescale_offset": False,
        "size": square(224),
    },
    "ViT, before sizes had names": {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "resample": 2,
        "size": 224,
        **HALVES,
    },
    "DeiT": {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "DeiTFeatureExtractor",
        "resample": 3,
        "size": 256,
        **IMAGENET,
    },
    "DINOv2": {
        "crop_size": square(224),
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "BitImageProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 256},
        **IMAGENET,
    },
    "ConvNeXt and ResNet": {
        "crop_pct": 0.875,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "resample": 3,
        "size": 224,
        **IMAGENET,
    },
    "ConvNeXt, with an odd share": {
        "crop_pct": 0.9,
        "do_resize": True,
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 224},
        **IMAGENET,
    },
    "ConvNeXt of 384": {
        "crop_pct": 1.0,
        "do_resize": True,
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 384},
        **IMAGENET,
    },
    "EfficientNet-Lite": {
        "crop_size": square(224),
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": False,
        "do_resize": True,
        "image_processor_type": "BitImageProcessor",
        "resample": 3,
        "size": {"shortest_edge": 256},
        "image_mean": [127.0] * 3,
        "image_std": [128.0] * 3,
    },
    "of the fast kind": {
        "image_processor_type": "ViTImageProcessorFast",
        "size": square(32),
        **IMAGENET,
    },
    "SigLIP": {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "SiglipImageProcessor",
        "size": square(224),
        **HALVES,
    },
    "CLIP": {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": 224,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "BEiT": {
        "crop_size": 224,
        "do_center_crop": False,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "BeitFeatureExtractor",
        "size": 224,
        **HALVES,
    },
    "PVT": {"image_processor_type": "PvtImageProcessor", "size": square(224), **IMAGENET},
    "MobileNetV1": {
        "crop_size": square(224),
        "image_processor_type": "MobileNetV1ImageProcessor",
        "size": {"shortest_edge": 256},
        **HALVES,
    },
    "MobileNetV2": {
        "crop_size": square(224),
        "do_center_crop": True,
        "image_processor_type": "MobileNetV2ImageProcessor",
        "size": {"shortest_edge": 256},
        **HALVES,
    },
    "no normalization": {
        "do_normalize": False,
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 24},
        **HALVES,
    },
}


@pytest.fixture
def folder_with(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes preprocessor_config.json: folder_with(config)."""

    def write(config: Any) -> Path:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "preprocessor_config.json").write_text(text)
        return tmp_path

    return write


def reference(folder: Path) -> Any:
    """What transformers makes of the folder, without torchvision."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)


def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(320, 240), (200, 333), (90, 411)]
    return [
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).resize(
            (2 * width, 2 * height), Image.Resampling.BILINEAR
        )
        for width, height in sizes
    ]


def arrays(processor: ImagePreprocessing) -> Any:
    return processor.batch(processor.open(Path()).encode(images()).rows[PIXELS])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_give_the_arrays_of_transformers(
    folder_with: Callable[[Any], Path], name: str
) -> None:
    folder = folder_with(PUBLISHED[name])
    expected = reference(folder)(images(), return_tensors="np")[PIXELS]
    found = arrays(read_processor(folder))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_is_read_the_same_here_and_by_transformers(
    folder_with: Callable[[Any], Path], tmp_path: Path, name: str
) -> None:
    read = read_processor(folder_with(PUBLISHED[name]))
    written = tmp_path / "written"
    written.mkdir()
    write_processor(read, written)
    again = read_processor(written)
    np.testing.assert_array_equal(arrays(again), arrays(read))
    assert (again.height, again.width, again.channels) == (read.height, read.width, read.channels)
    write_processor(again, written)
    assert read_processor(written) == again
    expected = reference(written)(images(), return_tensors="np")[PIXELS]
    np.testing.assert_allclose(arrays(read), expected, rtol=1e-5, atol=1e-5)


def test_shades_of_grey_stay_one_channel(tmp_path: Path) -> None:
    grey = ImagePreprocessing(height=8, width=8, channels=1, mean=(0.3,), std=(0.2,))
    write_processor(grey, tmp_path)
    assert read_processor(tmp_path) == grey


# Refusals


def test_a_checkpoint_without_preprocessing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_processor(tmp_path)
    error = caught.value
    assert error.exit_code == 3
    assert error.what == "the checkpoint does not say how images are prepared for it"
    assert error.where == str(tmp_path / "preprocessor_config.json")
    assert "AutoImageProcessor" in str(error.fix)


def test_a_file_that_is_no_json(folder_with: Callable[[Any], Path]) -> None:
    with pytest.raises(CheckpointError, match="preprocessing of the checkpoint cannot be read"):
        read_processor(folder_with('{"size": '))


VIT = PUBLISHED["ViT"]
TWICE = PUBLISHED["EfficientNet"]
BIT = PUBLISHED["DINOv2"]


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ([1, 2], "JSON of the kind list"),
        ({**VIT, "image_processor_type": "MobileViTImageProcessor"}, "none of ViTImageProcessor"),
        ({**TWICE, "rescale_offset": True}, "rescale_offset is true"),
        ({**TWICE, "do_normalize": False}, "do_normalize is false, and include_top is not"),
        ({"size": 224, **HALVES}, "None: it is none of"),
        ({**VIT, "do_resize": False}, "do_resize is false"),
        ({**VIT, "size": {"shortest_edge": 224, "longest_edge": 500}}, "shortest_edge, longest_"),
        ({**VIT, "size": {"shortest_edge": 224}}, "images keep their proportions, and are not cut"),
        ({key: value for key, value in VIT.items() if key != "size"}, "'size' is missing"),
        ({key: value for key, value in BIT.items() if key != "crop_size"}, "'crop_size' is miss"),
        ({key: value for key, value in VIT.items() if key != "image_std"}, "'image_std' is miss"),
        ({**BIT, "crop_size": {"shortest_edge": 224}}, "'height' is missing"),
        ({**VIT, "resample": 9}, "ViTImageProcessor: "),
        ({**VIT, "size": square(0)}, "height Input should be greater than or equal to 1"),
        ({**VIT, "image_std": [0.5, 0.5]}, "std Value error, 2 numbers for 3"),
        ({**VIT, "image_mean": [0.5] * 4, "image_std": [0.5] * 4}, "channels Input should be 1"),
        ({**VIT, "image_std": [0.0] * 3}, "std is 0"),
        ({**VIT, "size": None}, "ViTImageProcessor: "),
    ],
)
def test_preprocessing_that_is_not_supported(
    folder_with: Callable[[Any], Path], config: Any, given: str
) -> None:
    folder = folder_with(config)
    with pytest.raises(CheckpointError) as caught:
        read_processor(folder)
    error = caught.value
    assert error.what == "the preprocessing of the checkpoint is not supported"
    assert error.where == str(folder / "preprocessor_config.json")
    assert given in str(error.given)
    assert "resizes, crops the middle, rescales and normalizes" in str(error.fix)
