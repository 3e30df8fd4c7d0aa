"""What compressed embeddings lose of the order in which the untouched ones see texts as alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compressor.evaluation import sign_flip_p_value
from compressor.report.schema import Change, Comparison, Group
from targets.answers import Units
from targets.answers.embeddings import (
    NUM_NEIGHBOURS,
    nearest,
    neighbour_recall,
    rank_correlations,
)
from targets.scoring import resampled_means

__all__ = ["SIMILARITY_METRICS", "compare_embeddings", "mean_drop"]

SIMILARITY_METRICS = {
    "rank_correlation": rank_correlations,
    f"recall_at_{NUM_NEIGHBOURS}": neighbour_recall,
}
"""Name -> function of two models' embeddings of the same texts that gives a value a text."""
MAX_VALUES = 50
"""Of a column that the data is sliced by; the most frequent count."""
_MILLIONTHS = 1e6

Values = NDArray[np.floating]


def compare_embeddings(
    reference: Units, candidate: Units, *, slices: Mapping[str, Sequence[str]]
) -> Comparison:
    """Compare the embeddings of two models with the labels, those of the untouched model.

    The agreement is the share of the texts whose nearest other text is the same.

    Args:
        reference: Of the untouched model, as one of its bundles gives them.
        candidate: Of the other one.
        slices: Column -> its values, one a text.
    """
    labels = candidate.labels
    values = {
        name: (measure(labels, reference.scores), measure(labels, candidate.scores))
        for name, measure in SIMILARITY_METRICS.items()
    }
    before, after = values["rank_correlation"]
    points, low, high = mean_drop(before, after)
    return Comparison(
        drop_points=points,
        low_points=low,
        high_points=high,
        p_value=sign_flip_p_value(np.rint(_MILLIONTHS * (before - after)).astype(np.int64)),
        agreement=float((nearest(reference.scores) == nearest(candidate.scores)).mean()),
        reference_accuracy=float(before.mean()),
        metrics={name: _change(*each) for name, each in values.items()},
        groups=tuple(
            Group(
                column=column,
                value=str(value),
                num_rows=int(part.sum()),
                accuracy=float(after[part].mean()),
                reference=float(before[part].mean()),
                drop_points=lost.drop_points,
                low_points=lost.low_points,
                high_points=lost.high_points,
            )
            for column, value, part in _parts(slices, candidate.rows)
            for lost in [_change(before[part], after[part])]
        ),
    )


def mean_drop(before: Values, after: Values) -> tuple[float, float, float]:
    """What a mean loses from one model to another, in points: estimate and 95% interval.

    The texts are drawn anew for the interval; see `targets.scoring.resampled_means`.

    Args:
        before: (M,) a value a text.
        after: (M,) of the same texts.
    """
    differences = 100 * (before.astype(np.float64) - after)
    low, high = np.percentile(resampled_means(differences), [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)


def _change(before: Values, after: Values) -> Change:
    points, low, high = mean_drop(before, after)
    return Change(
        value=float(after.mean()),
        reference=float(before.mean()),
        drop_points=points,
        low_points=low,
        high_points=high,
    )


def _parts(
    slices: Mapping[str, Sequence[str]], rows: NDArray[np.int64]
) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Column, value, and which texts have it; the most frequent first."""
    found = []
    for column, values in slices.items():
        each = np.asarray(values)[rows]
        names, counts = np.unique(each, return_counts=True)
        frequent = names[np.argsort(-counts, kind="stable")][:MAX_VALUES]
        found += [(column, str(name), each == name) for name in frequent]
    return found
