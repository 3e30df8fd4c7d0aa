"""One file a task. ``get_task`` finds them by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from compressor.architecture import kind_read, reads_sound
from compressor.checkpoint import read_settings_file
from compressor.errors import PassError, choices
from compressor.tasks.audio_classification import AudioClassification
from compressor.tasks.base import Row, Task
from compressor.tasks.image_classification import ImageClassification
from compressor.tasks.object_detection import ObjectDetection
from compressor.tasks.preprocessor_config import config_path, own_part
from compressor.tasks.question_answering import QuestionAnswering
from compressor.tasks.semantic_segmentation import SemanticSegmentation
from compressor.tasks.speech_recognition import SpeechRecognition
from compressor.tasks.text_classification import TextClassification
from compressor.tasks.text_embedding import TextEmbedding
from compressor.tasks.text_generation import TextGeneration
from compressor.tasks.time_series_classification import TimeSeriesClassification
from compressor.tasks.token_classification import TokenClassification
from compressor.tasks.translation import Translation
from compressor.tasks.video_classification import VideoClassification

__all__ = ["TASKS", "Row", "Task", "TaskName", "get_task", "infer_task", "task_of_head"]

TASKS: dict[str, type[Task]] = {
    each.name: each
    for each in (
        TextClassification,
        TokenClassification,
        ImageClassification,
        SemanticSegmentation,
        ObjectDetection,
        AudioClassification,
        TimeSeriesClassification,
        VideoClassification,
        TextEmbedding,
        TextGeneration,
        QuestionAnswering,
        SpeechRecognition,
        Translation,
    )
}


def get_task(name: str) -> Task:
    """Make a task from its name.

    Raises:
        PassError: There is no such task.
    """
    if name not in TASKS:
        raise PassError(f"there is no task {name!r}", given=name, fix=choices(name, TASKS))
    return TASKS[name]()


def infer_task(folder: Path, *, labelled: bool = False) -> str:
    """The task of a checkpoint: that of its head, else the one for what it reads.

    Args:
        folder: A Hugging Face folder; one that cannot be read is taken for a text model, and what
            is wrong with it is found where it is loaded.
        labelled: Only tasks that are learnt from labels: a bare encoder may get any head.
    """
    named = task_of_head(folder, labelled=labelled)
    if named is not None:
        return named
    config = read_settings_file(folder / "config.json")
    processor = own_part(read_settings_file(config_path(folder)))
    kind = kind_read(config, processor if isinstance(processor, dict) else {})
    return next(name for name, task in TASKS.items() if task.kind == kind)


def task_of_head(folder: Path, *, labelled: bool = False) -> str | None:
    """The task of a checkpoint's head; None where it has none that is known.

    Args:
        folder: A Hugging Face folder.
        labelled: Only tasks that are learnt from labels.
    """
    config = read_settings_file(folder / "config.json")
    head = str((config.get("architectures") or [""])[0])
    for name, task in TASKS.items():
        if labelled and task.label_field is None:
            continue
        hears = task.kind == "audio"
        if head.endswith(task.heads_in(folder)) and reads_sound(config) == hears:
            return name
    return None


def _known(name: str) -> str:
    if name not in TASKS:
        raise PydanticCustomError(
            "unknown_task",
            "there is no task '{name}'",
            {"name": name, "fix": choices(name, TASKS)},
        )
    return name


TaskName = Annotated[str, AfterValidator(_known), WithJsonSchema({"enum": list(TASKS)})]
"""Name of a task, checked."""
