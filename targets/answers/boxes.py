"""Boxes around the objects of an image, each with a class: object detection."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from targets.answers.base import IGNORED, Answers, BasePrediction, Units, softmax
from targets.average_precision import BOX, CLASS, SCORE, BoxMatches
from targets.scoring import Accuracy, resamples

if TYPE_CHECKING:
    from targets.evaluation_pack import Labels
    from targets.preprocessing import Encoded

__all__ = [
    "BOX_METRICS",
    "LEAST_SCORE",
    "MAX_BOXES",
    "NO_BOX",
    "BoxAnswers",
    "BoxesPrediction",
    "DetectedBox",
    "box_matches",
    "found_boxes",
    "mean_precisions",
    "place_boxes",
]

MAX_BOXES = 100
"""Most boxes of an image that are labels."""
NO_BOX = -1
"""Class in the lines of labels that hold no box, for all images have as many."""
LEAST_SCORE = 0.5
"""Of the boxes that a user gets, where no other is asked for."""
_SIDES = 4
"""How many of the numbers of a query are of its box; those before are logits."""
BOX_METRICS = {"map": slice(None), "map_50": slice(1)}
"""Name -> the overlaps that it is the mean over; see `targets.average_precision.OVERLAPS`."""


class DetectedBox(BaseModel):
    """An object that was found."""

    model_config = ConfigDict(frozen=True)

    label: str
    """Of the most probable class."""
    score: float
    """Its probability."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels of the image that was given."""


class BoxesPrediction(BasePrediction):
    """The objects in one image."""

    boxes: tuple[DetectedBox, ...]
    """The surest first, of at least `LEAST_SCORE`."""
    all_boxes: tuple[DetectedBox, ...] = Field(exclude=True, repr=False)
    """The box of every query, however small its score."""

    def above(self, score: float) -> Self:
        """The same with the boxes of at least another score."""
        boxes = tuple(each for each in self.all_boxes if each.score >= score)
        return self.model_copy(update={"boxes": boxes})


class BoxAnswers(Answers):
    """The outputs are logits and boxes, (samples, queries, classes + 1 + 4).

    The last class stands for no object; boxes are the middle, width and height in shares of the
    image, as DETR gives them (Carion et al., "End-to-End Object Detection with Transformers",
    2020). Each query answers with its most probable class that is one.

    What is judged is images, and how good all answers are is no mean over them: the mean average
    precision of COCO over classes and overlaps. See `targets.average_precision`.
    """

    kind: Literal["boxes"] = "boxes"

    unit: ClassVar[str] = "image"
    measure: ClassVar[str] = "mAP"

    def place(self, labels: Labels, inputs: Sequence[Any], encoded: Encoded) -> Labels:
        """See the base class: labels are tables, see :func:`place_boxes`."""
        return place_boxes(labels)

    def judged(
        self, scores: NDArray[Any], labels: NDArray[Any], rows: NDArray[np.int64] | None = None
    ) -> Units:
        """See the base class: every image.

        Returns:
            Scores (units, queries, 6) and labels (units, `MAX_BOXES`, 6), tables of boxes.
        """
        found = np.arange(len(labels)) if rows is None else rows
        counted = labels[:, 0, CLASS] != IGNORED
        return Units(
            found_boxes(scores)[counted],
            labels[counted].astype(np.float32),
            found[counted].astype(np.int32),
        )

    def values(self, units: Units) -> NDArray[Any]:
        """See the base class: the mean average precision of each image by itself.

        Of one without objects 1 where nothing was found with at least `LEAST_SCORE`, else 0.
        """
        alone = np.eye(len(units), dtype=np.float32)
        values = mean_precisions(box_matches(units).precisions(alone))[:, 0]
        nothing = ~(units.scores[..., SCORE] >= LEAST_SCORE).any(axis=1)
        return np.where(np.isnan(values), nothing, values)

    def overall(self, units: Units) -> float:
        """See the base class: the mean average precision."""
        return _overall(box_matches(units))

    def score(self, units: Units) -> Accuracy:
        """See the base class: the mean average precision; its interval is that of the images.

        They are drawn anew 1000 times; see `targets.scoring.resamples`.
        """
        matches = box_matches(units)
        drawn = [mean_precisions(matches.precisions(each))[:, 0] for each in resamples(len(units))]
        low, high = np.nan_to_num(np.nanpercentile(np.concatenate(drawn), [2.5, 97.5]))
        value = _overall(matches)
        return Accuracy(
            value=value,
            low=min(float(low), value),
            high=max(float(high), value),
            num_rows=len(units),
            measure=self.measure,
        )

    def given(self, units: Units) -> NDArray[np.int64]:
        """See the base class: which objects of at least `LEAST_SCORE` are in each image."""
        sure = np.where(units.scores[..., SCORE] >= LEAST_SCORE, units.scores[..., CLASS], NO_BOX)
        lines = np.sort(sure.astype(np.int32), axis=1)
        return np.array([zlib.crc32(each.tobytes()) for each in lines], dtype=np.int64)

    def predictions(
        self,
        outputs: NDArray[np.floating],
        names: Sequence[str],
        inputs: Sequence[Any],
        encoded: Encoded,
    ) -> list[BoxesPrediction]:
        """See the base class."""
        found = []
        for table, view in zip(found_boxes(outputs), encoded.views, strict=True):
            height, width = view.source
            ordered = table[np.argsort(-table[:, SCORE], kind="stable")]
            sides = np.clip(ordered[:, BOX], 0, 1) * [width, height, width, height]
            every = tuple(
                DetectedBox(label=names[int(line[CLASS])], score=float(line[SCORE]), box=tuple(box))
                for line, box in zip(ordered, sides.tolist(), strict=True)
            )
            found.append(BoxesPrediction(boxes=(), all_boxes=every).above(LEAST_SCORE))
        return found


def found_boxes(outputs: NDArray[Any]) -> NDArray[np.float32]:
    """The box of each query with its most probable class.

    Args:
        outputs: (N, queries, classes + 1 + 4); see `BoxAnswers`.

    Returns:
        (N, queries, 6), sides in shares of the image.
    """
    chances = softmax(outputs[..., :-_SIDES])[..., :-1]
    middle, size = np.split(outputs[..., -_SIDES:].astype(np.float32), 2, axis=-1)
    found = np.empty((*outputs.shape[:2], 6), dtype=np.float32)
    found[..., CLASS] = chances.argmax(axis=-1)
    found[..., SCORE] = chances.max(axis=-1)
    found[..., BOX] = np.concatenate([middle - size / 2, middle + size / 2], axis=-1)
    return found


def place_boxes(labels: Sequence[NDArray[Any]] | NDArray[Any]) -> NDArray[np.float32]:
    """Tables of boxes of one length, filled up with `NO_BOX`.

    Args:
        labels: (boxes, 6) of each image, at most `MAX_BOXES`; see `targets.average_precision`.

    Returns:
        (N, `MAX_BOXES`, 6)
    """
    placed = np.full((len(labels), MAX_BOXES, 6), NO_BOX, dtype=np.float32)
    for place, boxes in zip(placed, labels, strict=True):
        place[: len(boxes)] = boxes
    return placed


def _overall(matches: BoxMatches) -> float:
    whole = np.ones((1, len(matches.counts)), dtype=np.float32)
    return float(np.nan_to_num(mean_precisions(matches.precisions(whole))[0, 0]))


def box_matches(units: Units) -> BoxMatches:
    """Which of the boxes of some images are right."""
    return BoxMatches(units.scores, units.labels)


def mean_precisions(precisions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The metrics of `BOX_METRICS`, means over the classes that are wanted.

    Args:
        precisions: (B, classes, overlaps); see `BoxMatches.precisions`.

    Returns:
        (B, metrics); NaN where nothing is wanted.
    """
    wanted = ~np.isnan(precisions[..., 0])
    count = wanted.sum(axis=1)
    columns = []
    for overlaps in BOX_METRICS.values():
        each = np.where(wanted, precisions[..., overlaps].mean(axis=-1), 0.0).sum(axis=1)
        columns.append(np.divide(each, count, out=np.full(len(each), np.nan), where=count > 0))
    return np.stack(columns, axis=1)
