"""One file a task. ``get_task`` finds them by name."""

from __future__ import annotations

from compressor.errors import PassError
from compressor.tasks.base import Task
from compressor.tasks.text_classification import TextClassification

__all__ = ["TASKS", "Task", "get_task"]

TASKS: dict[str, type[Task]] = {TextClassification.name: TextClassification}


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
