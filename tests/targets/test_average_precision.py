"""Average precision: that of pycocotools, and its weights."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from targets.average_precision import BOX, CLASS, OVERLAPS, SCORE, BoxMatches, match_boxes

SIZE = 100.0
Table = NDArray[np.float32]


def make_tables(
    seed: int, *, images: int = 12, classes: int = 4, crowds: bool = True, most: int = 7
) -> tuple[Table, Table]:
    """Boxes that are found, and those that are wanted: some are the same, moved."""
    generator = np.random.default_rng(seed)
    wanted = np.full((images, most, 6), -1, dtype=np.float32)
    found = np.full((images, 4 * most, 6), -1, dtype=np.float32)
    for image in range(images):
        count = int(generator.integers(0, most + 1))
        corners = generator.uniform(0, 0.6 * SIZE, (count, 2))
        sides = generator.uniform(0.1 * SIZE, 0.4 * SIZE, (count, 2))
        wanted[image, :count, BOX] = np.concatenate([corners, corners + sides], axis=1)
        wanted[image, :count, CLASS] = generator.integers(0, classes, count)
        wanted[image, :count, SCORE] = crowds * (generator.random(count) < 0.2)
        lines = np.repeat(wanted[image, :count], 2, axis=0)
        lines[:, BOX] += generator.normal(0, 3, (len(lines), 4))
        lines[generator.random(len(lines)) < 0.1, CLASS] = classes - 1
        others = np.zeros((int(generator.integers(0, most)), 6), dtype=np.float32)
        others[:, BOX] = np.sort(generator.uniform(0, SIZE, (len(others), 2, 2)), axis=1).reshape(
            len(others), 4
        )
        others[:, CLASS] = generator.integers(0, classes, len(others))
        lines = np.concatenate([lines, others])
        lines[:, SCORE] = generator.integers(1, 40, len(lines)) / 40  # some are equal
        found[image, : len(lines)] = lines
    return found, wanted


def reference(found: Table, wanted: Table) -> tuple[float, float, NDArray[np.float64]]:
    """AP, AP50 and the AP of every class at every overlap, by pycocotools."""
    entries: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (theirs, ours) in enumerate(zip(wanted, found, strict=True)):
        for lines, into in ((theirs, entries), (ours, results)):
            for line in lines[lines[:, CLASS] >= 0].astype(np.float64):
                left, top, right, bottom = line[BOX].tolist()
                width, height = right - left, bottom - top
                entry = {
                    "image_id": image + 1,
                    "category_id": int(line[CLASS]) + 1,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "id": len(into) + 1,
                }
                extra = {"iscrowd": int(line[SCORE])} if into is entries else {"score": line[SCORE]}
                into.append(entry | extra)
    names = sorted({each["category_id"] for each in (*entries, *results)})
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image + 1} for image in range(len(wanted))],
        "categories": [{"id": each, "name": str(each)} for each in names],
        "annotations": entries,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    precision = judge.eval["precision"][:, :, :, 0, 2]  # overlaps, recalls, classes
    counted = (precision > -1).all(axis=(0, 1))
    return judge.stats[0], judge.stats[1], precision[:, :, counted].mean(axis=1).T


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_it_is_that_of_pycocotools(seed: int, crowds: bool) -> None:
    found, wanted = make_tables(seed, crowds=crowds)
    given = BoxMatches(found, wanted).precisions(np.ones((1, len(found))))[0]
    ap, ap50, each = reference(found, wanted)
    np.testing.assert_allclose(given, each, atol=1e-9)
    assert given.mean() == pytest.approx(ap, abs=1e-9)
    assert given[:, 0].mean() == pytest.approx(ap50, abs=1e-9)
    assert 0.1 < ap < 0.9


def test_of_many_boxes_of_a_class_the_surest_hundred_count() -> None:
    found, wanted = make_tables(3, classes=1, images=3, most=60)
    assert (found[..., CLASS] >= 0).sum(axis=1).max() > 100
    given = BoxMatches(found, wanted).precisions(np.ones((1, 3)))[0]
    assert given.mean() == pytest.approx(reference(found, wanted)[0], abs=1e-9)


def test_a_weight_is_so_many_copies_of_an_image() -> None:
    found, wanted = make_tables(5)
    found[..., SCORE] = (
        np.random.default_rng(0).permutation(found[..., SCORE].size).reshape(found.shape[:2])
    )  # equal ones of two images would take turns
    weights = np.random.default_rng(1).integers(0, 4, (20, len(found)))
    given = BoxMatches(found, wanted).precisions(weights)
    matches = BoxMatches(found, wanted)
    for each, counts in zip(given, weights, strict=True):
        rows = np.repeat(np.arange(len(found)), counts)
        copies = BoxMatches(found[rows], wanted[rows])
        expected = np.full_like(each, np.nan)
        expected[np.isin(matches.classes, copies.classes)] = copies.precisions(
            np.ones((1, len(rows)))
        )[0]
        np.testing.assert_allclose(each, expected, atol=1e-12)


def line(label: int, box: tuple[float, float, float, float], last: float) -> list[float]:
    return [label, *box, last]


def test_a_box_is_taken_once_and_by_the_surest() -> None:
    wanted = np.array([line(0, (0, 0, 10, 10), 0)])
    found = np.array([line(0, (0, 0, 10, 8), 0.9), line(0, (0, 0, 10, 10), 0.8)])
    outcomes = match_boxes(found, wanted)
    assert outcomes[:, 0].tolist() == [int(each <= 0.8) for each in OVERLAPS]
    assert outcomes[:, 1].tolist() == [int(each > 0.8) for each in OVERLAPS]


def test_any_number_of_boxes_lie_in_a_crowd_and_none_of_them_counts() -> None:
    wanted = np.array([line(0, (0, 0, 10, 10), 1), line(0, (20, 20, 30, 30), 0)])
    found = np.array(
        [line(0, (0, 0, 5, 5), 0.9), line(0, (5, 5, 10, 10), 0.8), line(0, (20, 20, 30, 30), 0.7)]
    )
    assert (match_boxes(found, wanted) == [-1, -1, 1]).all()


def test_nothing_found_and_nothing_wanted() -> None:
    nothing = np.full((2, 3, 6), -1.0)
    found, wanted = make_tables(0, images=2)
    assert not BoxMatches(nothing, wanted).precisions(np.ones((1, 2))).any()
    assert BoxMatches(found, nothing).precisions(np.ones((1, 2))).shape == (1, 0, 10)
