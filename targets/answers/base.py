"""What every kind of answer offers: what of the outputs is judged, and what a user gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from targets.errors import TargetError
from targets.preprocessing.text import MASK
from targets.scoring import Accuracy, accuracy

if TYPE_CHECKING:
    from targets.base import Session
    from targets.evaluation_pack import EvaluationPack, Labels
    from targets.preprocessing import Encoded
    from targets.signature import Arrays

__all__ = [
    "IGNORED",
    "Answering",
    "Answers",
    "BasePrediction",
    "Units",
    "check_finite",
    "classes_of",
    "most_probable",
    "shared_units",
    "side_by_side",
    "softmax",
]

Answering: TypeAlias = "Callable[[Session, Arrays], Arrays]"
"""Answers a batch, (N, ...) each: the outputs of a session for its inputs, or the first of them
alone, of which there is no more than what is kept."""

IGNORED = -100
"""Label of what counts for nothing, by the convention of PyTorch and Hugging Face."""


@dataclass(frozen=True)
class Units:
    """What is judged: the answers to each, and what they should be; `Answers` compares the two.

    Attributes:
        scores: Of every class; the largest is the answer. Where those of all would not fit in
            memory, the answers alone. Of answers that are no classes, the outputs.
            # (units, classes) or (units,)
        labels: True classes, or other answers.  # (units,) or (units, ...)
        rows: Which sample each belongs to; those of one sample are not independent.  # (units,)
        losses: Cross-entropy of each in nats, where the scores are answers alone and perplexity is
            what counts; else None.  # (units,)
    """

    scores: NDArray[Any]
    labels: NDArray[Any]
    rows: NDArray[Any]
    losses: NDArray[Any] | None = None

    @classmethod
    def of(
        cls,
        scores: NDArray[Any],
        labels: NDArray[Any],
        rows: NDArray[np.int64] | None = None,
        losses: NDArray[Any] | None = None,
    ) -> Self:
        """Leave out what counts for nothing.

        Args:
            scores: (N, ..., classes), or the answers, (N, ...) as the labels.
            labels: (N, ...); `IGNORED` where nothing is judged.
            rows: (N,) which sample each belongs to; by default each is one.
            losses: As the labels; see the class.
        """
        if rows is None:
            rows = np.arange(len(labels))
        flat = labels.reshape(-1)
        counted = flat != IGNORED
        shape = (flat.size,) if scores.shape == labels.shape else (flat.size, -1)
        each = np.repeat(rows, flat.size // max(len(labels), 1))
        return cls(
            scores.reshape(shape)[counted],
            flat[counted],
            each[counted].astype(np.int32),
            None if losses is None else losses.reshape(-1)[counted],
        )

    @classmethod
    def joined(cls, parts: Sequence[Units]) -> Self:
        """Those of several batches, in the order of their samples."""
        rows = np.concatenate([each.rows for each in parts])
        order = np.argsort(rows, kind="stable")
        return cls(
            side_by_side([each.scores for each in parts])[order],
            side_by_side([each.labels for each in parts])[order],
            rows[order],
            None
            if parts[0].losses is None
            else np.concatenate([each.losses for each in parts])[order],
        )

    def take(self, indices: NDArray[np.int64]) -> Units:
        """Those at the given indices."""
        losses = None if self.losses is None else self.losses[indices]
        return Units(self.scores[indices], self.labels[indices], self.rows[indices], losses)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> NDArray[np.int64]:
        """The answers.  # (units,)"""
        return classes_of(self.scores)

    @property
    def probabilities(self) -> NDArray[Any]:
        """Of every class, where the scores are logits; else the answers, as the scores are."""
        return softmax(self.scores) if self.scores.ndim > 1 else self.scores

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which answers are the true classes.  # (units,)"""
        return np.asarray(self.classes == self.labels)


def shared_units(first: Units, second: Units) -> tuple[Units, Units]:
    """What two models both judge, of the same data.

    Where a tokenizer splits words into more pieces, more words lie beyond the longest input. Units
    are told apart by their sample and their place in it.

    Args:
        first: In the order of the samples.
        second: In the same order.
    """
    if np.array_equal(first.rows, second.rows):
        return first, second
    width = 1 + max(int(np.bincount(each.rows).max()) for each in (first, second))

    def keys(units: Units) -> NDArray[np.int64]:
        begins = np.searchsorted(units.rows, units.rows)
        return units.rows.astype(np.int64) * width + np.arange(len(units)) - begins

    _, ours, theirs = np.intersect1d(keys(first), keys(second), return_indices=True)
    same = first.labels[ours] == second.labels[theirs]
    return first.take(ours[same]), second.take(theirs[same])


def check_finite(outputs: NDArray[Any], feeds: Arrays) -> None:
    """Refuse outputs of which nothing can be said; lowest values are what networks mask with.

    Args:
        outputs: Of a batch, (N, ...), with padding (N, length, ...).
        feeds: The inputs, (N, ...) each.

    Raises:
        TargetError: Some are NaN or infinite.
    """
    if not outputs.size or outputs.max() < np.inf:  # False for NaN as well
        return
    wrong = np.isnan(outputs) | np.isposinf(outputs)
    mask = feeds.get(MASK)
    if mask is not None and wrong.shape[: mask.ndim] == mask.shape:
        wrong = wrong.reshape(*mask.shape, -1) & (mask != 0)[..., np.newaxis]
    count = int(wrong.reshape(len(wrong), -1).any(axis=1).sum())
    if count:
        raise TargetError(
            "the outputs of the model are not finite",
            where="its outputs",
            given=f"NaN or infinity for {count} of {len(outputs)} inputs",
            fix="use bf16 or fp32, or name the nodes that overflow in exclude of the pass quantize",
        )


class BasePrediction(BaseModel):
    """The answer to one input."""

    model_config = ConfigDict(frozen=True)

    truncated: bool = False
    """Whether the input was longer than the model reads, and its end was left out."""


class Answers(BaseModel, ABC):
    """What the outputs of a model say: a value that a bundle's manifest keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: str
    """Of the answers."""

    unit: ClassVar[str]
    """What is judged, such as ``row`` where an input gets one class."""
    measure: ClassVar[str] = "accuracy"
    """What the mean of the values of all units is called; see :meth:`score`."""
    of_words: ClassVar[bool] = False
    """Whether a user may give a list of words for a text."""
    rows_at_once: ClassVar[int] = 64
    """Samples of a batch whose outputs fit in memory."""

    def raw(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """What the encoder reads of the inputs that a user gives.

        Raises:
            InputError: One of them is not what it should be; names it.
        """
        return inputs

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that answering needs, in the folder of the model."""
        return ()

    def open(self, folder: Path) -> Answering:
        """What lets a model answer: one run a batch, unless answers take several.

        Args:
            folder: Holds ``files``.

        Raises:
            BundleError: A file is damaged.
        """

        def answer(session: Session, feeds: Arrays) -> Arrays:
            outputs, name = session.run(feeds), session.signature.outputs[0].name
            check_finite(outputs[name], feeds)
            return {**outputs, name: self.reduced(outputs[name], feeds)}

        return answer

    def reduced(self, outputs: NDArray[Any], feeds: Arrays) -> NDArray[Any]:
        """What is kept of the outputs for a batch: all, where it is not too much.

        Args:
            outputs: The first output of the model, (N, ...).
            feeds: The inputs, (N, ...) each.
        """
        return outputs

    @abstractmethod
    def place(self, labels: Labels, inputs: Sequence[Any], encoded: Encoded) -> Labels:
        """The labels of samples, where the outputs will have the answers to them.

        Args:
            labels: One a sample, or one array or file a sample.
            inputs: The raw inputs, as the encoder read them.
            encoded: What it made of them.
        """

    def units(self, outputs: NDArray[np.generic], pack: EvaluationPack) -> Units:
        """What is judged of the outputs for a pack.

        Args:
            outputs: What is kept of the first output of the model, in the order of the pack; see
                :meth:`reduced` and `EvaluationPack.restore`.
            pack: What was answered.
        """
        return self.judged(outputs, pack.labels, pack.label_rows)

    def judged(
        self, scores: NDArray[Any], labels: NDArray[Any], rows: NDArray[np.int64] | None = None
    ) -> Units:
        """What is judged of some samples, where they lie side by side; see `Units.of`."""
        return Units.of(scores, labels, rows)

    def values(self, units: Units) -> NDArray[Any]:
        """How good the answer to each unit is, at most 1: of classes, whether it is the true one.

        Returns:
            (units,)
        """
        return units.right

    def overall(self, units: Units) -> float:
        """How good all answers are together: the mean of the values, where they have one."""
        return float(self.values(units).mean())

    def score(self, units: Units) -> Accuracy:
        """The same with its interval: what reports show and budgets limit."""
        return accuracy(units.right, units.rows, unit=self.unit)

    def given(self, units: Units) -> NDArray[np.int64]:
        """The answer to each unit as a number: where it differs, the answer is another one.

        Returns:
            (units,)
        """
        return units.classes

    @abstractmethod
    def predictions(
        self,
        outputs: NDArray[np.floating],
        names: Sequence[str],
        inputs: Sequence[Any],
        encoded: Encoded,
    ) -> list[Any]:
        """What a user gets: one prediction an input.

        Args:
            outputs: What is kept of the first output of the model, in the order of the inputs.
            names: Of the classes.
            inputs: What the user gave, N >= 1.
            encoded: What the encoder made of them.
        """


def side_by_side(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows of several arrays in one; where they are not as wide, filled up with 0.

    Args:
        parts: (N, ...) each, alike in all but the first two axes.
    """
    if len({part.shape[1:] for part in parts}) > 1:
        width = max(part.shape[1] for part in parts)
        parts = [
            np.pad(part, [(0, 0), (0, width - part.shape[1]), *[(0, 0)] * (part.ndim - 2)])
            for part in parts
        ]
    return np.concatenate(parts)


def most_probable(scores: NDArray[Any]) -> NDArray[np.int64]:
    """The class with the largest score, over the last axis."""
    return np.asarray(scores.argmax(axis=-1), dtype=np.int64)


def classes_of(answers: NDArray[Any]) -> NDArray[np.int64]:
    """The class of each unit.

    Args:
        answers: (M, classes) scores, or the classes themselves, (M,).
    """
    return most_probable(answers) if answers.ndim > 1 else answers


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities from logits, over the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
