"""Images with boxes out of files as COCO has them, and what is said of files that are not so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer import BadParameter

from compressor.boxes import read_boxed, tables_of
from compressor.cli.predict import _check_min_score
from compressor.data import DataSpec, data_fingerprint, read_splits
from compressor.errors import DataError
from targets.answers import BoxAnswers, LabelAnswers
from targets.answers.boxes import MAX_BOXES

WIDTH, HEIGHT = 40, 20


def content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT, "camera": "old"},
            {"id": 3, "file_name": "b.png", "camera": "new"},
        ],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"image_id": 3, "category_id": 5, "bbox": [10, 5, 20, 10]},
            {"image_id": 3, "category_id": 2, "bbox": [-0.5, 0, 40.5, 20], "iscrowd": 1},
        ],
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{name}.png")
    return write(tmp_path / "train.json", content())


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_a_file_is_read(path: Path) -> None:
    found = read_boxed(path, slices=("camera", "weather"))
    assert found.images == tuple(str(path.parent / f"{name}.png") for name in "ab")
    assert found.names == ("cat", "dog")  # by their ids
    assert found.slices == {"camera": ["old", "new"]}
    assert [len(each) for each in found.boxes] == [0, 2]
    first, second = tables_of(found, ("cat", "dog"), path)
    assert first.shape == (0, 6)
    np.testing.assert_allclose(second, [[1, 0.25, 0.25, 0.75, 0.75, 0], [0, 0, 0, 1, 1, 1]])


def test_splits_have_the_classes_of_the_model(path: Path) -> None:
    spec = DataSpec(train=path, test=path, validation=path, slices=("camera",))
    fresh = read_splits(spec, label_names=None, kind="image", labels="boxes")
    assert fresh.label_names == ("cat", "dog")
    known = read_splits(spec, label_names=("bird", "dog", "cat"), kind="image", labels="boxes")
    assert [each[0] for each in known.test.labels[1]] == [1, 2]
    assert known.test.slices == {"camera": ("old", "new")}
    wrong = spec.model_copy(update={"slices": ("camara",)})
    with pytest.raises(DataError, match=r"'camara' of data\.slices is missing") as raised:
        read_splits(wrong, label_names=None, kind="image", labels="boxes")
    assert "did you mean 'camera'?" in str(raised.value)


def images_with(tmp_path: Path, counts: list[int]) -> Path:
    """A file of images, each with so many boxes."""
    images = [
        {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}
        for number in range(len(counts))
    ]
    for each in images:
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / str(each["file_name"]))
    annotations = [
        {"image_id": number, "category_id": 1, "bbox": [0, 0, 5, 5]}
        for number, count in enumerate(counts)
        for _ in range(count)
    ]
    categories = [{"id": 1, "name": "dog"}]
    return write(
        tmp_path / "train.json",
        {"images": images, "categories": categories, "annotations": annotations},
    )


@pytest.mark.parametrize("seed", range(5))
def test_of_images_with_few_objects_some_are_set_apart(tmp_path: Path, seed: int) -> None:
    path = images_with(tmp_path, [0] * 10 + [1] * 5)
    spec = DataSpec(train=path, test=path)
    splits = read_splits(spec, label_names=None, kind="image", labels="boxes", seed=seed)
    for split in (splits.train, splits.validation):
        assert any(len(each) for each in split.labels)
        assert any(not len(each) for each in split.labels)


def test_one_image_with_objects_is_too_few_to_set_some_apart(tmp_path: Path) -> None:
    path = images_with(tmp_path, [0] * 10 + [2])
    with pytest.raises(DataError, match="too small to set part of it aside") as raised:
        read_splits(DataSpec(train=path, test=path), label_names=None, kind="image", labels="boxes")
    assert raised.value.given == "a single image with objects"


def test_images_may_lie_elsewhere(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    moved = path.rename(folder / "train.json")
    assert read_boxed(moved, tmp_path).images[0] == str(tmp_path / "a.png")
    with pytest.raises(DataError, match="the file of an image does not exist") as raised:
        read_boxed(moved)
    assert "or set data.images" in str(raised.value)


def test_the_data_is_the_file_and_its_images(path: Path) -> None:
    spec = DataSpec(train=path, test=path, validation=path)

    def fingerprint() -> str:
        return data_fingerprint(spec, kind="image", labels="boxes")

    before = fingerprint()
    assert fingerprint() == before
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(path.parent / "a.png")
    assert fingerprint() != before
    Image.new("RGB", (WIDTH, HEIGHT)).save(path.parent / "a.png")
    assert fingerprint() == before
    write(path, {**content(), "info": {}})
    assert fingerprint() != before


def change(*places: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(value: Any) -> None:
        *way, last = places
        for each in way:
            value = value[each]
        value[last] = to

    return apply


def without(*places: Any) -> Callable[[dict[str, Any]], None]:
    def apply(value: Any) -> None:
        *way, last = places
        for each in way:
            value = value[each]
        del value[last]

    return apply


@pytest.mark.parametrize(
    ("apply", "what", "where", "given"),
    [
        (without("annotations"), "there is no list 'annotations'", ".json", "NoneType"),
        (change("images", to=[]), "there is no list 'images'", ".json", "list []"),
        (change("images", 1, to="b"), "an entry is not a JSON object", "images 2", "str 'b'"),
        (without("images", 0, "id"), "an entry has no id or no file_name", "images 1", "id=None"),
        (
            change("categories", 1, "name", to=" "),
            "an entry has no id or no name", "categories 2", "name=' '",
        ),
        (change("images", 1, "id", to=7), "two entries have the same id", "images 2", "7, which"),
        (
            change("categories", 0, "name", to="cat"),
            "two categories have the same name", ".json", "'cat'",
        ),
        (
            change("images", 0, "file_name", to="c.png"),
            "the file of an image does not exist", ".json", "c.png",
        ),
        (
            change("images", 0, "width", to=80),
            "the size of an image is not the one", "a.png", "40 x 20 pixels, in the .json file 80",
        ),
        (
            change("annotations", 0, "image_id", to=9),
            "an annotation has an unknown image_id", "annotation 1", "9",
        ),
        (
            change("annotations", 1, "category_id", to=[5]),
            "an annotation has an unknown category_id", "annotation 2", "[5]",
        ),
        (
            change("annotations", 0, "bbox", to=[1, 2, 3]),
            "a bbox is not left, top, width and height", "annotation 1", "[1, 2, 3]",
        ),
        (
            change("annotations", 0, "bbox", to=[1, 2, 3, "4"]),
            "a bbox is not left, top, width and height", "annotation 1", "'4'",
        ),
        (
            change("annotations", 0, "bbox", to=[1, 2, 0, 4]),
            "a bbox is not left, top, width and height", "annotation 1", "[1, 2, 0, 4]",
        ),
        (
            change("annotations", 0, "bbox", to=[10, 5, 30, 17]),
            "a bbox goes beyond its image", "annotation 1", "image 40 x 20 pixels",
        ),
        (
            change("annotations", 0, "bbox", to=[40, 5, 1, 1]),
            "a bbox goes beyond its image", "annotation 1", "[40, 5, 1, 1]",
        ),
        (
            change("annotations", 0, "iscrowd", to=1),
            "the images have no objects to find", ".json", "crowds",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    path: Path, apply: Callable[[dict[str, Any]], None], what: str, where: str, given: str
) -> None:
    value = content()
    apply(value)
    write(path, value)
    with pytest.raises(DataError) as raised:
        read_boxed(path)
    assert what in raised.value.what
    assert where in str(raised.value.where)
    assert given in str(raised.value.given)
    assert raised.value.fix


def test_an_image_has_so_many_boxes_and_no_more(path: Path) -> None:
    value = content()
    value["annotations"] = value["annotations"][:1] * MAX_BOXES
    assert len(read_boxed(write(path, value)).boxes[1]) == MAX_BOXES
    value["annotations"] = value["annotations"][:1] * (MAX_BOXES + 1)
    with pytest.raises(DataError, match="an image has too many boxes") as raised:
        read_boxed(write(path, value))
    assert raised.value.given == "101"


def test_an_image_that_is_none_is_named(path: Path) -> None:
    (path.parent / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="the image cannot be read") as raised:
        read_boxed(path)
    assert "a.png" in str(raised.value.where)


def test_a_class_that_the_model_does_not_know_is_named(path: Path) -> None:
    with pytest.raises(DataError, match="of a class that the model does not know") as raised:
        tables_of(read_boxed(path), ("dogs", "cat"), path)
    assert raised.value.given == "'dog'"
    assert "did you mean 'dogs'?" in raised.value.fix


@pytest.mark.parametrize(
    ("text", "what"), [("[1", "the file is not valid JSON"), ("[1]", "there is no list 'images'")]
)
def test_other_json_is_refused(path: Path, text: str, what: str) -> None:
    path.write_text(text)
    with pytest.raises(DataError, match=what):
        read_boxed(path)


@pytest.mark.parametrize(("option", "name"), [("--label", "kind"), ("--input", "photo")])
def test_finetuning_names_no_columns_of_boxes(
    compressor: Callable[..., Any], path: Path, tmp_path: Path, option: str, name: str
) -> None:
    path.with_name("test.json").write_text(path.read_text())
    found = compressor(
        "finetune", tmp_path / "model", tmp_path, "--task", "object-detection",
        "--output", tmp_path / "out", "--store", tmp_path / "store", option, name,
    )  # fmt: skip
    assert found.code == 3
    assert "which have no columns" in found.err
    assert f"given: {name}" in found.err


def test_a_least_score_is_for_boxes() -> None:
    _check_min_score(BoxAnswers(), 0.3)
    _check_min_score(LabelAnswers(), None)
    with pytest.raises(BadParameter, match="finds no objects: leave out --min-score"):
        _check_min_score(LabelAnswers(), 0.3)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"boxes must be in a \.json file") as raised:
        read_boxed(tmp_path / "train.csv")
    assert raised.value.given == ".csv"
    with pytest.raises(DataError, match=r"boxes must be in a \.json file") as raised:
        read_boxed(tmp_path)
    assert raised.value.given == "a folder"
    with pytest.raises(DataError, match="the data file does not exist"):
        read_boxed(tmp_path / "train.json")
