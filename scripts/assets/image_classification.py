"""Conversion to image classification data: one Parquet file a split, with columns image and label.

An image is a struct of the PNG file's bytes and a name, as `datasets` writes and recognises it.
"""

import gzip
import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from assets.archive import read_member
from assets.asset import Archive
from assets.errors import PackageError
from assets.splits import SEED, describe_splits, take_stratified

_FASHION_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_NUM_VALIDATION = 5000

_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_FEATURES = {
    "image": {"_type": "Image"},
    "label": {"dtype": "string", "_type": "Value"},
}


class ImageRow(NamedTuple):
    """A PNG file, a name that tells where in the source it stood, and the name of its class."""

    png: bytes
    path: str
    label: str


def fashion_mnist(deb: Archive, folder: Path) -> dict[str, object]:
    """Convert dataset-fashion-mnist."""
    source = "usr/share/datasets/fashion-mnist/{}-{}-idx{}-ubyte.gz"

    def read(part: str) -> list[ImageRow]:
        images = read_member(deb, source.format(part, "images", 3))
        labels = read_member(deb, source.format(part, "labels", 1))
        return parse_idx(images, labels, part=part)

    validation, train = take_stratified(read("train"), count=_FASHION_NUM_VALIDATION, seed=SEED)
    return write_splits(
        {"train": train, "validation": validation, "test": read("t10k")},
        folder,
        method="the package's own train and test; validation out of train, stratified by label",
    )


def parse_idx(images: bytes, labels: bytes, *, part: str) -> list[ImageRow]:
    """Read gzipped files of the MNIST database: images of 8-bit grey levels, and their classes.

    Args:
        images: Big-endian magic number, number of images, height and width; then the pixels.
        labels: Big-endian magic number and number of labels; then one byte a label.
        part: Names the rows.

    Returns:
        The rows in their order.
    """
    from PIL import Image

    (num_images, height, width), pixels = _unpack(images, ">4I", magic=_IDX_IMAGES, part=part)
    (num_labels,), classes = _unpack(labels, ">2I", magic=_IDX_LABELS, part=part)
    size = height * width
    if not len(classes) == num_labels == num_images or len(pixels) != num_images * size:
        raise _unreadable(
            part, f"{len(pixels)} pixels and {len(classes)} labels of {num_images} images"
        )
    rows = []
    for number, each in enumerate(classes):
        if each >= len(_FASHION_LABELS):
            raise _unreadable(part, f"label {each} of image {number}")
        file = io.BytesIO()
        start = number * size
        Image.frombytes("L", (width, height), pixels[start : start + size]).save(file, "PNG")
        rows.append(ImageRow(file.getvalue(), f"{part}-{number:05}.png", _FASHION_LABELS[each]))
    return rows


def _unpack(raw: bytes, form: str, *, magic: int, part: str) -> tuple[tuple[int, ...], bytes]:
    """The numbers after the magic one in the header of a gzipped file, and what follows it."""
    try:
        content = gzip.decompress(raw)
        found, *numbers = struct.unpack_from(form, content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise _unreadable(part, str(error)) from error
    if found != magic:
        raise _unreadable(part, f"magic number {found}, not {magic}")
    return tuple(numbers), content[struct.calcsize(form) :]


def _unreadable(part: str, given: str) -> PackageError:
    return PackageError(
        "the data set cannot be read",
        where=f"the {part} files",
        given=given,
        fix="check the pinned version in scripts/assets/catalog.py",
    )


def write_splits(
    splits: Mapping[str, Sequence[ImageRow]], folder: Path, *, method: str
) -> dict[str, object]:
    """Write a Parquet file a split.

    Returns:
        `split`, with the seed, the method, and the rows by split and label.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "label": pa.string(),
        },
        metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
    )
    for name, rows in splits.items():
        columns = {
            "image": [{"bytes": row.png, "path": row.path} for row in rows],
            "label": [row.label for row in rows],
        }
        # The images are compressed already.
        parquet.write_table(
            pa.table(columns, schema=schema), folder / f"{name}.parquet", compression="none"
        )
    return describe_splits(splits, method=method)
