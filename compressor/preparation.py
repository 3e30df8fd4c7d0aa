"""What every run of a recipe begins with: its data, and its checkpoint in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from compressor.data import Splits, data_fingerprint, split_hashes
from compressor.manager import PassManager, import_checkpoint
from compressor.measuring import SPLITS
from compressor.planning import Plan, check_unknown_layers
from compressor.progress import Progress
from compressor.recipe.schema import Recipe
from compressor.store import RunStore, StoredStep
from compressor.tasks import get_task
from targets.base import Form, Target
from targets.environment import library_versions
from targets.errors import TargetError
from targets.networks import network_source
from targets.provenance import checkpoint_hashes
from targets.scoring import Z_95

if TYPE_CHECKING:
    from compressor.training.teacher import TeacherMemory

__all__ = ["Prepared", "prepare", "runnable_targets"]

REFERENCE = "answers.safetensors"
REFERENCE_VERSION = 1


@dataclass(frozen=True)
class Prepared:
    """A recipe whose data was read and whose checkpoint lies in the store.

    Attributes:
        recipe: What to do.
        plan: Of the recipe; holds the data.
        store: Where finished steps are kept.
        progress: Is told what happens.
        split_hashes: Split -> sha256 of its file.
        data_hash: The sha256 of the data.
        original: The untouched model.
    """

    recipe: Recipe
    plan: Plan
    store: RunStore
    progress: Progress
    split_hashes: Mapping[str, str]
    data_hash: str
    original: StoredStep

    def splits(self) -> Splits:
        """The data."""
        assert self.plan.splits is not None  # validating reads the data
        return self.plan.splits

    def manager(
        self,
        on_evaluation: Callable[[int, float], None] = lambda epoch, accuracy: None,
        teacher_memory: TeacherMemory | None = None,
    ) -> PassManager:
        """What runs passes on the untouched model; see `PassManager` for the arguments."""
        return PassManager(
            store=self.store,
            original=self.original,
            splits=self.splits,
            data_hash=self.data_hash,
            seed=self.recipe.seed,
            width_multiple=self.recipe.width_multiple,
            progress=self.progress,
            on_evaluation=on_evaluation,
            teacher_memory=teacher_memory,
        )


def prepare(recipe: Recipe, plan: Plan, *, store: RunStore, progress: Progress) -> Prepared:
    """Bring the checkpoint of a recipe into the store.

    Args:
        recipe: What to do.
        plan: What validating the recipe gave.
        store: Where the checkpoint is kept.
        progress: Is told what happens.

    Raises:
        CheckpointError: It cannot be used.
        RecipeError: A pass needs layers that the network turns out not to have.
    """
    task = get_task(recipe.task)
    hashes = split_hashes(recipe.data, task.kind, task.label_field)
    data_hash = data_fingerprint(
        recipe.data, kind=task.kind, labels=task.label_field, seed=recipe.seed, hashes=hashes
    )
    assert plan.splits is not None
    data = plan.splits
    if task.label_field is None:
        data, data_hash = _answered(recipe, data, data_hash, store=store, progress=progress)
        plan = replace(plan, splits=data)
    original = import_checkpoint(
        recipe.model,
        task=recipe.task,
        max_length=recipe.data.max_length,
        store=store,
        splits=lambda: data,
        data_hash=data_hash,
        progress=progress,
    )
    if plan.original.layers and not original.record.facts["has_known_layers"]:
        progress.warn(check_unknown_layers(recipe, plan.original))
        unknown = replace(plan.original, layers=(), has_unknown_layers=True)
        plan = replace(plan, original=unknown)
    doubt = _worse_than_one_answer(original, data)
    if doubt is not None:
        progress.warn(doubt)
    return Prepared(recipe, plan, store, progress, hashes, data_hash, original)


def _worse_than_one_answer(original: StoredStep, data: Splits) -> str | None:
    """Words for a model that gives no class as often rightly as always giving one would."""
    labels, found = data.validation.labels, original.record.facts["metrics"]
    accuracy = found.get("validation_accuracy")
    if accuracy is None or not isinstance(labels, np.ndarray) or labels.dtype.kind != "i":
        return None
    if labels.ndim != 1 or not data.label_names:
        return None
    counts = np.bincount(labels)
    share = counts.max() / len(labels)
    if accuracy + Z_95 * np.sqrt(share * (1 - share) / len(labels)) >= share:
        return None
    name = data.label_names[int(counts.argmax())]
    return (
        f"the untouched model is right on {accuracy:.1%} of the validation data, but always "
        f"answering {name!r} would be right on {share:.1%}: do the labels match the classes of "
        "this model?"
    )


def _answered(
    recipe: Recipe, splits: Splits, data_hash: str, *, store: RunStore, progress: Progress
) -> tuple[Splits, str]:
    """The data with what the untouched model answers as the labels of what is held out.

    Returns:
        The data, and its sha256 with these labels.
    """
    task = get_task(recipe.task)

    def make(files: Path, work: Path) -> dict[str, Any]:
        from compressor.answering import answer

        model = task.load_checkpoint(recipe.model, max_length=recipe.data.max_length)
        arrays = {name: answer(model, getattr(splits, name)).scores for name in SPLITS}
        save_file(
            {name: np.ascontiguousarray(each) for name, each in arrays.items()}, files / REFERENCE
        )
        return {}

    progress.start("answer the held-out data with the untouched model")
    step = store.step(
        "reference",
        {
            "files": checkpoint_hashes(recipe.model),
            "task": task.name,
            "max_length": recipe.data.max_length,
            "data": data_hash,
            "version": REFERENCE_VERSION,
            "libraries": library_versions(
                ("torch", "transformers", *task.preprocessing_type.libraries)
            )
            | network_source(recipe.model),
        },
        make,
    )
    progress.finish("", cached=step.cached)
    kept = load_file(step.folder / REFERENCE)
    labelled = {name: replace(getattr(splits, name), labels=kept[name]) for name in SPLITS}
    digest = hashlib.sha256(f"{data_hash} {step.content_hash}".encode()).hexdigest()
    return replace(splits, **labelled), digest


def runnable_targets(recipe: Recipe, *, form: Form | None = None) -> tuple[Target, ...]:
    """The targets of a recipe that run on this machine, or those of them that take a form.

    Raises:
        TargetError: None does.
    """
    found = tuple(
        target
        for target in recipe.targets
        if form in (None, target.form)
        if target.cannot_lower() is None and target.cannot_run() is None
    )
    if not found:
        raise TargetError(
            "none of the targets runs here, so no latency can be measured",
            given=", ".join(target.label for target in recipe.targets),
            fix="name a target that runs on this machine, or search on the machine that has it",
        )
    return found
