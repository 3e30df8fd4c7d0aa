"""Text classification: one label out of several for a text."""

from __future__ import annotations

from typing import ClassVar

from compressor.tasks.classification import Classification
from compressor.tasks.text import TextTask

__all__ = ["TextClassification"]


class TextClassification(TextTask, Classification):
    """Sequence classification with a transformer encoder."""

    name: ClassVar[str] = "text-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForSequenceClassification",)
    reads_stretches: ClassVar[bool] = True
