"""A class for each pixel of an image: semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from targets.answers.base import IGNORED, Answers, BasePrediction, Units
from targets.answers.labels import by_name
from targets.errors import InputError
from targets.preprocessing.image import PIXELS, View, open_image

if TYPE_CHECKING:
    from targets.evaluation_pack import EvaluationPack, Labels
    from targets.preprocessing import Encoded
    from targets.signature import Arrays

__all__ = [
    "MAX_CLASSES",
    "UNLABELLED",
    "ClassMapPrediction",
    "PixelLabelAnswers",
    "class_maps",
    "place_masks",
    "read_mask",
]

UNLABELLED = 255
"""Value of the pixels of a mask that count for nothing."""
MAX_CLASSES = UNLABELLED
"""That a mask has values for: 0 to 254."""
MOST_PIXELS = 2**27
"""Of all masks of a data set together, as the model sees them: more would not fit in memory."""
_MODES = ("L", "P")
"""Of Pillow: a byte a pixel, as a shade of grey or as a colour of a palette."""


class ClassMapPrediction(BasePrediction):
    """The classes of the pixels of one image."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    shares: dict[str, float]
    """The share of the pixels of every class, of those that the model sees; they add up to 1."""
    classes: NDArray[np.uint8] = Field(exclude=True, repr=False)
    """The class of each pixel that the model sees, by its index.  # (height, width)"""
    view: View = Field(exclude=True, repr=False)
    """Which pixels of the image these are."""

    def mask(self) -> NDArray[np.uint8]:
        """The nearest class of each pixel of the image; 255 where the model does not see it.

        Returns:
            (height, width) of the image.
        """
        return self.view.spread(self.classes, UNLABELLED)

    def save_mask(self, path: Path) -> None:
        """Write :meth:`mask` as a PNG file, as masks of training data are."""
        from PIL import Image

        Image.fromarray(self.mask()).save(path, "PNG")


class PixelLabelAnswers(Answers):
    """The outputs are logits of classes at places of an image, (samples, classes, height, width).

    They are fewer than the pixels that the model sees. What is judged is every one of those, after
    bilinear interpolation of the logits, as ``post_process_semantic_segmentation`` of transformers
    does it; the mask is brought to the same size by its nearest pixels.
    """

    kind: Literal["pixel_labels"] = "pixel_labels"

    unit: ClassVar[str] = "pixel"

    def reduced(self, outputs: NDArray[Any], feeds: Arrays) -> NDArray[Any]:
        """See the base class: the classes of all pixels.  # (N, height, width) uint8"""
        height, width = feeds[PIXELS].shape[2:]
        return class_maps(outputs, height, width)

    def place(self, labels: Labels, inputs: Sequence[Any], encoded: Encoded) -> Labels:
        """See the base class: labels are masks; see :func:`read_mask`."""
        return [each.reshape(-1) for each in place_masks(labels, encoded.views)]

    def units(self, outputs: NDArray[np.generic], pack: EvaluationPack) -> Units:
        """See the base class."""
        return Units.of(outputs.reshape(-1), pack.labels, pack.label_rows)

    def predictions(
        self,
        outputs: NDArray[Any],
        names: Sequence[str],
        inputs: Sequence[Any],
        encoded: Encoded,
    ) -> list[ClassMapPrediction]:
        """See the base class."""
        found = []
        for classes, view in zip(outputs, encoded.views, strict=True):
            counts = np.bincount(classes.reshape(-1), minlength=len(names))
            shares = by_name(names, (counts / classes.size).tolist())
            found.append(ClassMapPrediction(shares=shares, classes=classes, view=view))
        return found


def class_maps(logits: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """The most probable class of each pixel.

    Bilinear, with the corners of the outermost places at the corners of the image, as
    ``torch.nn.functional.interpolate`` computes it (``align_corners=False``).

    Args:
        logits: (N, classes, h, w)
        height: Of the result, in pixels.
        width: Of the result, in pixels.

    Returns:
        (N, height, width)
    """
    maps = np.empty((len(logits), height, width), dtype=np.uint8)
    above, below, down = _neighbours(logits.shape[2], height)
    left, right, across = _neighbours(logits.shape[3], width)
    for index, image in enumerate(logits):  # one by one: whole batches would not fit in memory
        values = image.astype(np.float32, copy=False)
        values = values[:, :, left] * (1 - across) + values[:, :, right] * across
        values = values[:, above] * (1 - down[:, None]) + values[:, below] * down[:, None]
        maps[index] = values.argmax(axis=0)
    return maps


def _neighbours(
    size: int, wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The two values that each new one lies between, and its way from the first to the second."""
    places = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * np.float32(size / wanted)
    places = np.maximum(places - np.float32(0.5), np.float32(0))
    first = np.minimum(places.astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), places - first.astype(np.float32)


def read_mask(value: Any, where: str, *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The classes of the pixels of an image.

    Args:
        value: A path, the bytes of a file, or an array: a byte a pixel, the index of its class;
            255 counts for nothing.
        where: What to call it in messages.
        size: Height and width of its image.

    Returns:
        (height, width)

    Raises:
        InputError: It is no mask, or none of this image.
    """
    image = open_image(value, where)
    if image.mode not in _MODES:
        raise InputError(
            "the mask does not hold the index of a class for each pixel",
            where=where,
            given=f"mode {image.mode}",
            fix="save it as PNG with one byte per pixel (mode L or P), the index of its class",
        )
    mask = np.asarray(image, dtype=np.uint8)
    if mask.shape != size:
        raise InputError(
            "the mask has another size than its image",
            where=where,
            given="{} x {} pixels, the image {} x {}".format(*mask.shape[::-1], *size[::-1]),
            fix="pass the mask of this image, with a pixel for each of its pixels",
        )
    return mask


def place_masks(
    masks: Sequence[Any] | NDArray[Any], views: Sequence[View]
) -> list[NDArray[np.int16]]:
    """The labels of the pixels that a model sees; `IGNORED` where there are none.

    Args:
        masks: One an image; see :func:`read_mask`.
        views: What the model sees of each.

    Returns:
        (height, width) of the model each.

    Raises:
        InputError: A mask cannot be read, does not fit its image, or there are too many pixels.
    """
    total = sum(view.size[0] * view.size[1] for view in views)
    if total > MOST_PIXELS:
        raise InputError(
            "the masks have too many pixels to be judged at once",
            where="masks",
            given=f"{len(views)} images, {total} pixels as the model sees them",
            fix=f"use fewer images, or a smaller image size: at most {MOST_PIXELS} pixels",
        )
    placed = []
    for index, (mask, view) in enumerate(zip(masks, views, strict=True)):
        where = str(mask) if isinstance(mask, str | Path) else f"masks[{index}]"
        seen = view.seen(read_mask(mask, where, size=view.source), UNLABELLED).astype(np.int16)
        seen[seen == UNLABELLED] = IGNORED
        placed.append(seen)
    return placed
