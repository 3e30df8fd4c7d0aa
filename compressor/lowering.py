"""From a model in the store to a bundle for one target, or the reason why there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compressor.errors import PassError
from compressor.model import Model, OnnxModel, load_model
from compressor.storage import copy_changed
from compressor.store import RunStore, StoredStep
from compressor.tasks import get_task
from targets.base import Precision, Source, Target
from targets.bundle import SCHEMA_VERSION, Bundle, Manifest
from targets.environment import cpu_features
from targets.errors import MissingLibraryError, TargetError, UnsupportedModelError
from targets.networks import network_source
from targets.worker_client import Worker

__all__ = ["Candidate", "lower"]

LOWER_VERSION = 10  # goes up when the same model gives another bundle on every target
HAND_OVER_VERSION = 2  # goes up when a target leaves something else for another machine
LOWER_TIMEOUT_S = 6 * 3600.0  # an engine of a large model takes long, and gives no sign of life
_HERE = "<here>"  # in the store: where what is handed over will lie


@dataclass(frozen=True)
class Candidate:
    """One variant on one target, from before lowering to its bundle.

    Attributes:
        variant: Name of the variant.
        kind: Its role; see ``compressor.report.schema.Row``.
        target: Where it is to run.
        precision: Number format of its matrix products.
        status: ``built``, or why there is no bundle.
        reason: In words, where it is not ``built``, or where it cannot run here.
        bundle: The bundle's step in the store.
        runs_here: Whether this machine can run it.
        refusal: The step in the store that keeps a refusal, so that it is found again.
    """

    variant: str
    kind: Literal["reference", "baseline", "candidate"]
    target: Target
    precision: Precision
    status: Literal["built", "unavailable", "refused", "failed"]
    reason: str | None = None
    bundle: StoredStep | None = None
    runs_here: bool = False
    refusal: StoredStep | None = None

    @property
    def key(self) -> str:
        """Name that is unique within a run and fit for a folder."""
        parts = [self.variant, self.target.label]
        if self.kind == "baseline":
            parts.append(self.precision)
        return "-".join(parts).replace(" ", "").replace("(", "-").replace(")", "")


def lower(
    variant: str,
    kind: Literal["reference", "baseline", "candidate"],
    target: Target,
    steps: Sequence[StoredStep],
    *,
    store: RunStore,
    hand_over: Path,
    earlier: Sequence[Candidate] = (),
) -> Candidate:
    """Lower the last model of the form that the target takes.

    Args:
        variant: Name of the variant.
        kind: Its role.
        target: Where to lower to.
        steps: The variant's steps, the imported checkpoint first.
        store: Where the bundle is kept.
        hand_over: Folder for what a target leaves where it cannot build here.
        earlier: What was lowered before. A variant that is on this target the same model as an
            earlier one is not built again: it says so.
    """
    source = next(
        (step for step in reversed(steps) if step.record.facts.get("form") == target.form), None
    )
    precision: Precision = source.record.facts["precision"] if source else "fp32"

    def outcome(status: Any, reason: object, **more: Any) -> Candidate:
        text = None if reason is None else store.without_paths(str(reason))
        return Candidate(variant, kind, target, precision, status, text, **more)

    if source is None:
        return outcome("refused", f"no pass leaves a model in {target.form} form")
    unavailable = target.cannot_lower()
    if unavailable is not None:
        folder = hand_over / outcome("unavailable", None).key
        left = "; ".join(_hand_over(target, source, folder, store))
        return outcome("unavailable", unavailable + (f"\n  left:  {left}" if left else ""))
    same = next((each for each in earlier if _is_same(each, kind, target, source)), None)
    if same is not None:
        is_last = source is steps[-1]
        notes = source.record.facts["notes"] if is_last else [f"it takes {target.form} form"]
        return outcome("refused", "; ".join([f"the same model as {same.variant} there", *notes]))
    try:
        bundle = store.step(
            f"lower:{target.name}",
            {
                "model": source.content_hash,
                "name": variant,
                "target": target.name,
                "settings": target.settings(),
                "versions": _versions(target, source.folder),
                "cpu": cpu_features(),
                "version": [LOWER_VERSION, target.version],
            },
            lambda files, work: _build_or_refuse(target, source, variant, files, store),
        )
    except (TargetError, MissingLibraryError) as error:
        return outcome("failed", error)
    refusal = bundle.record.facts.get("refusal")
    if refusal is not None:
        return outcome("refused", refusal, refusal=bundle)
    cannot_run = target.cannot_run()
    return outcome("built", cannot_run, bundle=bundle, runs_here=cannot_run is None)


def _versions(target: Target, model: Path) -> dict[str, str]:
    """What a bundle depends on beside the files of its model."""
    return target.versions() | network_source(model)


def _is_same(earlier: Candidate, kind: str, target: Target, source: StoredStep) -> bool:
    """Whether an earlier candidate was made from the same model for the same target."""
    if earlier.bundle is None or earlier.kind != kind or earlier.target != target:
        return False
    return bool(earlier.bundle.record.inputs["model"] == source.content_hash)


def _hand_over(
    target: Target, source: StoredStep, folder: Path, store: RunStore
) -> tuple[str, ...]:
    """What the target leaves in a folder, with paths as seen from the output folder."""

    def make(files: Path, work: Path) -> Mapping[str, Any]:
        lines = target.hand_over(_source(load_model(source.folder), source.folder), files)
        return {"lines": [line.replace(str(files), _HERE) for line in lines]}

    inputs = {
        "model": source.content_hash,
        "target": target.name,
        "settings": target.settings(),
        "versions": _versions(target, source.folder),
        "version": [HAND_OVER_VERSION, target.version],
    }
    step = store.step(f"hand_over:{target.name}", inputs, make)
    copy_changed(step.folder, folder, step.record.files)
    here = folder.relative_to(folder.parent.parent).as_posix()
    return tuple(line.replace(_HERE, here) for line in step.record.facts["lines"])


def _build_or_refuse(
    target: Target, step: StoredStep, variant: str, files: Path, store: RunStore
) -> Mapping[str, Any]:
    try:
        return _build(target, step, variant, files)
    except UnsupportedModelError as error:
        return {"refusal": store.without_paths(str(error))}


def _build(target: Target, step: StoredStep, variant: str, files: Path) -> Mapping[str, Any]:
    model = load_model(step.folder)
    source = _source(model, step.folder)
    with Worker(timeout_s=LOWER_TIMEOUT_S) as worker:
        lowered = worker.lower(target, source, files)
    task = get_task(model.task)
    for path in task.processor_files(step.folder):
        _copy_compact(path, files / path.name)
    bundle = Bundle.create(
        files,
        Manifest(
            schema_version=SCHEMA_VERSION,
            name=variant,
            task=model.task,
            target=target.name,
            target_settings=target.settings(),
            precision=source.precision,
            signature=source.signature,
            model=lowered.model,
            encoder=lowered.encoder,
            options=dict(lowered.options),
            cpu_features=lowered.cpu_features,
            notes=lowered.notes,
            labels=model.labels,
            preprocessing=task.preprocessing(step.folder, model.max_length),
            answers=task.answers_with(model.processor),
            provenance={"model": step.content_hash, "libraries": _versions(target, step.folder)},
            files={},
        ),
    )
    return {"size_bytes": bundle.size_bytes, "notes": list(lowered.notes)}


def _copy_compact(source: Path, destination: Path) -> None:
    """Copy a file, JSON without the spaces: they are a third of a tokenizer's bytes."""
    if source.suffix != ".json":
        shutil.copyfile(source, destination)
        return
    document = json.loads(source.read_text(encoding="utf-8"))
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    destination.write_text(text, encoding="utf-8")


def _source(model: Model, folder: Path) -> Source:
    if isinstance(model, OnnxModel):
        return Source(model.path, model.signature, model.precision, model.ranges)
    task = get_task(model.task)
    signature = task.signature(model)
    if task.keeps_state:
        with suppress(PassError):  # such as a recurrent network: it is run without what it keeps
            signature = task.with_state(model, signature)
    return Source(folder, signature, task=model.task)
