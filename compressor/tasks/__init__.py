"""One file a task. ``get_task`` finds them by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from compressor.architecture import reads_sound
from compressor.errors import PassError, nearest
from compressor.tasks.audio_classification import AudioClassification
from compressor.tasks.base import Row, Task
from compressor.tasks.image_classification import ImageClassification
from compressor.tasks.semantic_segmentation import SemanticSegmentation
from compressor.tasks.text_classification import TextClassification
from compressor.tasks.token_classification import TokenClassification

__all__ = ["TASKS", "Row", "Task", "TaskName", "get_task", "infer_task"]

TASKS: dict[str, type[Task]] = {
    each.name: each
    for each in (
        TextClassification,
        TokenClassification,
        ImageClassification,
        SemanticSegmentation,
        AudioClassification,
    )
}


def get_task(name: str) -> Task:
    """Make a task from its name.

    Raises:
        PassError: There is no such task.
    """
    if name not in TASKS:
        raise PassError(
            f"there is no task {name!r}", given=name, fix=f"use one of {', '.join(TASKS)}"
        )
    return TASKS[name]()


def infer_task(folder: Path) -> str:
    """The task of a checkpoint: that of its head, else the one for what it reads.

    Args:
        folder: A Hugging Face folder; one that cannot be read is taken for a text model, and what
            is wrong with it is found where it is loaded.
    """
    config = _read_json(folder / "config.json")
    heads = config.get("architectures") or [""]
    for name, task in TASKS.items():
        if str(heads[0]).endswith(task.heads) and reads_sound(config) == (task.kind == "audio"):
            return name
    processor = _read_json(folder / "preprocessor_config.json")
    kind = "text"
    if reads_sound(config) or "sampling_rate" in processor:
        kind = "audio"
    elif processor or (config and "vocab_size" not in config):
        kind = "image"
    return next(name for name, task in TASKS.items() if task.kind == kind)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _known(name: str) -> str:
    if name not in TASKS:
        guess = nearest(name, TASKS)
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise ValueError(f"there is no task {name!r}: use one of {', '.join(TASKS)}{hint}")
    return name


TaskName = Annotated[str, AfterValidator(_known), WithJsonSchema({"enum": list(TASKS)})]
"""Name of a task, checked."""
