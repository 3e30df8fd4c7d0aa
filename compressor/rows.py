"""From what was built and measured to the rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor import evaluation
from compressor.lowering import Candidate
from compressor.measuring import SPLITS, Predictions
from compressor.recipe.schema import Recipe
from compressor.report.schema import Row
from compressor.store import RunStore
from compressor.tasks import Task
from compressor.verdict import choose, shortfalls
from targets.base import Target
from targets.benchmark import CaseResult, Failure, Shape
from targets.measurement import Measurement, speedup
from targets.scoring import Accuracy
from targets.scoring import accuracy as accuracy_of

__all__ = ["Rows", "accuracy", "shape_key"]


def shape_key(shape: Shape) -> str:
    """How a shape is named in a report: batch x tokens."""
    return str(shape).replace(" ", "")


def accuracy(task: Task, predictions: Predictions, split: str) -> Accuracy:
    """Accuracy on a split with its interval."""
    correct = _classes(task, predictions, split) == predictions[f"{split}_labels"]
    return accuracy_of(np.asarray(correct))


def _classes(task: Task, predictions: Predictions, split: str) -> NDArray[np.int64]:
    """Predicted classes of a split, (N,)."""
    return task.predictions(predictions[split])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rows:
    """Builds the rows of a run.

    Attributes:
        recipe: Its budget and its shapes count.
        store: Whose paths are kept out of reasons.
        task: Turns outputs into classes.
        candidates: What was lowered; the eager reference first.
        predictions: Candidate key -> its outputs, for those that ran.
        failures: Candidate key -> why its evaluation failed.
        found: Candidate key -> what its evaluation noticed.
        latencies: Candidate key -> its times, for those that were measured.
        bundles: Candidate key -> folder of the bundle, relative to the report.
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

    @property
    def primary(self) -> str:
        """The shape that speed-ups and the budget refer to."""
        return shape_key(self.recipe.benchmark.shapes[0])

    def build(self) -> list[Row]:
        """All rows: judged against the budget, those to ship marked."""
        rows = [self._row(each) for each in self.candidates]
        budget, primary = self.recipe.budget, self.primary
        chosen = set(choose(rows, budget, primary).values())
        judged = []
        for index, (row, candidate) in enumerate(zip(rows, self.candidates, strict=True)):
            unmet: tuple[str, ...] = ()
            if row.kind == "candidate" and row.status == "measured":
                missed = shortfalls(row, budget, row.test_comparison, primary)
                unmet = tuple(text for _, text in missed.values())
            bundle = self.bundles.get(candidate.key)
            changes = {"unmet": unmet, "chosen": index in chosen, "bundle": bundle}
            judged.append(row.model_copy(update=changes))
        return judged

    def _row(self, candidate: Candidate) -> Row:
        row = self._facts(candidate)
        predictions = self.predictions.get(candidate.key)
        if predictions is not None:
            row = row.model_copy(update=self._accuracies(predictions))
        measured = self._measurements(candidate)
        if measured:
            update = {"latency": measured, **self._speedups(candidate)}
            if self.primary in measured:
                update["status"] = "measured"
            row = row.model_copy(update=update)
        return row

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
            variant=candidate.variant,
            kind=candidate.kind,
            target=candidate.target.name,
            device=None if is_default else device,
            precision=candidate.precision,
            status=status,
            reason=reason,
            size_bytes=size,
            size_ratio=ratio,
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
            update[split] = accuracy(self.task, predictions, split)
            if reference is not None:
                update[f"{split}_comparison"] = evaluation.compare(
                    _classes(self.task, reference, split),
                    _classes(self.task, predictions, split),
                    predictions[f"{split}_labels"],  # type: ignore[arg-type]
                )
        return update

    def _measurements(self, candidate: Candidate) -> dict[str, Measurement]:
        result = self.latencies.get(candidate.key)
        if result is None:
            return {}
        return {
            shape_key(Shape(each.batch_size, each.sequence_length)): each
            for each in result.measurements
        }

    def _latency_failure(self, candidate: Candidate) -> str | None:
        result = self.latencies.get(candidate.key)
        failed = None if result is None else result.at(self.recipe.benchmark.shapes[0])
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
