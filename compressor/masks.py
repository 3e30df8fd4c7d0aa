"""Tables of images with a mask each: a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compressor.errors import DataError
from targets.answers.pixel_labels import UNLABELLED, read_mask
from targets.errors import InputError
from targets.preprocessing.image import image_size
from targets.wording import plural

__all__ = ["Masked", "check_classes", "class_names", "read_classes"]


class Masked(NamedTuple):
    """A file of masked images, as it stands there."""

    images: tuple[str | bytes, ...]
    masks: tuple[str | bytes, ...]
    classes: tuple[frozenset[int], ...]
    """Of each mask, those in it."""
    slices: dict[str, tuple[str, ...]]


def read_classes(image: Any, mask: Any, where: str) -> frozenset[int]:
    """The classes that are in the mask of an image; empty where no pixel of it counts.

    Args:
        image: A path, or the bytes of a file.
        mask: The same.
        where: The row, for messages.

    Raises:
        DataError: One of them cannot be read, or they do not fit each other.
    """
    names = (str(value) if isinstance(value, str | Path) else None for value in (image, mask))
    of_image, of_mask = (where if name is None else f"{where}, {name}" for name in names)
    try:
        values = np.unique(read_mask(mask, of_mask, size=image_size(image, of_image)))
    except InputError as error:
        raise DataError(error.what, where=error.where, given=error.given, fix=error.fix) from error
    return frozenset(values.tolist()) - {UNLABELLED}


def class_names(train: Masked) -> tuple[str, ...]:
    """The indices up to the largest class in the training data, which has no names for them."""
    largest = max((max(each) for each in train.classes if each), default=-1)
    return tuple(str(index) for index in range(largest + 1))


def check_classes(found: Masked, label_names: Sequence[str], path: Path, column: str) -> None:
    """Refuse masks with classes that the model does not know, and a file with one class.

    Args:
        found: What the file holds.
        label_names: Of the classes that the model knows.
        path: The file.
        column: With the masks.

    Raises:
        DataError: Names the first such mask, or the file.
    """
    for row, (mask, classes) in enumerate(zip(found.masks, found.classes, strict=True), 1):
        unknown = sorted(each for each in classes if each >= len(label_names))
        if unknown:
            name = f", {mask}" if isinstance(mask, str) else ""
            raise DataError(
                "a mask has classes that the model does not know",
                where=f"{path}, row {row}{name}",
                given=f"values {', '.join(map(str, unknown[:5]))}"
                + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
                fix=f"the model knows 0 to {len(label_names) - 1}, and {UNLABELLED} is ignored; "
                "correct the mask, or fine-tune a model on these classes",
            )
    classes = frozenset().union(*found.classes)
    if len(classes) < 2:
        raise DataError(
            "the data has one class only",
            where=f"{path}, column {column!r}",
            given=f"{plural(len(found.masks), 'mask')}, with "
            + (f"the class {min(classes)} alone" if classes else "no pixel that counts"),
            fix="pass masks with at least two classes",
        )
