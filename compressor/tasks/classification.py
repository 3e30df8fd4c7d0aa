"""What tasks have in common whose answers are classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.checkpoint import label_names
from compressor.metrics import METRICS
from compressor.tasks.base import LABELS, Row, Task
from targets.answers import IGNORED, AnyAnswers, LabelAnswers, Units, classes_of
from targets.scoring import count_equal
from targets.signature import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.data import Split
    from compressor.model import Model, TorchModel
    from compressor.report.schema import ChangedExample, Comparison

__all__ = ["Classification"]


class Classification(Task):
    """One label out of several for an input, or for its parts."""

    answers: ClassVar[AnyAnswers] = LabelAnswers()
    metrics: ClassVar[Collection[str]] = METRICS.keys()
    not_compared: ClassVar[frozenset[str]] = frozenset({"max_perplexity_rise"})

    def class_names(self, config: Any) -> tuple[str, ...]:
        """See the base class."""
        names: Mapping[int, str] = config.id2label
        return tuple(str(names[index]) for index in sorted(names))

    def label_names(self, folder: Path) -> tuple[str, ...]:
        """See the base class."""
        return label_names(folder)

    def outputs(self, model: TorchModel) -> tuple[TensorSpec, ...]:
        """See the base class."""
        return (TensorSpec(name="logits", dtype="float32", shape=("batch", len(model.labels))),)

    def encode_labelled(self, model: Model, split: Split) -> list[dict[str, Any]]:
        """See the base class."""
        rows = self.encode(model, split.inputs)
        return [{**row, LABELS: int(label)} for row, label in zip(rows, split.labels, strict=True)]

    def encode_unlabeled(self, model: Model, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """See the base class."""
        return [{**row, LABELS: IGNORED} for row in self.encode(model, inputs)]

    def collate_labels(self, rows: Sequence[Row]) -> NDArray[Any]:
        """See the base class."""
        return np.array([row[LABELS] for row in rows], dtype=np.int64)

    def judged(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the labels of a batch judge: what a loss is computed from.

        Args:
            logits: The output for the batch, (N, ...).
            batch: With ``labels``, (N, ...).

        Returns:
            Logits (M, classes), and the labels of them (M,).
        """
        return logits, batch[LABELS]

    def loss(
        self, outputs: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See the base class: cross-entropy, in nats."""
        from torch.nn import functional

        logits, labels = self.judged(outputs, batch)
        total = functional.cross_entropy(
            logits, labels, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
        )
        return total, (labels != IGNORED).sum()

    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        batch: Mapping[str, Tensor],
        *,
        temperature: float,
    ) -> Tensor:
        """See the base class: that of the classes."""
        from compressor.training.losses import logits_kl

        return logits_kl(
            self.answered(student, batch), self.answered(teacher, batch), temperature=temperature
        )

    def kept(self, units: Units) -> NDArray[Any]:
        """See the base class: the probabilities of all classes, or the classes."""
        answered = units.probabilities
        return answered.astype(np.float32) if answered.ndim > 1 else answered

    def drop(
        self,
        before: NDArray[Any],
        after: NDArray[Any],
        labels: NDArray[Any] | None,
        rows: NDArray[np.int64] | None,
    ) -> tuple[float, float, float]:
        """See the base class: of the accuracy."""
        from compressor.evaluation import paired_drop

        first, second, counts = classes_of(before), classes_of(after), None
        assert labels is not None  # reports of classes have them
        right_before, right_after = first == labels, second == labels
        if rows is not None:
            (rows, *equal), counts = count_equal((rows, right_before, right_after))
            right_before, right_after = (each != 0 for each in equal)
        found = paired_drop(right_before, right_after, rows, counts)
        return found.points, found.low, found.high

    def compare(
        self,
        reference: Units,
        candidate: Units,
        *,
        label_names: Sequence[str],
        slices: Mapping[str, Sequence[str]],
    ) -> Comparison:
        """See the base class."""
        from compressor.fidelity import compare_answers

        return compare_answers(
            reference.probabilities,
            candidate.probabilities,
            candidate.labels,
            label_names=label_names,
            rows=candidate.rows,
            slices=slices,
        )

    def changed(
        self,
        reference: Units,
        candidate: Units,
        *,
        label_names: Sequence[str],
        title: Callable[[int, int], str] | None,
    ) -> tuple[ChangedExample, ...]:
        """See the base class: those that got another label."""
        from compressor.fidelity import changed_examples

        return changed_examples(
            reference.probabilities,
            candidate.probabilities,
            candidate.labels,
            label_names=label_names,
            rows=candidate.rows,
            title=title,
        )
