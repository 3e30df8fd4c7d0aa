"""What a model of either form answers to a split of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.model import Model, TorchModel
from compressor.tasks import get_task
from targets.answers import Units

if TYPE_CHECKING:
    from collections.abc import Callable

    from compressor.data import Split
    from targets.signature import Arrays

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
    at_once = min(BATCH, task.answers.rows_at_once)
    run, size = (_torch(model), at_once) if is_torch else (_onnx(model), 1)
    parts = []
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = [rows[index] for index in chosen]
        feeds = task.collate(model, batch)
        scores = task.answers.reduced(run(feeds), feeds)
        parts.append(task.answers.judged(scores, task.collate_labels(batch), np.asarray(chosen)))
    return Units.joined(parts)


def _torch(model: Any) -> Callable[[Arrays], NDArray[np.float32]]:
    import torch

    def run(feeds: Arrays) -> NDArray[np.float32]:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
            return np.asarray(model.module(**tensors)[0].float().numpy())

    return run


def _onnx(model: Any) -> Callable[[Arrays], NDArray[np.float32]]:
    from targets.runtimes.onnxruntime import create_session

    session = create_session(model.path, threads=1)

    def run(feeds: Arrays) -> NDArray[np.float32]:
        state = model.signature.initial_state(len(next(iter(feeds.values()))))
        return np.asarray(session.run(None, {**feeds, **state})[0])

    return run
