"""Conversion of image data sets to Parquet files."""

from __future__ import annotations

import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from assets.errors import PackageError
from assets.image_classification import ImageRow, parse_idx, write_splits
from PIL import Image
from pyarrow import parquet

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) * 10


def idx(magic: int, *sizes: int, content: bytes) -> bytes:
    header = struct.pack(f">{1 + len(sizes)}I", magic, *sizes)
    return gzip.compress(header + content, mtime=0)


IMAGES = idx(2051, 2, 3, 4, content=PIXELS.tobytes())
LABELS = idx(2049, 2, content=bytes([9, 0]))


def test_idx_files_become_grey_png_files_with_class_names() -> None:
    rows = parse_idx(IMAGES, LABELS, part="t10k")
    assert [row.label for row in rows] == ["Ankle boot", "T-shirt/top"]
    assert [row.path for row in rows] == ["t10k-00000.png", "t10k-00001.png"]
    for row, expected in zip(rows, PIXELS, strict=True):
        with Image.open(io.BytesIO(row.png)) as image:
            assert (image.format, image.mode) == ("PNG", "L")
            assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    ("images", "labels", "given"),
    [
        (IMAGES, idx(2049, 1, content=b"\0"), "24 pixels and 1 labels of 2 images"),
        (idx(2051, 2, 3, 5, content=b"\0" * 24), LABELS, "24 pixels and 2 labels of 2 images"),
        (IMAGES, idx(2049, 2, content=bytes([0, 10])), "label 10 of image 1"),
        (IMAGES, IMAGES, "magic number 2051, not 2049"),
        (
            IMAGES,
            gzip.compress(b"\0", mtime=0),
            "unpack_from requires a buffer of at least 8 bytes",
        ),
        (IMAGES[:-9], LABELS, "end-of-stream"),
        (b"no gzip file", LABELS, "Not a gzipped file"),
    ],
    ids=("labels", "pixels", "class", "magic", "header", "truncated", "gzip"),
)
def test_files_that_do_not_fit_are_a_clear_error(images: bytes, labels: bytes, given: str) -> None:
    with pytest.raises(PackageError, match="cannot be read") as caught:
        parse_idx(images, labels, part="train")
    assert caught.value.where == "the train files"
    assert given in caught.value.given


def test_splits_are_written_as_parquet_that_reads_back(tmp_path: Path) -> None:
    rows = [ImageRow(b"\x89PNG", "train-00001.png", "Bag"), ImageRow(b"", "train-0.png", "Coat")]
    record = write_splits({"train": rows}, tmp_path, method="none")
    table = parquet.read_table(tmp_path / "train.parquet")
    assert table.to_pylist() == [
        {"image": {"bytes": row.png, "path": row.path}, "label": row.label} for row in rows
    ]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert record["split"]["num_rows_by_label"] == {"train": {"Bag": 1, "Coat": 1}}
