"""What compressed embeddings lose of the order in which the untouched ones see texts as alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compressor.means import compare_means
from compressor.report.schema import Comparison
from targets.answers import Units
from targets.answers.embeddings import (
    NUM_NEIGHBOURS,
    nearest,
    neighbour_recall,
    rank_correlations,
)

__all__ = ["SIMILARITY_METRICS", "compare_embeddings"]

SIMILARITY_METRICS = {
    "rank_correlation": rank_correlations,
    f"recall_at_{NUM_NEIGHBOURS}": neighbour_recall,
}
"""Name -> function of two models' embeddings of the same texts that gives a value a text."""


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
    return compare_means(
        values,
        agreement=float((nearest(reference.scores) == nearest(candidate.scores)).mean()),
        rows=candidate.rows,
        slices=slices,
    )
