"""From raw inputs to the arrays of a batch, with numpy and one library a kind: a file a kind."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from targets.preprocessing.audio import AudioPreprocessing
from targets.preprocessing.base import FIXED_SIZE, Encoded, Encoder, Preprocessing, Rows
from targets.preprocessing.image import ImagePreprocessing
from targets.preprocessing.text import TextPreprocessing

__all__ = [
    "FIXED_SIZE",
    "AnyPreprocessing",
    "AudioPreprocessing",
    "Encoded",
    "Encoder",
    "ImagePreprocessing",
    "Preprocessing",
    "Rows",
    "TextPreprocessing",
]

AnyPreprocessing = Annotated[
    TextPreprocessing | ImagePreprocessing | AudioPreprocessing, Field(discriminator="kind")
]
"""What a manifest may hold. A new kind is a file in this package and a name here."""
