"""How Hugging Face writes down the preprocessing of images, and what of it is supported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from compressor.errors import CheckpointError
from targets.preprocessing import ImagePreprocessing
from targets.preprocessing.image import Resample

__all__ = ["PROCESSOR", "read_processor", "write_processor"]

PROCESSOR = "preprocessor_config.json"
_RESAMPLE: tuple[Resample, ...] = get_args(Resample)


def read_processor(folder: Path) -> ImagePreprocessing:
    """The preprocessing of a checkpoint folder.

    Raises:
        CheckpointError: It has none, or one that is not supported.
    """
    path = folder / PROCESSOR
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            "the checkpoint does not say how images are prepared for it",
            where=path,
            fix="save it with AutoImageProcessor.from_pretrained(...).save_pretrained(folder)",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "the preprocessing of the checkpoint cannot be read",
            where=path,
            given=error,
            fix="copy the checkpoint again",
        ) from error
    try:
        return _from_config(config)
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise CheckpointError(
            "the preprocessing of the checkpoint is not supported",
            where=path,
            given=f"{config.get('image_processor_type')}: {error}"
            if isinstance(config, dict)
            else type(config).__name__,
            fix="use an image processor that resizes, crops the middle, rescales and normalizes",
        ) from error


def write_processor(processor: ImagePreprocessing, folder: Path) -> None:
    """Write the preprocessing so that transformers and :func:`read_processor` read the same."""
    size = {"height": processor.height, "width": processor.width}
    shortest = processor.shortest_edge
    config = {
        "image_processor_type": "BitImageProcessor" if shortest else "ViTImageProcessor",
        "do_convert_rgb": processor.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": shortest} if shortest else size,
        "resample": _RESAMPLE.index(processor.resample),
        "do_center_crop": shortest is not None,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": processor.scale,
        "do_normalize": True,
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
    }
    (folder / PROCESSOR).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _from_config(config: Mapping[str, Any]) -> ImagePreprocessing:
    if config.get("rescale_offset"):
        raise ValueError("rescale_offset is not known")
    size = config["size"]
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    shortest = size.get("shortest_edge")
    if crop is None and shortest is not None:
        # ConvNeXt and its like cut out the middle of what is a little larger.
        crop = {"height": shortest, "width": shortest}
        shortest = round(shortest / config.get("crop_pct", 1.0))
    if crop is not None and shortest is None and (crop != size):
        raise ValueError(f"a crop of {crop} after a resize to {size}")
    final = crop or size
    normalizes = config.get("do_normalize", True)
    return ImagePreprocessing(
        height=final["height"],
        width=final["width"],
        shortest_edge=shortest,
        resample=_RESAMPLE[config.get("resample", 2)],
        channels=len(config["image_mean"]) if normalizes else 3,
        scale=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
        mean=tuple(config["image_mean"]) if normalizes else (0.0,),
        std=tuple(config["image_std"]) if normalizes else (1.0,),
    )
