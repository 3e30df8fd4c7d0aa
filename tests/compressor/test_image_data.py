"""Labelled images from folders and tables: what is read, what is refused, and when data is new."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compressor.data import DataSpec, data_fingerprint, read_splits, split_hashes
from compressor.errors import DataError

CLASSES = ("cat", "dog")


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 10, 20)).save(stream, "PNG")
    return stream.getvalue()


def write_folder(folder: Path, first: int = 0) -> Path:
    """Two classes of two images each."""
    for number, name in enumerate(["cat/a.png", "cat/b.PNG", "dog/a.png", "dog/more/c.png"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(first + number))
    return folder


def write_table(folder: Path, first: int = 0, name: str = "data.csv") -> Path:
    """A table that names images beside it, from its own folder."""
    write_folder(folder / "files", first)
    rows = [("files/cat/a.png", "cat"), ("files/cat/b.PNG", "cat"), ("files/dog/a.png", "dog")]
    path = folder / name
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "label"), *rows])
    return path


def write_parquet(path: Path, cells: list[Any], labels: list[Any]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"image": cells, "label": labels}), path)
    return path


def write_embedded(folder: Path, first: int = 0) -> Path:
    cells = [{"bytes": png(first + number), "path": f"{number}.png"} for number in range(4)]
    return write_parquet(folder / "data.parquet", cells, [0, 1, 0, 1])


WRITERS: dict[str, Callable[..., Path]] = {
    "folder": write_folder,
    "table": write_table,
    "parquet": write_embedded,
}


def spec_of(path: Path, **more: Any) -> DataSpec:
    return DataSpec(train=path, test=path, validation=path, **more)


def read(path: Path, names: tuple[str, ...] | None = None, **more: Any) -> Any:
    return read_splits(spec_of(path, **more), label_names=names, kind="image").test


def refusal(path: Path, names: tuple[str, ...] | None = None, **more: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, names, **more)
    assert caught.value.exit_code == 3
    return caught.value


def test_a_folder_has_a_folder_for_each_class(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "train")
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "cat" / "._a.png").write_bytes(b"what a Mac leaves")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.png").write_bytes(png(9))
    (folder / "loose.png").write_bytes(png(9))
    splits = read_splits(spec_of(folder), label_names=None, kind="image")
    assert splits.label_names == CLASSES
    names = [str(Path(each).relative_to(folder)) for each in splits.train.inputs]
    assert names == ["cat/a.png", "cat/b.PNG", "dog/a.png", "dog/more/c.png"]
    assert splits.train.labels.tolist() == [0, 0, 1, 1]
    swapped = read(folder, ("dog", "cat"))
    assert swapped.labels.tolist() == [1, 1, 0, 0]


def test_a_class_whose_files_are_of_another_format_is_not_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "train")
    (folder / "owl").mkdir()
    (folder / "owl" / "a.jxl").write_bytes(b"an image, of a kind")
    error = refusal(folder)
    assert error.what == "the folder of a class holds no image of a supported format"
    assert error.where == str(folder / "owl")
    assert error.given == "files that end in .jxl"
    assert ".png" in str(error.fix)


def test_images_that_cannot_be_read_are_not_left_out_in_silence(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    [first, *_] = sorted(each for each in folder.iterdir() if each.is_dir())
    (first / "notes.txt").write_text("who took them")
    read(folder)
    (first / "b.HEIC").write_bytes(b"an image, of a kind")
    error = refusal(folder)
    assert error.what == "the folder of a class has files that cannot be read beside the images"
    assert error.where == str(first)
    assert str(error.given).startswith("1 file, such as b.HEIC, beside ")
    assert "or move them elsewhere" in str(error.fix)


def test_paths_are_read_from_the_folder_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_table(tmp_path / "data")
    monkeypatch.chdir("/")
    split = read(path)
    assert [Path(each).read_bytes() for each in split.inputs] == [png(0), png(1), png(2)]
    assert split.labels.tolist() == [0, 0, 1]


def test_absolute_paths_and_other_columns(tmp_path: Path) -> None:
    files = write_folder(tmp_path / "elsewhere")
    path = tmp_path / "data.csv"
    path.write_text(
        f"photo,kind,source\n{files}/cat/a.png,cat,web\n{files}/dog/a.png,dog,\n", encoding="utf-8"
    )
    split = read(path, image="photo", label="kind", slices=("source",))
    assert [Path(each).read_bytes() for each in split.inputs] == [png(0), png(2)]
    assert split.slices == {"source": ("web", "(empty)")}


def test_parquet_holds_files_or_names_them(tmp_path: Path) -> None:
    write_folder(tmp_path)
    cells = [{"bytes": png(7), "path": None}, {"bytes": None, "path": "dog/a.png"}]
    split = read(write_parquet(tmp_path / "data.parquet", cells, ["cat", "dog"]))
    assert split.inputs == (png(7), str(tmp_path / "dog" / "a.png"))
    numbered = read(write_embedded(tmp_path / "numbered"), CLASSES)
    assert numbered.labels.tolist() == [0, 1, 0, 1]


def test_a_part_for_validation_is_set_apart_of_each_class(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    spec = DataSpec(train=folder, test=folder)
    splits = read_splits(spec, label_names=None, kind="image")
    assert sorted(splits.validation.labels.tolist()) == [0, 1]
    assert sorted((*splits.train.inputs, *splits.validation.inputs)) == sorted(splits.test.inputs)


# When data is new


@pytest.mark.parametrize("form", WRITERS)
def test_the_place_of_the_data_does_not_count_and_its_content_does(
    tmp_path: Path, form: str
) -> None:
    prints = []
    for name, first in (("here", 0), ("there", 0), ("other", 100)):
        path = WRITERS[form](tmp_path / name, first)
        prints.append(data_fingerprint(spec_of(path), kind="image"))
    assert prints[0] == prints[1] != prints[2]
    moved = shutil.move(tmp_path / "here", tmp_path / "moved")
    path = Path(moved) / path.relative_to(tmp_path / "other")
    assert data_fingerprint(spec_of(path), kind="image") == prints[0]


@pytest.mark.parametrize("form", ["folder", "table"])
def test_one_pixel_of_one_file_counts(tmp_path: Path, form: str) -> None:
    path = WRITERS[form](tmp_path)
    before = data_fingerprint(spec_of(path), kind="image")
    changed = next(tmp_path.rglob("dog/a.png"))
    size = changed.stat().st_size
    changed.write_bytes(png(77))
    assert changed.stat().st_size == size
    assert data_fingerprint(spec_of(path), kind="image") != before
    changed.write_bytes(png(2))
    assert data_fingerprint(spec_of(path), kind="image") == before


def test_the_class_of_an_image_counts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    before = data_fingerprint(spec_of(folder), kind="image")
    (folder / "dog" / "a.png").rename(folder / "cat" / "z.png")
    assert data_fingerprint(spec_of(folder), kind="image") != before


def test_the_column_counts_and_hashes_may_be_known(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    spec = spec_of(path)
    hashes = split_hashes(spec, "image")
    assert set(hashes) == {"train", "validation", "test"}
    assert data_fingerprint(spec, kind="image", hashes=hashes) == data_fingerprint(
        spec, kind="image"
    )
    other = spec.model_copy(update={"image": "photo"})
    assert data_fingerprint(other, kind="image", hashes=hashes) != data_fingerprint(
        spec, kind="image", hashes=hashes
    )


# Refusals


def test_a_folder_without_folders_of_images(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    error = refusal(tmp_path)
    assert error.what == "the folder holds no folders of image files"
    assert error.where == str(tmp_path)
    assert error.given == "0.png, 1.png, 2.png, 3.png, 4.png"
    assert error.fix is not None
    assert error.fix.startswith("put the files of each class (.bmp, .gif, .jpeg, .jpg, .png, ")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(empty).given == "nothing"


def test_texts_do_not_lie_in_folders(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="the data is a folder, but texts are read from a table"
    ) as error:
        read_splits(spec_of(write_folder(tmp_path)), label_names=None)
    assert error.value.where == str(tmp_path)
    assert error.value.fix == "pass a file with the columns text and label"


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    (tmp_path / "files" / "cat" / "b.PNG").unlink()
    error = refusal(path)
    assert error.what == "the file of the image does not exist"
    assert error.where == f"{path}, row 2"
    assert error.given == str(tmp_path / "files" / "cat" / "b.PNG")
    assert error.fix == "correct the path: it is read from the folder of the table"
    with pytest.raises(DataError, match="the file of the image does not exist"):
        data_fingerprint(spec_of(path), kind="image")


def test_a_file_of_a_format_that_is_not_read(tmp_path: Path) -> None:
    write_table(tmp_path)
    (tmp_path / "speech.mp3").write_bytes(b"ID3")
    error = refusal(write_parquet(tmp_path / "data.parquet", ["speech.mp3"] * 2, ["cat", "dog"]))
    assert error.what == "the file of the image has a format that is not read"
    assert error.where == f"{tmp_path / 'data.parquet'}, row 1"
    assert error.given == "speech.mp3"
    assert str(error.fix).startswith("convert it to one of .bmp, ")


@pytest.mark.parametrize("cell", ["x" * 5000, "files\0", "files"], ids=["long", "null", "folder"])
def test_a_cell_that_is_no_path_of_a_file(tmp_path: Path, cell: str) -> None:
    write_table(tmp_path)
    error = refusal(write_parquet(tmp_path / "data.parquet", [cell, cell], ["cat", "dog"]))
    assert error.what == "the file of the image does not exist"
    assert len(str(error.given)) <= 200


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        ({"bytes": None, "path": None}, "cat"),
        ({"bytes": b"", "path": " "}, "cat"),
        (None, "cat"),
        ({"bytes": b"PNG", "path": None}, None),
        ({"bytes": b"PNG", "path": None}, " "),
    ],
)
def test_a_row_without_an_image_or_a_label(tmp_path: Path, cell: Any, label: Any) -> None:
    good = {"bytes": png(1), "path": None}
    path = write_parquet(tmp_path / "data.parquet", [good, cell], ["dog", label])
    error = refusal(path)
    assert error.what == "a row has no image or no label"
    assert error.where == f"{path}, row 2"
    assert error.fix == "remove the row, or write an image file and a class name or index"


def test_a_missing_column_and_how_to_name_another(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    path.write_text(path.read_text().replace("image,", "images,"))
    error = refusal(path)
    assert error.what == "the image column 'image' is missing"
    assert error.given == "columns images, label"
    assert error.fix == (
        "name it: --input COLUMN, or in a recipe with --set data.image=COLUMN"
        "; did you mean 'images'?"
    )


def test_labels_of_a_folder_that_the_model_does_not_know(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    error = refusal(folder, ("cat", "bird"))
    assert error.what == "the data has labels that the model does not know"
    assert (error.where, error.given) == (str(folder), "'dog' (2 rows)")
    shutil.rmtree(folder / "dog")
    error = refusal(folder, CLASSES)
    assert error.what == "the data has one class only"
    assert (error.where, error.given) == (str(folder), "2 rows, all 'cat'")


def test_a_folder_has_no_columns_to_slice_by(tmp_path: Path) -> None:
    error = refusal(write_folder(tmp_path), slices=("source",))
    assert error.what == "the column 'source' of data.slices is missing"
    assert error.given == "a folder, which has no columns"


def test_a_table_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("image,label\n")
    assert refusal(path).what == "the file has no rows"
