"""One label out of several for an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from targets.answers.base import Answers, BasePrediction, most_probable, softmax

if TYPE_CHECKING:
    from targets.evaluation_pack import Labels
    from targets.preprocessing import Encoded

__all__ = ["LabelAnswers", "Prediction", "by_name"]


class Prediction(BasePrediction):
    """The label of one input."""

    label: str
    """The most probable label."""
    score: float
    """Its probability."""
    scores: dict[str, float]
    """The probability of every label; they add up to 1."""


def by_name(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """The values of classes, of which two may have one name: theirs are added up."""
    found = dict.fromkeys(names, 0.0)
    for name, value in zip(names, values, strict=True):
        found[name] += value
    return found


class LabelAnswers(Answers):
    """The outputs are the logits of an input's classes, (samples, classes)."""

    kind: Literal["labels"] = "labels"

    unit: ClassVar[str] = "row"

    def place(self, labels: Labels, inputs: Sequence[Any], encoded: Encoded) -> Labels:
        """See the base class: where they are."""
        return labels

    def predictions(
        self,
        outputs: NDArray[np.floating],
        names: Sequence[str],
        inputs: Sequence[Any],
        encoded: Encoded,
    ) -> list[Prediction]:
        """See the base class."""
        probabilities = softmax(outputs)
        return [
            Prediction(
                label=names[found],
                score=float(row[found]),
                scores=by_name(names, row.tolist()),
                truncated=truncated,
            )
            for truncated, row, found in zip(
                encoded.truncated, probabilities, most_probable(probabilities), strict=True
            )
        ]
