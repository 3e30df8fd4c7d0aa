"""What the outputs of a model say, and what of it is judged: a file a kind."""

from __future__ import annotations

from typing import TypeAlias

from targets.answers.base import IGNORED, Answers, Units, most_probable, softmax
from targets.answers.labels import LabelAnswers, Prediction

__all__ = [
    "IGNORED",
    "Answers",
    "AnyAnswers",
    "LabelAnswers",
    "Prediction",
    "Units",
    "most_probable",
    "softmax",
]

AnyAnswers: TypeAlias = LabelAnswers
"""What a manifest may hold. A new kind is a file in this package and a name here."""
