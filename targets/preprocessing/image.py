"""Images: decoded, resized and cropped by Pillow, kept as bytes, normalized in a batch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from targets.errors import InputError, MissingLibraryError
from targets.preprocessing.base import FIXED_SIZE, Encoded, Encoder, Preprocessing, Rows
from targets.signature import Arrays, Signature

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PIXELS", "ImageEncoder", "ImagePreprocessing", "Resample"]

PIXELS = "pixel_values"

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""Filters, in the order of their numbers in Pillow."""


class ImagePreprocessing(Preprocessing):
    """Resize, crop the middle, and normalize, as Hugging Face's image processors do."""

    kind: Literal["image"] = "image"
    height: int = Field(ge=1, le=8192)
    """Of what the model reads, in pixels."""
    width: int = Field(ge=1, le=8192)
    shortest_edge: int | None = Field(default=None, ge=1, le=8192)
    """Bring the shorter side to this many pixels, and cut out the middle; None brings both sides to
    the size that the model reads, whatever the proportions."""
    resample: Resample = "bicubic"
    """Filter of the resizing."""
    channels: Literal[1, 3] = 3
    """3 for RGB, 1 for shades of grey."""
    scale: float = Field(default=1 / 255, gt=0)
    """Pixels, from 0 to 255, are multiplied by it first."""
    mean: tuple[float, ...] = Field(default=(0.0,), validate_default=True)
    """Subtracted after that; one number for all channels, or one each."""
    std: tuple[float, ...] = Field(default=(1.0,), validate_default=True)
    """Divided by at last; one number for all channels, or one each."""

    noun: ClassVar[str] = "image"
    needs: ClassVar[str] = PIXELS
    unit: ClassVar[str | None] = None
    usual_length: ClassVar[int] = FIXED_SIZE
    libraries: ClassVar[tuple[str, ...]] = ("pillow",)

    @field_validator("mean", "std")
    @classmethod
    def _one_a_channel(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        channels = info.data.get("channels", len(values))
        if len(values) not in (1, channels):
            raise ValueError(f"{len(values)} numbers for {channels} channels")
        return values if len(values) == channels else values * channels

    @property
    def longest(self) -> int:
        """See the base class."""
        return FIXED_SIZE

    def open(self, folder: Path, *, source: Path | None = None) -> ImageEncoder:
        """See the base class."""
        try:
            import PIL  # noqa: F401
        except ImportError as error:
            raise MissingLibraryError.for_extra("pillow", "image", "reading images") from error
        return ImageEncoder(self)

    def feeds(self, rows: Rows, signature: Signature) -> Arrays:
        """See the base class.  # (N, channels, height, width)"""
        known = [PIXELS]
        for spec in signature.inputs:
            if spec.name not in known:
                raise self.unknown_input(spec.name, known)
        pixels = self.batch(rows[PIXELS])
        return {spec.name: pixels.astype(spec.dtype, copy=False) for spec in signature.inputs}

    def batch(self, images: Sequence[NDArray[np.generic]]) -> NDArray[np.float32]:
        """Normalized images.

        Args:
            images: (height, width, channels) uint8 each.

        Returns:
            (N, channels, height, width)
        """
        pixels = np.stack(images).astype(np.float32)
        pixels *= np.float32(self.scale)
        pixels -= np.asarray(self.mean, np.float32)
        pixels /= np.asarray(self.std, np.float32)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    def synthetic(
        self, lengths: Sequence[int], *, num_ids: int, random: np.random.Generator
    ) -> dict[str, list[NDArray[np.generic]]]:
        """See the base class."""
        shape = (len(lengths), self.height, self.width, self.channels)
        return {PIXELS: list(random.integers(0, 256, size=shape, dtype=np.uint8))}


class ImageEncoder(Encoder):
    """Reads images: paths, the bytes of a file, Pillow images, or (H, W) and (H, W, 3) uint8."""

    def __init__(self, preprocessing: ImagePreprocessing) -> None:
        self.preprocessing = preprocessing

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """See the base class.  # (height, width, channels) uint8 a row"""
        self.preprocessing.check_inputs(inputs)
        rows = [self._encode(each, index) for index, each in enumerate(inputs)]
        return Encoded({PIXELS: rows}, (False,) * len(rows))

    def _encode(self, value: Any, index: int) -> NDArray[np.generic]:
        from PIL import Image

        wanted = self.preprocessing
        image = _open(value, index).convert("RGB" if wanted.channels == 3 else "L")
        resample = Image.Resampling[wanted.resample.upper()]
        size = (wanted.width, wanted.height)
        if wanted.shortest_edge is None:
            image = image.resize(size, resample)
        else:
            shorter = min(image.size)
            sides = [wanted.shortest_edge * side // shorter for side in image.size]
            image = image.resize((sides[0], sides[1]), resample)
            left, top = ((side - part) // 2 for side, part in zip(image.size, size, strict=True))
            # What lies outside of the image is black.
            image = image.crop((left, top, left + size[0], top + size[1]))
        return np.asarray(image, dtype=np.uint8).reshape(
            wanted.height, wanted.width, wanted.channels
        )


def _open(value: Any, index: int) -> Image:
    from PIL import Image, ImageOps

    where = f"images[{index}]"
    try:
        if isinstance(value, Image.Image):
            image = value
        elif isinstance(value, np.ndarray):
            image = Image.fromarray(value)
        elif isinstance(value, bytes):
            image = Image.open(io.BytesIO(value))
        elif isinstance(value, str | Path):
            where = str(value)
            image = Image.open(value)
        else:
            raise InputError(
                "this is not an image",
                where=where,
                given=f"{type(value).__name__} {value!r:.60}",
                fix="pass a path, the bytes of a file, a Pillow image, or an array of uint8",
            )
        image.load()
        return ImageOps.exif_transpose(image)  # as it was held when it was taken
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            "the image cannot be read",
            where=where,
            given=f"{type(error).__name__}: {error}",
            fix="pass an image file that Pillow reads, such as PNG or JPEG",
        ) from error
