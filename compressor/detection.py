"""What is lost from one model to another where the answers are boxes around objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compressor.means import frequent_parts
from compressor.report.schema import Change, Comparison, Group
from targets.answers import BoxAnswers, Units
from targets.answers.boxes import BOX_METRICS, box_matches, mean_precisions
from targets.average_precision import BoxMatches
from targets.scoring import RESAMPLES, resamples, with_chance

__all__ = ["box_drop", "compare_boxes"]

_MAP = 0  # the first of the metrics
_SAME = 1e-12  # what two means may differ by that are the same

Precisions = NDArray[np.float64]
Points = tuple[float, float, float]


def compare_boxes(
    reference: Units,
    candidate: Units,
    *,
    label_names: Sequence[str],
    slices: Mapping[str, Sequence[str]],
) -> Comparison:
    """Compare the boxes that two models find in the same images.

    Intervals come from a paired bootstrap of the images; see `targets.scoring.resamples`. The
    agreement is the share of the images in which both find the same objects.

    Args:
        reference: Of the untouched model.
        candidate: Of the other one.
        label_names: Of the classes.
        slices: Column -> its values, one an image.
    """
    judge = BoxAnswers()
    both = (box_matches(reference), box_matches(candidate))
    whole, drawn = _whole(both), _drawn(both, len(candidate))
    metrics = {
        name: _change(
            *(mean_precisions(each)[:, place] for each in (*whole, *drawn)), count=len(candidate)
        )
        for place, name in enumerate(BOX_METRICS)
    }
    lost = metrics[next(iter(BOX_METRICS))]
    classes = both[0].classes.tolist()
    groups = [
        _group(
            None,
            label_names[name],
            int(both[0].counts[:, place].sum()),
            _change(
                *(each[:, place].mean(axis=-1) for each in (*whole, *drawn)),
                count=int((both[0].counts[:, place] > 0).sum()),
            ),
        )
        for place, name in enumerate(classes)
    ]
    for column, value, part in frequent_parts(slices, candidate.rows):
        inside = np.flatnonzero(part)
        found = tuple(box_matches(each.take(inside)) for each in (reference, candidate))
        if len(found[0].classes):  # else nothing is to be found in them
            groups.append(_group(column, value, len(inside), _map_change(found, len(inside))))
    return Comparison(
        drop_points=lost.drop_points,
        low_points=lost.low_points,
        high_points=lost.high_points,
        p_value=_p_value(reference, candidate, lost.drop_points / 100),
        agreement=float((judge.given(reference) == judge.given(candidate)).mean()),
        reference_accuracy=lost.reference,
        metrics=metrics,
        groups=tuple(groups),
    )


def box_drop(before: Units, after: Units) -> Points:
    """What the mean average precision loses, in points: estimate and 95% interval."""
    lost = _map_change((box_matches(before), box_matches(after)), len(before))
    return lost.drop_points, lost.low_points, lost.high_points


def _map_change(both: tuple[BoxMatches, ...], count: int) -> Change:
    tables = (*_whole(both), *_drawn(both, count))
    return _change(*(mean_precisions(each)[:, _MAP] for each in tables), count=count)


def _whole(both: tuple[BoxMatches, ...]) -> list[Precisions]:
    """The precisions of both on all images."""
    return [each.precisions(np.ones((1, len(each.counts)))) for each in both]


def _drawn(both: tuple[BoxMatches, ...], count: int) -> list[Precisions]:
    """Those on images that are drawn anew, the same for both."""
    weights = list(resamples(count))
    return [np.concatenate([each.precisions(part) for part in weights]) for each in both]


def _change(
    before: Precisions,
    after: Precisions,
    drawn_before: Precisions,
    drawn_after: Precisions,
    *,
    count: int,
) -> Change:
    """Of values of the whole, (1,) each, and of those that are drawn, (B,) each.

    Args:
        before: Of the untouched model.
        after: Of the other one.
        drawn_before: Of the untouched model.
        drawn_after: Of the other one.
        count: Images that have what is looked for; see `targets.scoring.LEAST_CERTAIN`.
    """
    drop = float(before[0] - after[0])
    low, high = np.nanpercentile(drawn_before - drawn_after, [2.5, 97.5])
    low, high = with_chance(float(low), float(high), count)
    return Change(
        value=float(after[0]),
        reference=float(before[0]),
        drop_points=100 * drop,
        low_points=100 * min(low, drop),
        high_points=100 * max(high, drop),
    )


def _group(column: str | None, value: str, num_rows: int, lost: Change) -> Group:
    return Group(
        column=column,
        value=value,
        num_rows=num_rows,
        accuracy=lost.value,
        reference=lost.reference,
        drop_points=lost.drop_points,
        low_points=lost.low_points,
        high_points=lost.high_points,
    )


def _p_value(reference: Units, candidate: Units, drop: float) -> float:
    """Two-sided test that two models are equally good.

    If they are, what they find in an image could as well be the other way round: the chance that a
    random exchange gives as large a difference (Noreen, Computer-Intensive Methods for Testing
    Hypotheses, 1989). 1000 random ones, always the same, stand for all.
    """
    count = len(candidate)
    together = Units.joined((reference, candidate))
    # In the order of the rows, each has its two models side by side.
    matches = box_matches(together)
    own = np.random.default_rng(0).integers(0, 2, (RESAMPLES, count), dtype=np.int8)
    swapped = np.stack([own, 1 - own], axis=-1).reshape(RESAMPLES, 2 * count)
    first, second = (
        mean_precisions(matches.precisions(each))[:, _MAP] for each in (swapped, 1 - swapped)
    )
    reached = np.abs(first - second) >= abs(drop) - _SAME
    return float((1 + reached.sum()) / (1 + RESAMPLES))
