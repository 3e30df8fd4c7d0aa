"""The command ``compressor finetune``: from a bare encoder and labelled data to a classifier."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.checkpoint import check_checkpoint, label_names
from compressor.data import DataSpec, Splits, data_fingerprint, read_splits
from compressor.errors import CheckpointError, StoreError
from compressor.passes import PassContext
from compressor.passes.finetune import Finetune
from compressor.progress import Progress
from compressor.recipe.settings import read_settings
from compressor.storage import why_not_writable
from compressor.store import RunStore, step_key
from compressor.tasks import get_task, infer_task
from targets.environment import library_versions
from targets.networks import network_source
from targets.provenance import checkpoint_hashes
from targets.scoring import Accuracy
from targets.shapes import SHAPES_FILE

if TYPE_CHECKING:
    from compressor.model import TorchModel
    from compressor.tasks import Task

__all__ = ["finetune_checkpoint"]

VERSION = 3  # goes up when the same settings give another checkpoint
SETTINGS = "the settings of finetune"
ORIGIN = ".finetune"
"""File that tells which call wrote a folder, so that the same call may write it again."""


def finetune_checkpoint(
    model: Path,
    data_files: Mapping[str, str],
    output: Path,
    *,
    task: str | None = None,
    column: str | None = None,
    label: str | None = None,
    max_length: int | None = None,
    image_size: int | None = None,
    seed: int,
    overrides: Sequence[str],
    store: RunStore,
    progress: Progress,
    overwrite: bool = False,
) -> dict[str, Accuracy]:
    """Fine-tune a checkpoint and write it to ``output`` with its training curves.

    Args:
        model: A Hugging Face folder, with or without a classification head.
        data_files: Split -> file.
        output: Gets the checkpoint, ``curves.json`` and ``curves.svg``.
        task: Name of the task; the default is that of what the model reads.
        column: Column with the input; the default is its kind, or ``tokens``.
        label: Column with the label; the default is the field of the task, such as ``label``.
        max_length: Longest input, such as in tokens; the default is the model's limit.
        image_size: Side of the images in pixels; the default is that of the model.
        seed: Of every random choice.
        overrides: Settings of the pass ``finetune`` as ``name=value``.
        store: Where the result is kept; the same call finds it there.
        progress: Is told what happens.
        overwrite: Write into a folder that holds something else.

    Returns:
        Accuracy on the validation and on the test data.

    Raises:
        ToolkitError: The data, the checkpoint or a setting cannot be used.
    """
    settings = read_settings(Finetune, overrides, SETTINGS)
    name = task or infer_task(model, labelled=True)
    found = get_task(name)
    kind, labels = found.kind, found.label_field
    if labels is None:
        raise CheckpointError(
            "there is nothing to fine-tune: the data of this task has no labels",
            where=f"task {name}",
            given=model,
            fix="compress the checkpoint as it is, or name the task that the labels are for",
        )
    columns = found.named_columns(column, label)
    spec = DataSpec.model_validate({**data_files, **columns, "max_length": max_length})
    start = partial(_start, model, name, max_length=max_length, image_size=image_size, seed=seed)

    inputs = {
        "files": checkpoint_hashes(model),
        "task": name,
        "image_size": image_size,
        "data": data_fingerprint(spec, kind=kind, labels=labels, seed=seed),
        "settings": settings.settings(),
        "seed": seed,
        "version": VERSION,
        **settings.parts,
        "libraries": library_versions(("torch", "transformers", "accelerate"))
        | network_source(model),
    }
    key = step_key("finetune", inputs)

    def make(files: Path, work: Path) -> dict[str, Any]:
        splits = read_splits(spec, label_names=None, kind=kind, labels=labels, seed=seed)
        if found.has_class_indices:
            splits = replace(splits, label_names=_named(splits.label_names, model, found))
        return _train(start(splits.label_names), splits, settings, seed, files, work, progress)

    _check_output(output, key, (model, *(path.parent for path in spec.files.values())), overwrite)
    progress.start("finetune")
    with store.run("finetune", output):
        step = store.step("finetune", inputs, make)
        _publish(step.folder, output, key)
    accuracies = {
        split: Accuracy.model_validate(found)
        for split, found in step.record.facts["accuracy"].items()
    }
    progress.finish(
        f"test {accuracies['test'].measure} {100 * accuracies['test'].value:.1f}%",
        cached=step.cached,
    )
    largest = step.record.facts["largest_class"]
    if accuracies["test"].value <= largest:
        progress.warn(
            f"the model is no better than one that always gives the most frequent label "
            f"({100 * largest:.1f}%): try another learning_rate or more epochs"
        )
    return accuracies


def _named(indices: tuple[str, ...], model: Path, task: Task) -> tuple[str, ...]:
    """The names of classes that data has by index only: those of a model with just as many."""
    try:
        check_checkpoint(model, head=task.heads, kind=task.kind)
        names = label_names(model)
    except CheckpointError:
        return indices
    return names if len(names) == len(indices) else indices


def _start(
    model: Path,
    task: str,
    label_names: Sequence[str],
    *,
    max_length: int | None,
    image_size: int | None,
    seed: int,
) -> TorchModel:
    """The model with a fresh head."""
    from compressor.training.finetuning import new_classifier

    return new_classifier(
        model, label_names, task=task, seed=seed, max_length=max_length, image_size=image_size
    )


def _train(
    start: TorchModel,
    splits: Splits,
    settings: Finetune,
    seed: int,
    files: Path,
    work: Path,
    progress: Progress,
) -> dict[str, Any]:
    from compressor.answering import answer
    from compressor.model import TorchModel
    from compressor.training.curves import save_curves

    context = PassContext(
        splits=splits.without_test(),
        load_original=lambda: start,
        seed=seed,
        folder=work,
        progress=progress.update,
    )
    settings.requires(start, context)
    result = settings.run(start, context)
    trained = result.model
    assert isinstance(trained, TorchModel)
    trained.save(files)
    save_curves(result.history, files)
    judge = get_task(trained.task).answers
    answers = {name: answer(trained, getattr(splits, name)) for name in ("validation", "test")}
    found = {name: judge.score(each).model_dump() for name, each in answers.items()}
    (files / "finetune.json").write_text(
        json.dumps({"settings": settings.settings(), "seed": seed, "accuracy": found}, indent=2)
    )
    labels = answers["test"].labels
    is_classes = labels.ndim == 1
    return {
        "accuracy": found,
        "largest_class": float(np.bincount(labels).max() / len(labels)) if is_classes else 0.0,
        "metrics": dict(result.metrics),
    }


def _check_output(output: Path, key: str, inputs: Sequence[Path], overwrite: bool) -> None:
    """Refuse, before the training, a folder that cannot be written or whose content would be lost.

    Raises:
        StoreError: Says which of these it is.
    """
    if output.resolve() in {path.resolve() for path in inputs}:
        raise StoreError(
            "the output folder is that of the model or the data, which are never changed",
            where=output,
            fix="name another folder with --output",
        )
    reason = why_not_writable(output)
    if reason is not None:
        raise _unwritable(output, reason)
    if overwrite or not output.is_dir() or not any(output.iterdir()):
        return
    origin = output / ORIGIN
    if not origin.is_file() or origin.read_text(encoding="utf-8") != key:
        raise StoreError(
            "the output folder already holds other files",
            where=output,
            given=", ".join(sorted(path.name for path in output.iterdir())[:5]),
            fix="name another folder with --output, or add --overwrite",
        )


def _publish(source: Path, output: Path, key: str) -> None:
    """Copy the checkpoint to where the user wants it, each file in one step."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / SHAPES_FILE).unlink(missing_ok=True)  # of another network that was there
        for path in source.iterdir():
            temporary = output / f".{path.name}.tmp"
            shutil.copyfile(path, temporary)
            os.replace(temporary, output / path.name)
        (output / ORIGIN).write_text(key, encoding="utf-8")
    except OSError as error:
        raise _unwritable(output, error.strerror or error) from error


def _unwritable(output: Path, given: object) -> StoreError:
    return StoreError(
        "the checkpoint cannot be written",
        where=output,
        given=given,
        fix="free some space there, or pass another folder with --output",
    )
