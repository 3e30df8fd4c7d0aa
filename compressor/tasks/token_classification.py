"""Token classification: a label for each word of a text, such as its part of speech."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.entities import is_iob2
from compressor.metrics import ENTITY_METRICS, METRICS
from compressor.tasks.base import LABELS
from compressor.tasks.text import text_rows
from compressor.tasks.token_level import TokenLevel
from targets.answers import AnyAnswers, TokenLabelAnswers
from targets.answers.token_labels import SPACE, place_labels
from targets.signature import TensorSpec

if TYPE_CHECKING:
    from compressor.data import LabelField, Split
    from compressor.model import Model, TorchModel

__all__ = ["TokenClassification"]

NUM_AROUND = 5
"""Words on either side of one in what a report calls it."""


class TokenClassification(TokenLevel):
    """Classification of words with a transformer encoder.

    The raw inputs are texts whose words are separated by one space; see
    `targets.answers.token_labels.join_words`.
    """

    name: ClassVar[str] = "token-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForTokenClassification",)
    answers: ClassVar[AnyAnswers] = TokenLabelAnswers()
    metrics: ClassVar[Collection[str]] = (*METRICS, *ENTITY_METRICS)
    label_field: ClassVar[LabelField] = "tags"

    def metrics_with(self, label_names: Sequence[str]) -> Collection[str]:
        """See the base class: those of entities where labels are tags in the IOB2 form."""
        return self.metrics if is_iob2(label_names) else METRICS

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

    def title(self, value: Any, place: int) -> str:
        """See the base class: the word, and some of the words around it.

        Those of control characters and the like alone are dropped by tokenizers and not judged.
        """
        words = str(value).split(SPACE)
        seen = [word for word in words if _is_seen(word)]
        words = seen if place < len(seen) else words  # some tokenizers drop none
        around = words[max(0, place - NUM_AROUND) : place + NUM_AROUND + 1]
        return f"{words[place]} (in: {SPACE.join(around)})"


def _is_seen(word: str) -> bool:
    return any(unicodedata.category(sign)[0] not in "CZ" for sign in word)
