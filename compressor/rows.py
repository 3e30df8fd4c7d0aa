"""From what was built and measured to the rows of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.gate.verdict import judge_rows
from compressor.lowering import Candidate
from compressor.measuring import SPLITS, Predictions
from compressor.recipe.schema import Recipe
from compressor.report.schema import LayerError, OnDevice, Row
from compressor.report.wording import perplexity_text
from compressor.store import RunStore
from compressor.tasks import Task
from targets.answers.base import shared_units
from targets.base import Target
from targets.benchmark import CaseResult, Failure, Shape
from targets.measurement import Measurement, speedup
from targets.scoring import Accuracy
from targets.writing import Writing, writing_speedup

if TYPE_CHECKING:
    from compressor.data import Split

__all__ = ["Rows", "accuracy", "shape_key"]


def shape_key(shape: Shape) -> str:
    """How a shape is named in a report: batch x length, or the batch alone."""
    return str(shape).replace(" x ", "x")


def _by_shape(result: CaseResult) -> dict[str, Measurement]:
    return {
        shape_key(Shape(each.batch_size, each.sequence_length)): each
        for each in result.measurements
    }


def accuracy(task: Task, predictions: Predictions, split: str) -> Accuracy:
    """Accuracy on a split with its interval."""
    return task.answers.score(predictions[split])


@dataclass(frozen=True)
class Rows:
    """Builds the rows of a run.

    Attributes:
        recipe: Its budget and its shapes count.
        store: Whose paths are kept out of reasons.
        task: Says what is judged, and what it is called.
        candidates: What was lowered; the eager reference first.
        predictions: Candidate key -> its outputs, for those that ran.
        failures: Candidate key -> why its evaluation failed.
        found: Candidate key -> what its evaluation noticed.
        latencies: Candidate key -> its times, for those that were measured.
        bundles: Candidate key -> folder of the bundle, relative to the report.
        label_names: Of the classes.
        splits: Split -> the examples, for their slices and texts; empty where neither is wanted.
        writing: Candidate key -> how fast it wrote, for language models.
        layers: Candidate key -> the error of each layer of a quantized one.
        devices: Name of a remote device -> candidate key -> its times there.
    """

    recipe: Recipe
    store: RunStore
    task: Task
    candidates: Sequence[Candidate]
    predictions: Mapping[str, Predictions]
    failures: Mapping[str, str]
    found: Mapping[str, str]
    latencies: Mapping[str, CaseResult]
    bundles: Mapping[str, str]
    label_names: Sequence[str] = ()
    splits: Mapping[str, Split] = field(default_factory=dict)
    writing: Mapping[str, Writing] = field(default_factory=dict)
    layers: Mapping[str, tuple[LayerError, ...]] = field(default_factory=dict)
    devices: Mapping[str, Mapping[str, CaseResult]] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        """The shape that speed-ups and the budget refer to."""
        return shape_key(self.recipe.benchmark.shapes[0])

    def build(self) -> list[Row]:
        """All rows: judged against the budget, those to ship marked."""
        rows = [self._row(each) for each in self.candidates]
        return judge_rows(rows, self.recipe.budget, self.primary)

    def answers(self) -> dict[str, NDArray[np.generic]]:
        """What is judged of the test data; see `compressor.report.files.write_report`."""
        found: dict[str, NDArray[np.generic]] = {}
        for key, predictions in self.predictions.items():
            units = predictions["test"]
            found[key] = self.task.kept(units)
            own = {"rows": units.rows}
            if units.labels.ndim == 1:
                own["labels"] = units.labels
            for name, values in own.items():
                first = found.setdefault(name, values)
                if not np.array_equal(first, values):  # it judges other parts of the rows
                    found[f"{key}.{name}"] = values
            if units.losses is not None:
                found[f"{key}.losses"] = units.losses
        return found

    def _row(self, candidate: Candidate) -> Row:
        row = self._facts(candidate)
        predictions = self.predictions.get(candidate.key)
        if predictions is not None:
            row = row.model_copy(update=self._accuracies(predictions))
            row = row.model_copy(update={"notes": (*row.notes, *_perplexities(row))})
        measured = self._measurements(candidate)
        if measured:
            update = {"latency": measured, **self._speedups(candidate)}
            if self.primary in measured:
                update["status"] = "measured"
            row = row.model_copy(update=update)
        own = {"devices": self._on_devices(candidate), **self._written(candidate)}
        return row.model_copy(update=own)

    def _written(self, candidate: Candidate) -> dict[str, Any]:
        """How fast it wrote, beside the untouched model."""
        own, eager = (self.writing.get(each.key) for each in (candidate, self.candidates[0]))
        if own is None:
            return {}
        bases = [
            self.writing[each.key]
            for each in self.candidates
            if self._is_baseline(each, candidate.target) and each.key in self.writing
        ]
        fastest = max(bases, key=lambda each: each.written_per_s, default=None)
        return {
            "writing": own,
            "writing_speedup": None if fastest is None else writing_speedup(fastest, own),
            "writing_speedup_eager": None if eager is None else writing_speedup(eager, own),
        }

    def _on_devices(self, candidate: Candidate) -> dict[str, OnDevice]:
        found = {}
        for name, results in self.devices.items():
            result = results.get(candidate.key)
            if result is None:
                continue
            own = _by_shape(result).get(self.primary)
            bases = [
                measured
                for each in self.candidates
                if self._is_baseline(each, candidate.target) and each.key in results
                if (measured := _by_shape(results[each.key]).get(self.primary)) is not None
            ]
            found[name] = OnDevice(
                latency=_by_shape(result),
                speedup=speedup(min(bases, key=lambda each: each.median_ms), own)
                if own is not None and bases
                else None,
                reason=None if own is not None else self._failure(result),
            )
        return found

    def _facts(self, candidate: Candidate) -> Row:
        status: Any = candidate.status
        reason = self.failures.get(candidate.key, candidate.reason)
        failure = self._latency_failure(candidate)
        if candidate.key in self.failures or failure is not None:
            status, reason = "failed", reason or failure
        device = getattr(candidate.target, "device", None)
        is_default = candidate.target.label == candidate.target.name
        step = candidate.bundle
        size = None if step is None else int(step.record.facts["size_bytes"])
        base = self._baseline(candidate.target, "fp32")
        ratio = None
        if size and base is not None and base.bundle is not None:
            ratio = base.bundle.record.facts["size_bytes"] / size
        return Row(
            key=candidate.key,
            variant=candidate.variant,
            kind=candidate.kind,
            target=candidate.target.name,
            device=None if is_default else device,
            precision=candidate.precision,
            status=status,
            reason=reason,
            size_bytes=size,
            size_ratio=ratio,
            bundle=self.bundles.get(candidate.key),
            layers=self.layers.get(candidate.key, ()),
            notes=self._notes(candidate),
        )

    def _notes(self, candidate: Candidate) -> tuple[str, ...]:
        """What lowering and evaluation said about a bundle."""
        lowered = () if candidate.bundle is None else candidate.bundle.record.facts["notes"]
        evaluated = self.found.get(candidate.key)
        return (*lowered, *(() if evaluated is None else (evaluated,)))

    def _accuracies(self, predictions: Predictions) -> dict[str, Any]:
        """Accuracy on both splits, and what was lost against the untouched model in eager torch."""
        update: dict[str, Any] = {}
        reference = self.predictions.get(self.candidates[0].key)
        for split in SPLITS:
            if split not in predictions:
                continue
            update[split] = accuracy(self.task, predictions, split)
            if reference is None:
                continue
            untouched, units = shared_units(reference[split], predictions[split])
            examples = self.splits.get(split)
            update[f"{split}_comparison"] = self.task.compare(
                untouched,
                units,
                label_names=self.label_names,
                slices={} if examples is None else examples.slices,
            )
            if split == "test":
                private = not self.recipe.bundle.evaluation_data
                update["changed"] = self.task.changed(
                    untouched,
                    units,
                    label_names=self.label_names,
                    title=None if examples is None or private else partial(self._title, examples),
                )
        return update

    def _title(self, split: Split, row: int, place: int) -> str:
        """What a report calls a unit: a text itself, a file by its name, else its row."""
        value = split.inputs[row]
        if isinstance(value, bytes):
            return f"row {row + 1}"
        return self.task.title(value, place)

    def _measurements(self, candidate: Candidate) -> dict[str, Measurement]:
        result = self.latencies.get(candidate.key)
        return {} if result is None else _by_shape(result)

    def _latency_failure(self, candidate: Candidate) -> str | None:
        result = self.latencies.get(candidate.key)
        return None if result is None else self._failure(result)

    def _failure(self, result: CaseResult) -> str | None:
        failed = result.at(self.recipe.benchmark.shapes[0])
        if not isinstance(failed, Failure):
            return None
        return self.store.without_paths(str(failed.error))

    def _speedups(self, candidate: Candidate) -> dict[str, Any]:
        own = self._primary_measurement(candidate)
        if own is None:
            return {}
        bases = [each for each in self.candidates if self._is_baseline(each, candidate.target)]
        timed = [each for each in map(self._primary_measurement, bases) if each is not None]
        eager = self._primary_measurement(self.candidates[0])
        update: dict[str, Any] = {}
        if timed:
            fastest = min(timed, key=lambda each: each.median_ms)
            update["speedup"] = speedup(fastest, own)
        if eager is not None:
            update["speedup_eager"] = speedup(eager, own)
        return update

    def _primary_measurement(self, candidate: Candidate) -> Measurement | None:
        return self._measurements(candidate).get(self.primary)

    def _is_baseline(self, each: Candidate, target: Target) -> bool:
        """Whether ``each`` is the untouched model on ``target``."""
        return each.kind != "candidate" and each.target == target

    def _baseline(self, target: Target, precision: str) -> Candidate | None:
        found = (
            each
            for each in self.candidates
            if self._is_baseline(each, target) and each.precision == precision
        )
        return next(found, None)


def _perplexities(row: Row) -> Iterator[str]:
    """What is said of the perplexity of a row, of the test data where that was predicted."""
    compared = row.test_comparison or row.validation_comparison
    if compared is not None and compared.perplexity is not None:
        yield f"perplexity {perplexity_text(compared.perplexity)}"
