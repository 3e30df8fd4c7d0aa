"""Where a checkpoint says how its inputs are prepared, and what it says there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compressor.errors import CheckpointError

__all__ = ["PROCESSOR", "config_path", "own_part", "read_preprocessor_config"]

PROCESSOR = "preprocessor_config.json"
_OTHERS = ("video_preprocessor_config.json", "processor_config.json")
"""What transformers writes instead: for videos, and for a processor of several kinds of inputs such
as that of Whisper, of which each has a part of its own."""
_PARTS = ("feature_extractor", "image_processor", "video_processor")


def config_path(folder: Path) -> Path:
    """The file of a checkpoint that says it; `PROCESSOR` where there is none."""
    names = (PROCESSOR, *_OTHERS)
    return next((folder / name for name in names if (folder / name).is_file()), folder / PROCESSOR)


def read_preprocessor_config(folder: Path, *, noun: str, saver: str) -> Any:
    """What a checkpoint says of its preprocessing, as JSON.

    Args:
        folder: The checkpoint.
        noun: What it reads.
        saver: The class of transformers that writes the file.

    Raises:
        CheckpointError: It says nothing, or the file cannot be read.
    """
    path = config_path(folder)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the checkpoint does not say how {noun} are prepared for it",
            where=path,
            fix=f"save it with {saver}.from_pretrained(...).save_pretrained(folder)",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "the preprocessing of the checkpoint cannot be read",
            where=path,
            given=error,
            fix="copy the checkpoint again",
        ) from error
    return own_part(found)


def own_part(found: Any) -> Any:
    """Of a file with a part for each kind of input the one that is not of texts; else all of it."""
    parts = [found[name] for name in _PARTS if name in found] if isinstance(found, dict) else []
    return parts[0] if parts else found
