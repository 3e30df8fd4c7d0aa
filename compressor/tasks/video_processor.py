"""How Hugging Face writes down the preprocessing of videos, and what of it is supported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.errors import CheckpointError
from compressor.tasks.image_processor import (
    Defaults,
    parse_processor,
    processor_config,
)
from compressor.tasks.preprocessor_config import PROCESSOR, read_preprocessor_config
from targets.preprocessing import VideoPreprocessing

__all__ = ["read_video_processor", "write_video_processor"]

_CROPPED: Mapping[str, Any] = {
    "resample": 2,
    "do_center_crop": True,
    "default_to_square": False,
}
_KNOWN: Defaults = {
    "VideoMAE": _CROPPED,
    "Timesformer": _CROPPED,
    "Vivit": {**_CROPPED, "rescale_factor": 1 / 127.5},
}


def read_video_processor(folder: Path) -> VideoPreprocessing:
    """The preprocessing of a checkpoint folder; its network names the number of frames.

    Raises:
        CheckpointError: It has none, or one that is not supported.
    """
    config = read_preprocessor_config(folder, noun="videos", saver="AutoImageProcessor")
    image = parse_processor(config, folder, _KNOWN)
    names = (config.get("image_processor_type"), config.get("video_processor_type"))
    shifts = any(str(name).startswith("Vivit") for name in names) and config.get("offset", True)
    if shifts and config.get("do_rescale", True):  # it takes 1 off before it normalizes
        image = image.model_copy(update={"mean": tuple(1 + each for each in image.mean)})
    count = config.get("num_frames") or _num_frames(folder)
    try:
        return VideoPreprocessing(num_frames=count, image=image)
    except ValidationError as error:
        raise CheckpointError(
            "the checkpoint does not say how many frames of a video it sees",
            where=f"{folder / 'config.json'}, field num_frames",
            given=count,
            fix="pass the checkpoint of a video network, such as VideoMAE",
        ) from error


def _num_frames(folder: Path) -> Any:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("num_frames")
    except (OSError, ValueError, AttributeError):
        return None


def write_video_processor(processor: VideoPreprocessing, folder: Path) -> None:
    """Write the preprocessing so that transformers and :func:`read_video_processor` read the same.

    What transformers has no word for, the number of frames, it passes over.
    """
    config = {
        **processor_config(processor.image),
        "image_processor_type": "VideoMAEImageProcessor",
        "num_frames": processor.num_frames,
    }
    (folder / PROCESSOR).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
