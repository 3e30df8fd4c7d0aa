"""Prune in steps with recovery between them; finished steps outlive an interruption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compressor.model import TorchModel

__all__ = ["StepResult", "stored_step"]

_HISTORY = "history.json"


@dataclass(frozen=True)
class StepResult:
    """What one step left.

    Attributes:
        model: The pruned model, recovered where recovery was asked for.
        history: Entries of its training.
    """

    model: TorchModel
    history: tuple[Mapping[str, float], ...] = ()


def stored_step(folder: Path, make: Callable[[Path], StepResult]) -> StepResult:
    """Take up a finished step from ``folder``, or make it and keep it there.

    Args:
        folder: Of this step; its work in progress lies in ``folder/work`` and goes when it is done.
        make: Does the step; gets the folder for its work in progress.
    """
    done = folder / "done"
    if done.is_dir():
        history = json.loads((done / _HISTORY).read_text(encoding="utf-8"))
        return StepResult(model=TorchModel.load(done), history=tuple(history))
    work, unfinished = folder / "work", folder / "unfinished"
    work.mkdir(parents=True, exist_ok=True)
    result = make(work)
    shutil.rmtree(unfinished, ignore_errors=True)
    result.model.save(unfinished)
    history_text = json.dumps([dict(entry) for entry in result.history])
    (unfinished / _HISTORY).write_text(history_text, encoding="utf-8")
    os.rename(unfinished, done)  # whole or not at all
    shutil.rmtree(work, ignore_errors=True)
    return result
