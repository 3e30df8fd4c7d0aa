"""What the outputs of a model say, and what of it is judged: a file a kind."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from targets.answers.base import (
    IGNORED,
    Answering,
    Answers,
    BasePrediction,
    Units,
    classes_of,
    most_probable,
    softmax,
)
from targets.answers.boxes import BoxAnswers, BoxesPrediction, DetectedBox
from targets.answers.embeddings import EmbeddingAnswers, EmbeddingPrediction
from targets.answers.labels import LabelAnswers, Prediction
from targets.answers.next_token import NextTokenAnswers, ScoredText
from targets.answers.pixel_labels import ClassMapPrediction, PixelLabelAnswers
from targets.answers.spans import SpanAnswers, SpanPrediction
from targets.answers.token_labels import LabelledWord, TokenLabelAnswers, WordsPrediction
from targets.answers.written import (
    TranscriptAnswers,
    TranslationAnswers,
    WrittenAnswers,
    WrittenText,
)

__all__ = [
    "IGNORED",
    "Answering",
    "Answers",
    "AnyAnswers",
    "BasePrediction",
    "BoxAnswers",
    "BoxesPrediction",
    "ClassMapPrediction",
    "DetectedBox",
    "EmbeddingAnswers",
    "EmbeddingPrediction",
    "LabelAnswers",
    "LabelledWord",
    "NextTokenAnswers",
    "PixelLabelAnswers",
    "Prediction",
    "ScoredText",
    "SpanAnswers",
    "SpanPrediction",
    "TokenLabelAnswers",
    "TranscriptAnswers",
    "TranslationAnswers",
    "Units",
    "WordsPrediction",
    "WrittenAnswers",
    "WrittenText",
    "classes_of",
    "most_probable",
    "softmax",
]

AnyAnswers = Annotated[
    LabelAnswers
    | TokenLabelAnswers
    | PixelLabelAnswers
    | NextTokenAnswers
    | EmbeddingAnswers
    | SpanAnswers
    | BoxAnswers
    | TranscriptAnswers
    | TranslationAnswers,
    Field(discriminator="kind"),
]
"""What a manifest may hold. A new kind is a file in this package and a name here."""
