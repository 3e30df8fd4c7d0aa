"""How good boxes around objects are: average precision, as COCO defines it.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and its reference implementation,
pycocotools. Boxes of all sizes count.

Tables of boxes have a line a box: its class; left, top, right and bottom in any unit; and the score
of a box that was found, or 1 for a crowd among those that are wanted, else 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BOX", "CLASS", "OVERLAPS", "SCORE", "BoxMatches", "match_boxes"]

CLASS = 0
SCORE = 5
BOX = slice(1, 5)
"""Where in the line of a box its class, its score and its sides stand."""
OVERLAPS = np.linspace(0.5, 0.95, 10)
"""From which share of their union two boxes have to have in common to be the same one."""
MOST_FOUND = 100
"""Boxes of a class that count in an image, the surest."""
_RECALLS = np.linspace(0.0, 1.0, 101)
_NEARLY_ONE = 1 - 1e-10
_CELLS = 2**23  # of a table of weights that is held at once

_RIGHT, _WRONG, _IGNORED = 1, 0, -1

Boxes = NDArray[np.floating]
Weights = NDArray[np.floating] | NDArray[np.integer]


@dataclass(frozen=True)
class _Ranking:
    """The boxes of a class that were found, the surest first, at one overlap.

    Attributes:
        images: The image of each that is right or wrong.
        hits: Which of these are right.
    """

    images: NDArray[np.int64]
    hits: NDArray[np.int64]


class BoxMatches:
    """Which of the boxes that were found are right, in images that may be weighted.

    Args:
        found: (images, boxes, 6); see the module. Those of a class below 0 count for nothing.
        wanted: (images, boxes', 6)

    Attributes:
        classes: Those that are wanted anywhere, ascending.  # (classes,)
        counts: How many boxes of each are wanted in each image.  # (images, classes)
    """

    def __init__(self, found: Boxes, wanted: Boxes) -> None:
        counted = (wanted[..., CLASS] >= 0) & (wanted[..., SCORE] == 0)
        self.classes = np.unique(wanted[counted][:, CLASS]).astype(np.int64)
        each = counted[..., None] & (wanted[..., CLASS, None] == self.classes)
        self.counts = each.sum(axis=1)
        self._rankings = [_rank(each, found, wanted) for each in self.classes.tolist()]

    def precisions(self, weights: Weights) -> NDArray[np.float64]:
        """The average precision of every class at every overlap.

        An image of weight 2 counts as if it were there twice.

        Args:
            weights: (B, images), whole numbers from 0.

        Returns:
            (B, classes, overlaps) in [0, 1]; NaN where no box of the class is wanted.
        """
        wanted = weights.astype(np.float64) @ self.counts
        found = np.zeros((*wanted.shape, len(OVERLAPS)))
        for place, rankings in enumerate(self._rankings):
            for part in _parts(len(weights), len(rankings[0].images)):
                images, given = None, np.zeros((0, 0))
                for level, ranking in enumerate(rankings):
                    if ranking.images is not images:  # most often all have the same
                        images = ranking.images
                        given = np.cumsum(weights[part][:, images], axis=1, dtype=np.float64)
                    found[part, place, level] = _average_precision(
                        ranking, weights[part], given, wanted[part, place]
                    )
        found[wanted == 0] = np.nan
        return found


def _parts(count: int, width: int) -> Iterator[slice]:
    step = max(1, _CELLS // max(width, 1))
    yield from (slice(start, start + step) for start in range(0, count, step))


def _average_precision(
    ranking: _Ranking, weights: Weights, given: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(B,) for weights (B, images), their sums along the ranking and so many wanted boxes (B,).

    The mean over 101 recalls of the largest precision at this or a larger recall. It is largest
    where a box is right, so that the precision at those is enough.
    """
    if not len(ranking.hits):
        return np.zeros(len(weights))
    right = np.cumsum(weights[:, ranking.images[ranking.hits]], axis=1, dtype=np.float64)
    given = given[:, ranking.hits]
    precision = np.divide(right, given, out=np.zeros_like(right), where=given > 0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = right / np.maximum(wanted, 1)[:, None]
    reached = np.searchsorted(_RECALLS, recall, side="right")
    return np.asarray((best * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(_RECALLS))


def _rank(name: int, found: Boxes, wanted: Boxes) -> list[_Ranking]:
    """The ranking of a class at each overlap."""
    lines, images = [], []
    outcomes = []
    own, others = (each[..., CLASS] == name for each in (found, wanted))
    for image in np.flatnonzero(own.any(axis=1)):
        ours, theirs = found[image, own[image]], wanted[image, others[image]]
        ours = ours[np.argsort(-ours[:, SCORE], kind="stable")][:MOST_FOUND]
        lines.append(ours)
        images.append(np.full(len(ours), image))
        outcomes.append(match_boxes(ours, theirs))
    if not lines:
        empty = np.zeros(0, dtype=np.int64)
        return [_Ranking(empty, empty)] * len(OVERLAPS)
    order = np.argsort(-np.concatenate(lines)[:, SCORE], kind="stable")
    rows = np.concatenate(images)[order]
    rankings = []
    for outcome in np.concatenate(outcomes, axis=1)[:, order]:
        counted = outcome != _IGNORED
        hits = np.flatnonzero(outcome[counted] == _RIGHT)
        rankings.append(_Ranking(rows if counted.all() else rows[counted], hits))
    return rankings


def match_boxes(found: Boxes, wanted: Boxes) -> NDArray[np.int8]:
    """Which boxes of one class in one image are right, at every overlap.

    Each takes the wanted box that it overlaps most with, of those that no surer one has taken. Any
    number may lie in a crowd, and then counts for nothing.

    Args:
        found: (F, 6), the surest first; see the module.
        wanted: (W, 6)

    Returns:
        (overlaps, F): 1 right, 0 wrong, -1 where it counts for nothing.
    """
    outcomes = np.full((len(OVERLAPS), len(found)), _WRONG, dtype=np.int8)
    if not len(wanted):
        return outcomes
    crowd = wanted[:, SCORE] > 0
    shares = _overlaps(found[:, BOX], wanted[:, BOX], crowd)
    least = np.minimum(OVERLAPS, _NEARLY_ONE)[:, None]
    free = np.ones((len(OVERLAPS), len(wanted)), dtype=np.bool_)
    levels = np.arange(len(OVERLAPS))
    for place in np.flatnonzero(shares.max(axis=1) >= least.min()):
        enough = (shares[place] >= least) & free
        outcomes[(enough & crowd).any(axis=1), place] = _IGNORED
        single = np.where(enough & ~crowd, shares[place], -1.0)
        best = single.shape[1] - 1 - single[:, ::-1].argmax(axis=1)  # of equal ones the last
        taken = single[levels, best] >= 0
        outcomes[taken, place] = _RIGHT
        free[levels[taken], best[taken]] = False
    return outcomes


def _overlaps(first: Boxes, second: Boxes, crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union, (F, W); of a crowd over the first box alone."""
    ours, theirs = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    low, high = (
        np.maximum(ours[..., :2], theirs[..., :2]),
        np.minimum(ours[..., 2:], theirs[..., 2:]),
    )
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    own, other = (np.prod(each[..., 2:] - each[..., :2], axis=-1) for each in (ours, theirs))
    whole = np.where(crowd, own, own + other - shared)
    return np.asarray(np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0))
