"""How Hugging Face writes down the preprocessing of images, and what of it is supported."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_args

from pydantic import ValidationError

from compressor.errors import CheckpointError
from compressor.tasks.preprocessor_config import PROCESSOR, config_path, read_preprocessor_config
from targets.preprocessing import ImagePreprocessing
from targets.preprocessing.image import Resample

__all__ = [
    "Defaults",
    "parse_processor",
    "processor_config",
    "read_processor",
    "write_processor",
]

_RESAMPLE: tuple[Resample, ...] = get_args(Resample)
Defaults: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Image processor of transformers, without the end of its name -> what it takes where its config is
silent."""
_DEFAULTS: Defaults = {
    "ViT": {"resample": 2},
    "DeiT": {"resample": 3, "do_center_crop": True},
    "Bit": {"resample": 3, "do_center_crop": True, "default_to_square": False},
    "ConvNext": {"resample": 3, "crop_pct": 224 / 256, "default_to_square": False},
    "Segformer": {"resample": 2},
    "DPT": {"resample": 3},
    "Siglip": {"resample": 3},
    "CLIP": {"resample": 3, "do_center_crop": True, "default_to_square": False},
    "Beit": {"resample": 3},
    "Pvt": {"resample": 3},
    "EfficientNet": {"resample": 3, "include_top": True},
    "MobileNetV1": {"resample": 2, "do_center_crop": True, "default_to_square": False},
    "MobileNetV2": {"resample": 2, "do_center_crop": True, "default_to_square": False},
}
_LARGEST_CUT = 384
"""From this size on ConvNeXt's resizes without a cut."""


def read_processor(folder: Path) -> ImagePreprocessing:
    """The preprocessing of a checkpoint folder.

    Raises:
        CheckpointError: It has none, or one that is not supported.
    """
    config = read_preprocessor_config(folder, noun="images", saver="AutoImageProcessor")
    return parse_processor(config, folder, _DEFAULTS)


def parse_processor(config: Any, folder: Path, known: Defaults) -> ImagePreprocessing:
    """The preprocessing of images that a config describes.

    Args:
        config: As `compressor.tasks.preprocessor_config.read_preprocessor_config` gives it.
        folder: The checkpoint.
        known: What is supported.

    Raises:
        CheckpointError: It is not supported.
    """
    try:
        return _from_config(config, known)
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            "the preprocessing of the checkpoint is not supported",
            where=config_path(folder),
            given=_problem(config, error),
            fix="use an image processor that resizes, crops the middle, rescales and normalizes",
        ) from error


def _problem(config: object, error: Exception) -> str:
    if not isinstance(config, dict):
        return f"JSON of the kind {type(config).__name__}"
    name = _name(config)
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{name}: {'.'.join(map(str, first['loc']))} {first['msg']}"
    return f"{name}: {error} is missing" if isinstance(error, KeyError) else f"{name}: {error}"


def _name(config: Mapping[str, Any]) -> Any:
    kinds = ("image_processor_type", "video_processor_type", "feature_extractor_type")
    return next((config[kind] for kind in kinds if config.get(kind)), None)


def write_processor(processor: ImagePreprocessing, folder: Path, *, kind: str = "ViT") -> None:
    """Write the preprocessing so that transformers and :func:`read_processor` read the same.

    Args:
        processor: The preprocessing.
        folder: Gets the file.
        kind: The image processor of transformers that it is written for, where nothing is cut out.
    """
    config = processor_config(processor, kind=kind)
    (folder / PROCESSOR).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def processor_config(processor: ImagePreprocessing, *, kind: str = "ViT") -> dict[str, Any]:
    """The config of an image processor of transformers that does the same.

    Args:
        processor: The preprocessing.
        kind: See :func:`write_processor`.
    """
    size = {"height": processor.height, "width": processor.width}
    resized: dict[str, int] = size
    if processor.shortest_edge is not None:
        resized = {"shortest_edge": processor.shortest_edge}
    elif processor.resized is not None:
        resized = dict(zip(size, processor.resized, strict=True))
    cuts = resized != size
    return {
        "image_processor_type": "BitImageProcessor" if cuts else f"{kind}ImageProcessor",
        "do_convert_rgb": processor.channels == 3,
        "do_resize": True,
        "size": resized,
        "resample": _RESAMPLE.index(processor.resample),
        "do_center_crop": cuts,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": processor.scale,
        "do_normalize": True,
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
    }


def _from_config(given: Any, known: Defaults) -> ImagePreprocessing:
    if not isinstance(given, Mapping):
        raise TypeError(given)
    kind = re.sub(
        "(ImageProcessor|VideoProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(_name(given))
    )
    if kind not in known:
        raise ValueError(f"it is none of {', '.join(f'{each}ImageProcessor' for each in known)}")
    config = {**known[kind], **given}
    if not config.get("do_resize", True):
        raise ValueError("do_resize is false")
    if config.get("keep_aspect_ratio") or config.get("do_pad"):
        raise ValueError("images keep their proportions, and are not cut to one size")
    size, crop = config["size"], None
    if isinstance(size, int):
        size = _square(size) if config.get("default_to_square", True) else {"shortest_edge": size}
    if set(size) not in ({"height", "width"}, {"shortest_edge"}):
        raise ValueError(f"size has {', '.join(size)}")
    shortest = size.get("shortest_edge")
    if config.get("do_center_crop"):
        crop = config["crop_size"]
        crop = _square(crop) if isinstance(crop, int) else crop
    elif shortest is not None:
        if kind != "ConvNext":
            raise ValueError("images keep their proportions, and are not cut to one size")
        crop = _square(shortest)
        shortest = int(shortest / config["crop_pct"]) if shortest < _LARGEST_CUT else None
    final = crop or size
    if config.get("rescale_offset"):
        raise ValueError("rescale_offset is true")
    normalizes = config.get("do_normalize", True)
    # EfficientNet's divides by the standard deviation twice where there are classes.
    power = 2 if config.get("include_top") else 1
    if power > 1 and not normalizes:
        raise ValueError("do_normalize is false, and include_top is not")
    cuts_a_square = shortest is None and "height" in size and size != final
    return ImagePreprocessing(
        height=final["height"],
        width=final["width"],
        shortest_edge=shortest,
        resized=(size["height"], size["width"]) if cuts_a_square else None,
        resample=_RESAMPLE[config["resample"]],
        channels=len(config["image_mean"]) if normalizes else 3,
        scale=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
        mean=tuple(config["image_mean"]) if normalizes else (0.0,),
        std=tuple(each**power for each in config["image_std"]) if normalizes else (1.0,),
    )


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}
