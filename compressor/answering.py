"""What a model of either form answers to a split of the data."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.model import Model, TorchModel
from compressor.tasks import get_task
from targets.answers import Units

if TYPE_CHECKING:
    from compressor.data import Split
    from targets.base import Session

__all__ = ["answer"]

BATCH = 32


def answer(model: Model, split: Split) -> Units:
    """What is judged of the answers of a model to a split, in its order.

    Rows of like length share a batch; in ONNX form each runs alone, for scales that are computed at
    run time depend on the batch.

    Args:
        model: In torch form, or in ONNX form, which runs on ONNX Runtime with one thread.
        split: At least one row.
    """
    task = get_task(model.task)
    rows = task.encode_labelled(model, split)
    order = sorted(range(len(rows)), key=lambda index: task.length(rows[index]))
    is_torch = isinstance(model, TorchModel)
    size = min(BATCH, task.answers.rows_at_once) if is_torch else 1
    session = _torch(model) if is_torch else _onnx(model)
    name = session.signature.outputs[0].name
    parts = []
    with TemporaryDirectory() as folder:
        task.save_processor(model.processor, Path(folder))
        answer_batch = task.answers_with(model.processor).open(Path(folder))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = [rows[index] for index in chosen]
        found = answer_batch(session, task.collate_unanswered(model, batch))
        parts.append(task.judged_rows(found[name], batch, split, np.asarray(chosen)))
    return Units.joined(parts)


def _torch(model: Any) -> Session:
    from targets.runtimes.pytorch import PyTorchSession

    return PyTorchSession(get_task(model.task).signature(model), model.module)


def _onnx(model: Any) -> Session:
    from targets.runtimes.onnxruntime import open_model

    return open_model(model.path, model.signature)
