"""From raw inputs to the arrays of a batch, with numpy and one library a kind: a file a kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, get_args

from pydantic import Field

from targets.preprocessing.audio import AudioPreprocessing
from targets.preprocessing.base import FIXED_SIZE, Encoded, Encoder, Preprocessing, Rows
from targets.preprocessing.image import ImagePreprocessing
from targets.preprocessing.question import Question, QuestionPreprocessing
from targets.preprocessing.series import SeriesPreprocessing
from targets.preprocessing.text import TextPreprocessing
from targets.preprocessing.video import VideoPreprocessing

__all__ = [
    "FIXED_SIZE",
    "KINDS",
    "AnyPreprocessing",
    "AudioPreprocessing",
    "Encoded",
    "Encoder",
    "ImagePreprocessing",
    "Preprocessing",
    "Question",
    "QuestionPreprocessing",
    "Rows",
    "SeriesPreprocessing",
    "TextPreprocessing",
    "VideoPreprocessing",
]

_Union = (
    TextPreprocessing
    | ImagePreprocessing
    | AudioPreprocessing
    | SeriesPreprocessing
    | VideoPreprocessing
    | QuestionPreprocessing
)
"""A new kind is a file in this package and a name here."""

AnyPreprocessing = Annotated[_Union, Field(discriminator="kind")]
"""What a manifest may hold."""

KINDS: Mapping[str, type[Preprocessing]] = {
    each.model_fields["kind"].default: each for each in get_args(_Union)
}
"""Kind of raw inputs -> how they are read."""
