"""Images with boxes around their objects, out of files as COCO has them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressor.cells import as_data_error
from compressor.class_names import label_text
from compressor.errors import DataError, nearest
from targets.answers.boxes import MAX_BOXES
from targets.errors import InputError
from targets.preprocessing.image import image_size

__all__ = ["Box", "Boxed", "image_files", "read_boxed", "tables_of"]

_LISTS = ("images", "annotations", "categories")
_COCO = (
    '{"images": [{"id": 1, "file_name": "1.jpg"}], "categories": [{"id": 1, "name": "cat"}], '
    '"annotations": [{"image_id": 1, "category_id": 1, "bbox": [left, top, width, height]}]}'
)
_BEYOND = 1.0  # pixels by which a box may be larger than its image: annotators round

Entries = dict[str, list[Mapping[str, Any]]]


class Box(NamedTuple):
    """An annotation: the name of its class, its sides in shares of the image, and 1 for a crowd."""

    label: str
    sides: tuple[float, float, float, float]
    crowd: float


class Boxed(NamedTuple):
    """A file.

    Attributes:
        images: Paths.
        boxes: Those of each image.
        names: Of the classes, in the order of their ids.
        slices: Field -> one value an image.
        fields: Of the images, all.
    """

    images: tuple[str, ...]
    boxes: tuple[tuple[Box, ...], ...]
    names: tuple[str, ...]
    slices: dict[str, list[Any]]
    fields: tuple[str, ...]


def read_boxed(path: Path, folder: Path | None = None, slices: Sequence[str] = ()) -> Boxed:
    """Read a file of images with boxes.

    Args:
        path: .json as COCO has it.
        folder: Where the images lie; None is the folder of the file.
        slices: Fields of the images that the data is sliced by; those that none has are left out.

    Raises:
        DataError: The file, an image, a class or a box is not what it should be; names it.
    """
    entries = _read(path)
    files = _files(path, folder, entries)
    names = _names(path, entries)
    sizes = {entry["id"]: _size(path, entry, files[entry["id"]]) for entry in entries["images"]}
    boxes: dict[Any, list[Box]] = {each: [] for each in files}
    for number, entry in enumerate(entries["annotations"], 1):
        where = f"{path}, annotation {number}"
        for field, known in (("image_id", files), ("category_id", names)):
            if not _is_known(entry.get(field), known):
                raise DataError(
                    f"an annotation has an unknown {field}",
                    where=where,
                    given=f"{entry.get(field)!r:.60}",
                    fix="remove it, or write the id of one of the "
                    + ("images" if field == "image_id" else "categories")
                    + " of the file",
                )
        image = entry["image_id"]
        sides = _sides(entry.get("bbox"), sizes[image], where)
        label = names[entry["category_id"]]
        boxes[image].append(Box(label, sides, float(bool(entry.get("iscrowd")))))
    _check_counts(path, files, boxes)
    fields = tuple(dict.fromkeys(name for entry in entries["images"] for name in entry))
    return Boxed(
        tuple(map(str, files.values())),
        tuple(map(tuple, boxes.values())),
        _by_id(names),
        {n: [entry.get(n) for entry in entries["images"]] for n in slices if n in fields},
        fields,
    )


def image_files(path: Path, folder: Path | None = None) -> list[Path]:
    """The images that a file names, which are not read.

    Raises:
        DataError: The file cannot be read, or an image does not exist.
    """
    return list(_files(path, folder, _read(path)).values())


def tables_of(
    boxed: Boxed, label_names: Sequence[str], path: Path
) -> tuple[NDArray[np.float32], ...]:
    """The boxes of each image as a table, (boxes, 6); see `targets.average_precision`.

    Args:
        boxed: What the file holds.
        label_names: Of the classes that the model knows.
        path: The file.

    Raises:
        DataError: A box is of another class.
    """
    known = {name: index for index, name in enumerate(label_names)}
    for image, boxes in zip(boxed.images, boxed.boxes, strict=True):
        for box in boxes:
            if box.label not in known:
                guess = nearest(box.label, label_names)
                some = ", ".join(map(repr, label_names[:20]))
                raise DataError(
                    "a box is of a class that the model does not know",
                    where=f"{path}, {image}",
                    given=repr(box.label),
                    fix=f"the model knows {some}{' and more' if len(label_names) > 20 else ''}; "
                    "correct the category, or fine-tune a model on these classes"
                    + (f"; did you mean {guess!r}?" if guess else ""),
                )
    return tuple(
        np.array(
            [(known[box.label], *box.sides, box.crowd) for box in boxes], dtype=np.float32
        ).reshape(-1, 6)
        for boxes in boxed.boxes
    )


def _read(path: Path) -> Entries:
    """The three lists of a file, whose entries are objects."""
    if path.is_dir() or path.suffix.lower() != ".json":
        raise DataError(
            "images with boxes must be in a .json file of the COCO format",
            where=path,
            given="a folder" if path.is_dir() else path.suffix or "no suffix",
            fix=f"write {_COCO}",
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(
            "the data file does not exist", where=path, fix="correct the path in the recipe"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            "the file is not valid JSON", where=path, given=error, fix=f"write {_COCO}"
        ) from error
    lists: Entries = {}
    for name in _LISTS:
        entries = found.get(name) if isinstance(found, dict) else None
        if not isinstance(entries, list) or not entries:
            raise DataError(
                f"there is no list {name!r}, which a COCO file needs",
                where=path,
                given=f"{type(entries).__name__} {entries!r:.60}"
                if isinstance(found, dict)
                else f"{type(found).__name__} in the place of an object",
                fix=f"write {_COCO}",
            )
        for number, entry in enumerate(entries, 1):
            if not isinstance(entry, dict):
                raise DataError(
                    "an entry is not a JSON object",
                    where=f"{path}, {name} {number}",
                    given=f"{type(entry).__name__} {entry!r:.60}",
                    fix=f"write {_COCO}",
                )
        lists[name] = entries
    return lists


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_known(value: object, known: Collection[Any]) -> bool:
    return _is_id(value) and value in known


def _unique(path: Path, entries: Entries, name: str, field: str) -> dict[Any, str]:
    """The id of each entry of a list -> its text in a field."""
    found: dict[Any, str] = {}
    for number, entry in enumerate(entries[name], 1):
        key, text = entry.get("id"), label_text(entry.get(field))
        where = f"{path}, {name} {number}"
        if not _is_id(key) or text is None:
            raise DataError(
                f"an entry has no id or no {field}",
                where=where,
                given=f"id={key!r:.60}, {field}={entry.get(field)!r:.60}",
                fix=f"write {_COCO}",
            )
        if key in found:
            raise DataError(
                "two entries have the same id",
                where=where,
                given=f"{key!r:.60}, which is also that of {found[key]!r:.60}",
                fix="give each an id of its own",
            )
        found[key] = text
    return found


def _files(path: Path, folder: Path | None, entries: Entries) -> dict[Any, Path]:
    """The id of each image -> its file."""
    root = path.parent if folder is None else folder
    files = {
        key: root / name for key, name in _unique(path, entries, "images", "file_name").items()
    }
    absent = next((each for each in files.values() if not each.is_file()), None)
    if absent is not None:
        raise DataError(
            "the file of an image does not exist",
            where=path,
            given=f"{absent!s:.200}",
            fix="correct file_name, which is read from "
            + ("the folder of the file, or set data.images" if folder is None else "data.images"),
        )
    return files


def _names(path: Path, entries: Entries) -> dict[Any, str]:
    """The id of each category -> its name."""
    names = _unique(path, entries, "categories", "name")
    if len(set(names.values())) < len(names):
        twice = next(each for each in names.values() if list(names.values()).count(each) > 1)
        raise DataError(
            "two categories have the same name",
            where=path,
            given=repr(twice),
            fix="give each a name of its own, or merge them",
        )
    return names


def _by_id(names: Mapping[Any, str]) -> tuple[str, ...]:
    keys = sorted(names, key=lambda key: (isinstance(key, str), key))
    return tuple(names[key] for key in keys)


def _size(path: Path, entry: Mapping[str, Any], file: Path) -> tuple[int, int]:
    """Height and width of an image; those that the file tells have to be the same."""
    try:
        height, width = image_size(file, f"{path}, {file}")
    except InputError as error:
        raise as_data_error(error) from error
    told = (entry.get("height", height), entry.get("width", width))
    if told != (height, width):
        raise DataError(
            "the size of an image is not the one that the .json file gives",
            where=f"{path}, {file}",
            given=f"{width} x {height} pixels, in the .json file {told[1]} x {told[0]}",
            fix="boxes are in pixels: write size and boxes for this image, or pass their own image",
        )
    return height, width


def _sides(box: object, size: tuple[int, int], where: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom in shares of the image."""
    numbers = [
        float(each)
        for each in (box if isinstance(box, list) else ())
        if isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
    ]
    if len(numbers) != 4 or not isinstance(box, list) or len(box) != 4 or min(numbers[2:]) <= 0:
        raise DataError(
            "a bbox is not left, top, width and height in pixels, the last two above 0",
            where=where,
            given=f"bbox={box!r:.80}",
            fix="correct or remove the annotation",
        )
    height, width = size
    left, top, right, bottom = *numbers[:2], numbers[0] + numbers[2], numbers[1] + numbers[3]
    is_beyond = min(left, top) < -_BEYOND or max(right - width, bottom - height) > _BEYOND
    if is_beyond or left >= width or top >= height or min(right, bottom) <= 0:
        raise DataError(
            "a bbox goes beyond its image",
            where=where,
            given=f"bbox={box}, image {width} x {height} pixels",
            fix="write left, top, width and height in pixels, not the right and the bottom side",
        )
    return (
        max(left, 0) / width,
        max(top, 0) / height,
        min(right, width) / width,
        min(bottom, height) / height,
    )


def _check_counts(
    path: Path, files: Mapping[Any, Path], boxes: Mapping[Any, Sequence[Box]]
) -> None:
    for key, each in boxes.items():
        if len(each) > MAX_BOXES:
            raise DataError(
                "an image has too many boxes",
                where=f"{path}, {files[key]}",
                given=len(each),
                fix=f"keep {MAX_BOXES} of them, or cut the image into parts",
            )
    if all(box.crowd for each in boxes.values() for box in each):
        raise DataError(
            "the images have no objects to find",
            where=path,
            given="all boxes are marked as crowds (iscrowd)",
            fix="write annotations of single objects, without iscrowd",
        )
