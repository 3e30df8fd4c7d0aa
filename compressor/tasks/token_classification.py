"""Token classification: a label for each word of a text, such as its part of speech."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.tasks.base import LABELS, Row
from compressor.tasks.text import text_rows
from compressor.tasks.text_classification import TextClassification
from targets.answers import IGNORED, AnyAnswers, TokenLabelAnswers
from targets.answers.token_labels import SPACE, place_labels
from targets.preprocessing.text import MASK
from targets.signature import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.data import LabelField, Split
    from compressor.model import Model, TorchModel

__all__ = ["TokenClassification"]

NUM_AROUND = 5
"""Words on either side of one in what a report calls it."""


class TokenClassification(TextClassification):
    """Classification of words with a transformer encoder.

    The raw inputs are texts whose words are separated by one space; see
    `targets.answers.token_labels.join_words`.
    """

    name: ClassVar[str] = "token-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForTokenClassification",)
    answers: ClassVar[AnyAnswers] = TokenLabelAnswers()
    label_field: ClassVar[LabelField] = "tags"

    def outputs(self, model: TorchModel) -> tuple[TensorSpec, ...]:
        """See the base class: logits of every token."""
        shape = ("batch", "sequence", len(model.labels))
        return (TensorSpec(name="logits", dtype="float32", shape=shape),)

    def encode_labelled(self, model: Model, split: Split) -> list[dict[str, Any]]:
        """See the base class: labels of tokens, those of words at their first token."""
        tokenized = self.tokenized(model, split.inputs)
        placed = place_labels(split.labels, split.inputs, tokenized.encodings)
        rows = zip(text_rows(tokenized), placed, strict=True)
        return [{**row, LABELS: labels} for row, labels in rows]

    def encode_unlabeled(self, model: Model, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """See the base class."""
        rows = self.encode(model, inputs)
        return [{**row, LABELS: [IGNORED] * self.length(row)} for row in rows]

    def collate_labels(self, rows: Sequence[Row]) -> NDArray[np.int64]:
        """See the base class.  # (N, longest)"""
        longest = max(map(self.length, rows))
        labels = np.full((len(rows), longest), IGNORED, dtype=np.int64)
        for index, row in enumerate(rows):
            labels[index, : len(row[LABELS])] = row[LABELS]
        return labels

    def judged(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class: the first tokens of words."""
        counted = batch[LABELS] != IGNORED
        return logits[counted], batch[LABELS][counted]

    def answered(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """See the base class: every token.

        Not the first tokens of words alone: noise replaces tokens one by one and moves where words
        begin, and the teacher has an answer at every token.
        """
        return outputs[batch[MASK] != 0]

    def title(self, value: Any, place: int) -> str:
        """See the base class: the word, and some of the words around it."""
        words = str(value).split(SPACE)
        around = words[max(0, place - NUM_AROUND) : place + NUM_AROUND + 1]
        return f"{words[place]} (in: {SPACE.join(around)})"
