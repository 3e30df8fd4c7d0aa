"""Classes of pixels: interpolated as torch does, masks placed where the model sees their pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from targets.answers import IGNORED, PixelLabelAnswers
from targets.answers.pixel_labels import MOST_PIXELS, UNLABELLED, class_maps, place_masks, read_mask
from targets.errors import InputError
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import ImagePreprocessing
from targets.preprocessing.image import PIXELS, View

ANSWERS = PixelLabelAnswers()
NAMES = ("sky", "road", "tree")


def png(mask: NDArray[np.uint8], mode: str = "L") -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(mask)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("size", [(16, 16), (7, 29), (33, 5), (4, 6), (2, 2)])
def test_pixels_are_those_of_torch(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(size=(3, 5, 4, 6)).astype(np.float32)
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(logits), size=size, mode="bilinear", align_corners=False
    )
    found = class_maps(logits, *size)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, whole.argmax(dim=1).numpy())


def test_what_is_kept_of_a_batch_is_as_large_as_its_images() -> None:
    logits = np.zeros((2, 3, 4, 4), np.float16)
    logits[:, 1] = 1
    found = ANSWERS.reduced(logits, {PIXELS: np.zeros((2, 3, 8, 16), np.float32)})
    assert found.shape == (2, 8, 16)
    assert (found == 1).all()


def test_a_mask_of_the_size_of_the_model_stays_as_it_is() -> None:
    mask = np.array([[0, 2], [UNLABELLED, 1]], np.uint8)
    view = View((2, 2), (2, 2), (0, 0), (2, 2))
    [found] = place_masks([mask], [view])
    assert found.tolist() == [[0, 2], [IGNORED, 1]]
    np.testing.assert_array_equal(view.spread(mask, UNLABELLED), mask)


@pytest.mark.parametrize("side", [2, 6, 12])  # no middle of a pixel on a border
def test_pixels_are_the_nearest_ones_of_pillow(side: int) -> None:
    mask = np.random.default_rng(0).integers(0, 9, (10, 20), dtype=np.uint8)
    preprocessing = ImagePreprocessing(height=side, width=side, shortest_edge=side + 2)
    encoded = preprocessing.open(Path()).encode([np.stack([mask] * 3, axis=-1)])
    same = preprocessing.model_copy(update={"resample": "nearest"}).open(Path())
    wanted = same.encode([np.stack([mask] * 3, axis=-1)]).rows[PIXELS][0][..., 0]
    [found] = place_masks([mask], encoded.views)
    np.testing.assert_array_equal(found, wanted)


def test_where_the_image_has_no_pixels_nothing_counts() -> None:
    preprocessing = ImagePreprocessing(height=8, width=8, resized=(4, 4))
    encoded = preprocessing.open(Path()).encode([np.zeros((4, 4, 3), np.uint8)])
    [found] = place_masks([np.ones((4, 4), np.uint8)], encoded.views)
    assert (found[2:6, 2:6] == 1).all()
    assert (found != IGNORED).sum() == 16


def test_what_the_model_does_not_see_of_an_image_has_no_class() -> None:
    preprocessing = ImagePreprocessing(height=4, width=4, shortest_edge=4)
    images = [np.zeros((4, 8, 3), np.uint8)]
    encoded = preprocessing.open(Path()).encode(images)
    classes = np.full((1, 4, 4), 2, np.uint8)
    [found] = ANSWERS.predictions(classes, NAMES, images, encoded)
    assert found.shares == {"sky": 0, "road": 0, "tree": 1}
    assert found.mask()[:, 2:6].tolist() == [[2] * 4] * 4
    assert (found.mask() == UNLABELLED).sum() == 16
    assert "classes" not in found.model_dump_json()


@pytest.mark.parametrize("mode", ["L", "P"])
def test_units_of_a_pack_are_the_pixels_that_count(mode: str, tmp_path: Path) -> None:
    masks = np.random.default_rng(1).integers(0, 3, (2, 6, 6), dtype=np.uint8)
    masks[0, :2] = UNLABELLED
    images = [np.zeros((6, 6, 3), np.uint8)] * 2
    preprocessing = ImagePreprocessing(height=6, width=6)
    encoded = preprocessing.open(Path()).encode(images)
    labels = ANSWERS.place([png(each, mode) for each in masks], images, encoded)
    pack = EvaluationPack.from_rows(encoded.rows, labels, preprocessing=preprocessing)
    pack.save(tmp_path / "pack")
    pack = EvaluationPack.load(tmp_path / "pack")
    assert pack.labels.dtype == np.int16
    answers = np.ones((2, 6, 6), np.uint8)
    units = ANSWERS.units(answers, pack)
    counted = masks != UNLABELLED
    assert len(units) == 60
    assert units.labels.tolist() == masks[counted].tolist()
    assert units.rows.tolist() == [0] * 24 + [1] * 36
    assert units.right.sum() == (masks == 1).sum()
    assert units.classes.nbytes + units.labels.nbytes + units.rows.nbytes == 7 * len(units)


@pytest.mark.parametrize(
    ("value", "what", "given"),
    [
        (png(np.zeros((4, 5), np.uint8)), "another size", "5 x 4 pixels, the image 4 x 4"),
        (png(np.zeros((4, 4, 3), np.uint8)), "does not hold the index of a class", "mode RGB"),
        (b"no image", "the image cannot be read", "no format that Pillow knows"),
        ("absent.png", "the image cannot be read", "No such file"),
    ],
)
def test_what_is_no_mask_of_an_image_is_refused(value: Any, what: str, given: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        read_mask(value, "masks[3]", size=(4, 4))
    assert caught.value.where == "masks[3]"
    assert given in str(caught.value.given)


def test_more_pixels_than_fit_in_memory_are_refused() -> None:
    side = 2**12
    views = [View((side, side), (side, side), (0, 0), (side, side))] * (MOST_PIXELS // side**2 + 1)
    with pytest.raises(InputError, match="too many pixels to be judged at once") as caught:
        place_masks([b""] * len(views), views)
    assert f"{len(views)} images" in str(caught.value.given)
