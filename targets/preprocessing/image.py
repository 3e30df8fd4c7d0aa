"""Images: decoded, resized and cropped by Pillow, kept as bytes, normalized in a batch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator, model_validator

from targets.errors import InputError, MissingLibraryError
from targets.preprocessing.base import FIXED_SIZE, Encoded, Encoder, Preprocessing, Rows
from targets.signature import Arrays, Signature

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "PIXELS",
    "ImageEncoder",
    "ImagePreprocessing",
    "Resample",
    "View",
    "image_size",
    "open_image",
]

PIXELS = "pixel_values"

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""Filters, in the order of their numbers in Pillow."""

_UNREADABLE = (OSError, ValueError, TypeError, SyntaxError, RuntimeError)
"""What Pillow raises about the content of a file, by its format."""
_CHANNELS = ((), (3,), (4,))
"""What an array may have behind its height and width."""
_MOST_PIXELS = 2**28
"""Of a resized image: more would not fit in memory."""


class ImagePreprocessing(Preprocessing):
    """Resize, crop the middle, and normalize, as Hugging Face's image processors do."""

    kind: Literal["image"] = "image"
    height: int = Field(ge=1, le=8192)
    """Of what the model reads, in pixels."""
    width: int = Field(ge=1, le=8192)
    shortest_edge: int | None = Field(default=None, ge=1, le=8192)
    """Bring the shorter side to this many pixels, and cut out the middle; None brings both sides to
    a size, whatever the proportions."""
    resized: tuple[int, int] | None = None
    """That height and width, where the middle is cut out of them; None takes the size that the
    model reads."""
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
    extra: ClassVar[str | None] = "image"
    wanted: ClassVar[str] = "an image file"
    suffixes: ClassVar[tuple[str, ...]] = (
        ".png",
        ".jpg",
        ".jpeg",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
    )

    @field_validator("mean", "std")
    @classmethod
    def _one_a_channel(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        channels = info.data.get("channels", len(values))
        if len(values) not in (1, channels):
            raise ValueError(f"{len(values)} numbers for {channels} channels")
        return values if len(values) == channels else values * channels

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if not all(self.std):
            raise ValueError("std is 0")
        if self.resized is not None and (self.shortest_edge or min(self.resized) < 1):
            raise ValueError("resized must be a height and a width, without shortest_edge")
        return self

    @property
    def longest(self) -> int:
        """See the base class."""
        return FIXED_SIZE

    def size_before_crop(self, width: int, height: int) -> tuple[int, int]:
        """What an image of some width and height is brought to, in pixels.  # (width, height)"""
        if self.shortest_edge is not None:
            shorter = min(width, height)
            return self.shortest_edge * width // shorter, self.shortest_edge * height // shorter
        tall, wide = self.resized or (self.height, self.width)
        return wide, tall

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


@dataclass(frozen=True)
class View:
    """Which pixels of an image a model sees: resized, and the middle cut out.

    Sizes are (height, width), places (row, column).

    Attributes:
        source: Size of the image.
        resized: Size that it was brought to.
        corner: Where in that the model's part begins; negative where it goes beyond.
        size: Of that part.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    def seen(self, values: NDArray[Any], outside: int) -> NDArray[Any]:
        """The nearest value of each pixel that the model sees.

        Args:
            values: One a pixel of the image, (H, W) as ``source``.
            outside: For pixels of the model where the image has none.

        Returns:
            (H, W) as ``size``.
        """
        places = [
            _nearest(np.arange(size) + corner, resized, source)
            for source, resized, corner, size in self._axes
        ]
        return _picked(values, places, outside)

    def spread(self, values: NDArray[Any], outside: int) -> NDArray[Any]:
        """The nearest value of each pixel of the image: the other way round.

        Args:
            values: One a pixel of the model, (H, W) as ``size``.
            outside: For pixels of the image that the model does not see.

        Returns:
            (H, W) as ``source``.
        """
        places = [
            _nearest(np.arange(source), source, resized) - corner
            for source, resized, corner, _ in self._axes
        ]
        return _picked(values, places, outside)

    @property
    def _axes(self) -> list[tuple[int, int, int, int]]:
        return list(zip(self.source, self.resized, self.corner, self.size, strict=True))


def _nearest(places: NDArray[np.int64], size: int, other: int) -> NDArray[np.int64]:
    """Which pixels of a side in another size hold the middles of some in this one."""
    return (2 * places + 1) * other // (2 * size)


def _picked(
    values: NDArray[Any], places: Sequence[NDArray[np.int64]], outside: int
) -> NDArray[Any]:
    """The values at rows and columns, and another one where there are none."""
    rows, columns = (
        np.clip(each, 0, size - 1) for each, size in zip(places, values.shape, strict=True)
    )
    found = values[np.ix_(rows, columns)]
    found[rows != places[0]] = outside
    found[:, columns != places[1]] = outside
    return found


class ImageEncoder(Encoder):
    """Reads images: paths, the bytes of a file, Pillow images, or uint8, (H, W) or (H, W, 3)."""

    def __init__(self, preprocessing: ImagePreprocessing) -> None:
        self.preprocessing = preprocessing

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """See the base class.  # (height, width, channels) uint8 a row"""
        self.preprocessing.check_inputs(inputs)
        found = [
            self.read(each, str(each) if isinstance(each, str | Path) else f"images[{index}]")
            for index, each in enumerate(inputs)
        ]
        rows = [pixels for pixels, _ in found]
        return Encoded({PIXELS: rows}, (False,) * len(rows), views=[view for _, view in found])

    def read(self, value: Any, where: str) -> tuple[NDArray[np.generic], View]:
        """One image, (height, width, channels) uint8, and where it lies in what was given.

        Args:
            value: See the class.
            where: What to call it in messages.

        Raises:
            InputError: It is not what it should be.
        """
        from PIL import Image

        wanted = self.preprocessing
        image = _eight_bits(open_image(value, where), where)
        try:
            image = image.convert("RGB" if wanted.channels == 3 else "L")
        except ValueError as error:
            raise _unreadable(where, str(error)) from error
        source = image.size[::-1]
        size = wanted.size_before_crop(*image.size)
        if size[0] * size[1] > _MOST_PIXELS:
            raise InputError(
                "the image is too long and thin to be resized",
                where=where,
                given=f"{image.size[0]} x {image.size[1]} pixels, resized {size[0]} x {size[1]}",
                fix="crop it to the part that matters",
            )
        image = image.resize(size, Image.Resampling[wanted.resample.upper()])
        left, top = (size[0] - wanted.width) // 2, (size[1] - wanted.height) // 2
        # What lies outside of the image is black.
        image = image.crop((left, top, left + wanted.width, top + wanted.height))
        shape = (wanted.height, wanted.width)
        pixels = np.asarray(image, dtype=np.uint8).reshape(*shape, wanted.channels)
        return pixels, View(source, size[::-1], (top, left), shape)


def image_size(value: Any, where: str) -> tuple[int, int]:
    """Height and width of an image, as it was held when it was taken.

    Raises:
        InputError: It is no image; the message calls it ``where``.
    """
    width, height = open_image(value, where).size
    return height, width


def open_image(value: Any, where: str) -> Image:
    """Open an image in any of the forms that :class:`ImageEncoder` reads.

    Raises:
        InputError: It is none; the message calls it ``where``.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if isinstance(value, Image.Image):
            image = value
        elif isinstance(value, np.ndarray):
            image = _from_array(value, where)
        elif isinstance(value, bytes):
            image = Image.open(io.BytesIO(value))
        elif isinstance(value, str | Path):  # Pillow would leave a truncated file open
            image = Image.open(io.BytesIO(Path(value).read_bytes()))
        else:
            raise _no_image(where, f"{type(value).__name__} {value!r:.60}")
        image.load()
        if 0 in image.size:
            raise _no_image(where, "{} x {} pixels".format(*image.size))
        return ImageOps.exif_transpose(image)  # as it was held when it was taken
    except UnidentifiedImageError as error:  # its own words name an object in memory
        raise _unreadable(where, "no format that Pillow knows") from error
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise _unreadable(where, f"{type(error).__name__}: {error}") from error


def _unreadable(where: str, given: str) -> InputError:
    return InputError(
        "the image cannot be read",
        where=where,
        given=given,
        fix="pass an image file that Pillow reads, such as PNG or JPEG",
    )


def _from_array(array: NDArray[Any], where: str) -> Image:
    from PIL import Image

    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in _CHANNELS:
        raise _no_image(where, f"{array.dtype} of shape {array.shape}")
    return Image.fromarray(array)


def _eight_bits(image: Image, where: str) -> Image:
    """The upper 8 bits of each value, as Pillow reads colours; of greys it would keep 0 to 255."""
    from PIL import Image

    if image.mode in ("I", "F"):
        raise InputError(
            "the values of black and white in the image are unknown",
            where=where,
            given=f"mode {image.mode}, 32 bits a pixel",
            fix="save it with 8 or 16 bits",
        )
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def _no_image(where: str, given: str) -> InputError:
    return InputError(
        "this is not an image",
        where=where,
        given=given,
        fix="pass a path, the bytes of a file, a Pillow image, or uint8 of shape (H, W) or "
        "(H, W, 3)",
    )
