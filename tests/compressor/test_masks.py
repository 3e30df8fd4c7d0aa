"""Tables of images with masks: what is read, what is refused, and when data is new."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from PIL import Image

from compressor.data import DataSpec, Splits, data_fingerprint, read_splits, split_hashes
from compressor.errors import DataError
from targets.answers.pixel_labels import UNLABELLED

CLASSES = ("wall", "door")


def png(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def mask_of(*classes: int) -> NDArray[np.uint8]:
    return np.resize(np.array(classes, np.uint8), (4, 6))


def write_files(folder: Path) -> list[tuple[str, str]]:
    """Three images of 6 x 4 pixels with masks beside them."""
    (folder / "files").mkdir()
    rows = []
    for number, mask in enumerate([mask_of(0, 1), mask_of(1, UNLABELLED), mask_of(0)]):
        names = f"files/{number}.png", f"files/{number}-mask.png"
        for name, pixels in zip(names, (np.full((4, 6, 3), number, np.uint8), mask), strict=True):
            (folder / name).write_bytes(png(pixels))
        rows.append(names)
    return rows


def write_csv(folder: Path, rows: list[tuple[str, str]]) -> Path:
    path = folder / "data.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "mask"), *rows])
    return path


def read(path: Path, names: tuple[str, ...] | None = CLASSES) -> Splits:
    spec = DataSpec(train=path, validation=path, test=path)
    return read_splits(spec, label_names=names, kind="image", labels="mask")


def test_paths_are_read_from_the_folder_of_the_table(tmp_path: Path) -> None:
    rows = write_files(tmp_path)
    found = read(write_csv(tmp_path, rows))
    assert found.test.inputs == tuple(str(tmp_path / image) for image, _ in rows)
    assert found.test.labels == tuple(str(tmp_path / mask) for _, mask in rows)
    assert found.label_names == CLASSES
    assert found.train.take([2, 0]).labels == (found.train.labels[2], found.train.labels[0])


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_other_tables_and_contents(name: str, tmp_path: Path) -> None:
    rows = write_files(tmp_path)
    path = tmp_path / name
    if path.suffix == ".jsonl":
        lines = (json.dumps({"image": image, "mask": mask}) for image, mask in rows)
        path.write_text("\n".join(lines))
        assert read(path).test.labels[0] == str(tmp_path / rows[0][1])
        return
    cells = [
        {
            column: {"bytes": (tmp_path / each).read_bytes(), "path": None}
            for column, each in zip(("image", "mask"), pair, strict=True)
        }
        for pair in rows
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(cells), path)
    assert read(path).test.labels[1] == (tmp_path / rows[1][1]).read_bytes()


def test_classes_without_names_are_the_indices_up_to_the_largest(tmp_path: Path) -> None:
    rows = write_files(tmp_path)
    (tmp_path / rows[2][1]).write_bytes(png(mask_of(3, 0)))
    assert read(write_csv(tmp_path, rows), None).label_names == ("0", "1", "2", "3")


def test_a_part_is_set_apart_for_validation(tmp_path: Path) -> None:
    path = write_csv(tmp_path, write_files(tmp_path))
    spec = DataSpec(train=path, test=path)
    found = read_splits(spec, label_names=CLASSES, kind="image", labels="mask")
    assert (len(found.train), len(found.validation), len(found.test)) == (2, 1, 3)


def test_another_mask_is_other_data(tmp_path: Path) -> None:
    rows = write_files(tmp_path)
    path = write_csv(tmp_path, rows)
    spec = DataSpec(train=path, test=path)
    before = data_fingerprint(spec, kind="image", labels="mask")
    assert (
        split_hashes(spec, "image", "mask")["test"] == split_hashes(spec, "image", "mask")["train"]
    )
    (tmp_path / rows[0][1]).write_bytes(png(mask_of(1, 1, 0)))
    assert data_fingerprint(spec, kind="image", labels="mask") != before


@pytest.mark.parametrize(
    ("content", "what", "given"),
    [
        (png(mask_of(0, 7)), "a mask has classes that the model does not know", "values 7"),
        (
            png(np.resize(mask_of(0, 1), (4, 7))),
            "the mask has another size than its image",
            "7 x 4 pixels, the image 6 x 4",
        ),
        (b"GIF89a", "the image cannot be read", ""),
        (
            png(np.zeros((4, 6, 3), np.uint8)),
            "the mask does not hold the index of a class for each pixel",
            "mode RGB",
        ),
    ],
)
def test_a_wrong_mask_is_named(content: bytes, what: str, given: str, tmp_path: Path) -> None:
    rows = write_files(tmp_path)
    (tmp_path / rows[1][1]).write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        read(write_csv(tmp_path, rows))
    assert caught.value.where == f"{tmp_path / 'data.csv'}, row 2, {tmp_path / rows[1][1]}"
    assert given in str(caught.value.given)


def test_an_absent_mask_is_named(tmp_path: Path) -> None:
    rows = write_files(tmp_path)
    with pytest.raises(DataError, match="the file of the mask does not exist") as caught:
        read(write_csv(tmp_path, [(rows[0][0], "files/none.png")]))
    assert caught.value.given == str(tmp_path / "files/none.png")
    with pytest.raises(DataError, match="a row has no image or no mask") as caught:
        read(write_csv(tmp_path, [(rows[0][0], "")]))
    assert caught.value.where == f"{tmp_path / 'data.csv'}, row 1"


def test_masks_of_one_class_are_refused(tmp_path: Path) -> None:
    rows = write_files(tmp_path)
    with pytest.raises(DataError, match="the data has one class only") as caught:
        read(write_csv(tmp_path, rows[2:]))
    assert "1 mask, with the class 0 alone" in str(caught.value.given)
    (tmp_path / rows[2][1]).write_bytes(png(mask_of(UNLABELLED)))
    with pytest.raises(DataError, match="the data has one class only") as caught:
        read(write_csv(tmp_path, rows[2:]))
    assert "no pixel that counts" in str(caught.value.given)


def test_a_folder_or_a_table_without_masks_is_refused(tmp_path: Path) -> None:
    rows = write_files(tmp_path)
    with pytest.raises(DataError, match="masks are read from a table"):
        read(tmp_path / "files")
    path = write_csv(tmp_path, rows)
    path.write_text(path.read_text().replace("image,mask", "image,masks"))
    with pytest.raises(DataError, match="the mask column 'mask' is missing") as caught:
        read(path)
    assert "did you mean 'masks'" in str(caught.value.fix)
