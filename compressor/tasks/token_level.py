"""What tasks have in common whose labels stand at the tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.tasks.base import LABELS, Row, padded
from compressor.tasks.text_classification import TextClassification
from targets.answers import IGNORED
from targets.preprocessing.text import MASK

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.model import Model

__all__ = ["AtTokens", "TokenLevel"]


class AtTokens:
    """The labels of rows, and what is answered, stand at their tokens: for tasks of texts."""

    def collate_labels(self, rows: Sequence[Row]) -> NDArray[np.int64]:
        """See the base class.  # (N, longest)"""
        return padded([row[LABELS] for row in rows], IGNORED)

    def answered(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """See the base class: every token.

        Not those alone that have a label: noise replaces tokens one by one and moves where words
        begin, and the teacher has an answer at every token.
        """
        return outputs[batch[MASK] != 0]


class TokenLevel(AtTokens, TextClassification):
    """A label, or none, for each token of a text."""

    reads_stretches: ClassVar[bool] = False

    def encode_unlabeled(self, model: Model, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """See the base class."""
        rows = self.encode(model, inputs)
        return [{**row, LABELS: [IGNORED] * self.length(row)} for row in rows]

    def judged(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class: the tokens that have a label."""
        counted = batch[LABELS] != IGNORED
        return logits[counted], batch[LABELS][counted]
