"""The pass manager: runs a chain of passes through the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.cells import as_data_error
from compressor.errors import CheckpointError, PassError, StoreError
from compressor.passes import Pass, PassContext, PassResult
from compressor.progress import Progress
from compressor.store import RunStore, StoredStep, step_key
from compressor.training.settings import TrainingSettings
from targets.bundle import hash_file
from targets.discovery import foreign_source
from targets.environment import library_versions
from targets.errors import InputError, ToolkitError, is_disk_full
from targets.networks import network_source
from targets.provenance import checkpoint_hashes
from targets.scoring import perplexity

if TYPE_CHECKING:
    from compressor.data import Splits
    from compressor.model import Model, TorchModel
    from compressor.training.teacher import TeacherMemory

__all__ = ["PassManager", "TrainingStoppedError", "import_checkpoint"]

IMPORT_VERSION = 6  # goes up when importing a checkpoint gives another result


def import_checkpoint(
    folder: Path,
    *,
    task: str,
    max_length: int | None,
    store: RunStore,
    splits: Callable[[], Splits],
    data_hash: str,
    progress: Progress,
) -> StoredStep:
    """Bring a user's checkpoint into the store, checked and in the form that passes take.

    Raises:
        CheckpointError: It cannot be used.
    """
    from compressor.tasks import get_task
    from targets.encoder import encoder_layers

    inputs = {
        "files": checkpoint_hashes(folder),
        "task": task,
        "max_length": max_length,
        "data": data_hash,
        "version": IMPORT_VERSION,
        "libraries": library_versions(("torch", "transformers")) | network_source(folder),
    }

    def make(files: Path, work: Path) -> dict[str, Any]:
        model = get_task(task).load_checkpoint(folder, max_length=max_length)
        model.save(files)
        data = splits()
        _read_held_out_files(model, data)
        facts = _facts(model, files, {}, _cut_inputs(model, data), (), data)
        return {**facts, "has_known_layers": bool(encoder_layers(model.module))}

    progress.start("load the checkpoint")
    step = store.step("import", inputs, make)
    facts = step.record.facts
    progress.finish("; ".join([facts["architecture"], *facts["notes"]]), cached=step.cached)
    return step


def _read_held_out_files(model: TorchModel, splits: Splits) -> None:
    """Read the files by which models are judged once: one that is broken is told before a training.

    Raises:
        DataError: A file cannot be read.
    """
    from compressor.tasks import get_task

    task = get_task(model.task)
    if task.preprocessing_type.reads_files():
        for split in (splits.validation, splits.test):
            for each in split.inputs:
                try:
                    task.encode(model, [each])
                except InputError as error:
                    raise as_data_error(error) from error


def _cut_inputs(model: TorchModel, splits: Splits) -> tuple[str, ...]:
    """A note on the inputs that are longer than the model's longest input."""
    from compressor.tasks import get_task

    task = get_task(model.task)
    inputs = [one for each in (splits.train, splits.validation, splits.test) for one in each.inputs]
    longer = task.num_cut(model, inputs)
    if not longer:
        return ()
    noun, unit = task.preprocessing_type.noun, task.preprocessing_type.unit
    return (f"NOTE: {longer} of {len(inputs)} {noun}s are cut to {model.max_length} {unit}",)


class TrainingStoppedError(Exception):
    """Raised where a training is told its accuracy: it is not worth going on."""


@dataclass(frozen=True)
class PassManager:
    """Runs chains of passes; each finished step is kept, and found again by what went into it.

    Attributes:
        store: Where steps are kept.
        original: The untouched model.
        splits: Reads the data; called only when a step has to be made.
        data_hash: The sha256 of the data.
        seed: Of every random choice.
        width_multiple: Widths are rounded to multiples of it.
        progress: Is told what happens.
        on_evaluation: Is told each accuracy of each training: (epoch, validation accuracy), also of
            one that was found finished. Where it raises `TrainingStoppedError`, the pass ends, and
            nothing of it is kept.
        teacher_memory: Keeps what the untouched model says from one training to the next.
    """

    store: RunStore
    original: StoredStep
    splits: Callable[[], Splits]
    data_hash: str
    seed: int
    width_multiple: int
    progress: Progress
    on_evaluation: Callable[[int, float], None] = lambda epoch, accuracy: None
    teacher_memory: TeacherMemory | None = None
    _done: dict[str, StoredStep] = field(default_factory=dict, init=False, repr=False)
    """What this run made or found so far: variants share their first steps."""

    def run(
        self, passes: Sequence[Pass], *, variant: str | None = None, num_shared: int = 0
    ) -> list[StoredStep]:
        """Run the passes one after the other on the original.

        Args:
            passes: A chain.
            variant: What the progress calls it.
            num_shared: So many of the first passes belong to all variants, and are called by their
                own name alone.

        Raises:
            PassError: A pass cannot start, failed, or broke its promise; what was finished before
                it is kept.
        """
        steps = []
        current = self.original
        for index, each in enumerate(passes):
            own = variant is not None and index >= num_shared
            title = f"{variant}: {each.name}" if own else each.name
            current = self._run_one(each, current, title)
            steps.append(current)
        return steps

    def find(self, passes: Sequence[Pass]) -> StoredStep | None:
        """What the passes leave, where all of them are in the store already."""
        current = self.original
        for each in passes:
            key = step_key(f"pass:{each.name}", self._inputs(each, current))
            found = self._done.get(key) or self.store.find(key)
            if found is None:
                return None
            current = found
        return current

    def is_begun(self, passes: Sequence[Pass]) -> bool:
        """Whether the last of the passes is in the store, finished or with a checkpoint."""
        from compressor.training.checkpoints import last_checkpoint

        source = self.find(passes[:-1])
        if source is None:
            return False
        key = step_key(f"pass:{passes[-1].name}", self._inputs(passes[-1], source))
        if key in self._done or self.store.is_finished(key):
            return True
        return last_checkpoint(self.store.work_folder(key)) is not None

    def _run_one(self, each: Pass, source: StoredStep, title: str) -> StoredStep:
        def make(files: Path, work: Path) -> Mapping[str, Any]:
            return self._make(each, source, files, work)

        kind, inputs = f"pass:{each.name}", self._inputs(each, source)
        key = step_key(kind, inputs)
        if key not in self._done:
            self.progress.start(title)
            try:
                step = self.store.step(kind, inputs, make)
            except TrainingStoppedError:
                with suppress(StoreError):  # another run may want what this one gave up
                    self.store.remove(key)
                raise
            self.progress.finish(_headline(step), cached=step.cached)
            if step.cached and isinstance(each, TrainingSettings):
                self._report_again(step)
            self._done[key] = step
        return self._done[key]

    def _report_again(self, step: StoredStep) -> None:
        for entry in step.record.facts["history"]:
            if "validation_accuracy" in entry:
                self.on_evaluation(round(entry["epoch"]), entry["validation_accuracy"])

    def _inputs(self, each: Pass, source: StoredStep) -> dict[str, Any]:
        return {
            "model": source.content_hash,
            "settings": each.portable_settings(),  # what the files hold is named below
            "version": each.version,
            **({"parts": dict(each.parts)} if each.parts else {}),
            "libraries": library_versions(each.libraries)
            | foreign_source(type(each))
            | network_source(source.folder)
            | (network_source(self.original.folder) if each.uses_original else {}),
            "seed": self.seed,
            "width_multiple": self.width_multiple,
            # A torch model is judged on the validation data, whatever made it.
            "data": self.data_hash if each.uses_data or each.produces == "torch" else None,
            "original": self.original.content_hash if each.uses_original else None,
            "files": [hash_file(path) for path in each.input_files if path.is_file()],
        }

    def _make(self, each: Pass, source: StoredStep, files: Path, work: Path) -> Mapping[str, Any]:
        from compressor.model import TorchModel, load_model

        model = load_model(source.folder)
        context = PassContext(
            splits=self.splits().without_test(),
            load_original=lambda: TorchModel.load(self.original.folder),
            seed=self.seed,
            folder=work,
            width_multiple=self.width_multiple,
            progress=self.progress.update,
            on_evaluation=self.on_evaluation,
            teacher_memory=self.teacher_memory,
        )
        try:
            each.requires(model, context)
            result = each.run(model, context)
            _check_form(each, result)
            each.ensures(model, result, context)
        except (ToolkitError, TrainingStoppedError, KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:
            if is_disk_full(error):
                raise
            raise PassError(
                f"the pass {each.name} failed: {type(error).__name__}: {error}",
                where=each.name,
                given=each.settings(),
                fix="run again with --debug to see where; finished steps are kept",
            ) from error
        _save(each, result, files)
        return _facts(
            result.model, files, result.metrics, result.notes, result.history, context.splits
        )


def _save(each: Pass, result: PassResult, files: Path) -> None:
    try:
        result.model.save(files)
    except CheckpointError as error:
        raise PassError(
            f"the model that the pass {each.name} made cannot be saved: {error.what}",
            where=each.name,
            given=error.given,
            fix=error.fix,
        ) from error


def _check_form(each: Pass, result: PassResult) -> None:
    if getattr(getattr(result, "model", None), "form", None) is None:
        raise PassError(
            f"the pass {each.name} did not return a PassResult with a model",
            given=type(result).__name__,
            fix="correct the pass: its run has to end with return PassResult(model=...)",
        )
    if result.model.form != each.produces:
        raise PassError(
            f"the pass {each.name} did not return a model in {each.produces} form, as it promises",
            given=result.model.form,
            fix="correct the pass: its model, or its produces",
        )


def _facts(
    model: Model,
    files: Path,
    metrics: Mapping[str, float],
    notes: Sequence[str],
    history: Sequence[Mapping[str, float]],
    splits: Splits,
) -> dict[str, Any]:
    """What to record of a model that was just saved."""
    from compressor.answering import answer
    from compressor.architecture import Architecture
    from compressor.model import TorchModel
    from compressor.tasks import get_task

    facts: dict[str, Any] = {
        "metrics": dict(metrics),
        "notes": list(notes),
        "history": [dict(entry) for entry in history],
        "form": model.form,
        "precision": "fp32" if isinstance(model, TorchModel) else model.precision,
        "num_parameters": None,
        "architecture": None,
        "size_bytes": sum(path.stat().st_size for path in files.rglob("*") if path.is_file()),
    }
    if isinstance(model, TorchModel):
        facts["num_parameters"] = model.num_parameters
        facts["architecture"] = Architecture.read(files).describe()
        judged = answer(model, splits.validation)
        facts["metrics"]["validation_accuracy"] = get_task(model.task).answers.overall(judged)
        if judged.losses is not None:
            facts["metrics"]["validation_perplexity"] = perplexity(judged.losses)
    return facts


def _headline(step: StoredStep) -> str:
    """One line on what a pass did."""
    facts = step.record.facts
    parts = []
    if facts["architecture"]:
        parts.append(facts["architecture"])
    if facts["num_parameters"]:
        parts.append(f"{facts['num_parameters'] / 1e6:.1f}M parameters")
    found = facts["metrics"].get("validation_perplexity")
    accuracy = facts["metrics"].get("validation_accuracy")
    if found is not None:
        parts.append(f"validation perplexity {found:.1f}")
    elif accuracy is not None:
        parts.append(f"validation {100 * accuracy:.1f}%")
    if not parts:
        parts.append(f"{facts['size_bytes'] / 1e6:.1f} MB")
        parts.extend(facts["notes"][:1])
    return ", ".join(parts)
