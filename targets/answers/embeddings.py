"""A vector for each input, whose angles to others say how alike two inputs are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from targets.answers.base import Answers, BasePrediction, Units
from targets.scoring import Accuracy, mean_score

if TYPE_CHECKING:
    from targets.evaluation_pack import Labels
    from targets.preprocessing import Encoded

__all__ = [
    "NUM_NEIGHBOURS",
    "EmbeddingAnswers",
    "EmbeddingPrediction",
    "nearest",
    "neighbour_recall",
    "rank_correlations",
]

NUM_NEIGHBOURS = 10
"""Of the nearest inputs, those that :func:`neighbour_recall` looks for."""
MAX_CORPUS = 2000
"""Inputs that each one is compared with; of more, an evenly spaced choice."""
_DECIMALS = 6  # of a similarity: what is beyond them is rounding of float32, and no order
_TIE = 1e-11  # less than what counts, for as many others as there are
_CELLS = 2**22  # of a table of similarities that is held at once

Vectors = NDArray[np.floating]
Table = NDArray[np.float64]


class EmbeddingPrediction(BasePrediction):
    """The embedding of one input."""

    embedding: tuple[float, ...]
    """Of length 1, where the model normalizes."""


class EmbeddingAnswers(Answers):
    """The outputs are embeddings, (samples, size), and the labels those of the untouched model.

    How good they are is how well they keep the order of all others by their cosine similarity:
    Spearman's rank correlation, as benchmarks of sentence embeddings use it (Cer et al.,
    "SemEval-2017 Task 1: Semantic Textual Similarity", 2017; Reimers et al., "Task-Oriented
    Intrinsic Evaluation of Semantic Textual Similarity", 2016), for each input as a query.
    """

    kind: Literal["embeddings"] = "embeddings"

    unit: ClassVar[str] = "row"
    measure: ClassVar[str] = "rank correlation"

    def place(self, labels: Labels, inputs: Sequence[Any], encoded: Encoded) -> Labels:
        """See the base class: where they are."""
        return labels

    def judged(
        self, scores: NDArray[Any], labels: NDArray[Any], rows: NDArray[np.int64] | None = None
    ) -> Units:
        """See the base class: every input."""
        found = np.arange(len(labels)) if rows is None else rows
        return Units(scores.astype(np.float32), labels.astype(np.float32), found.astype(np.int32))

    def values(self, units: Units) -> NDArray[Any]:
        """See the base class: the rank correlation of every input."""
        return rank_correlations(units.labels, units.scores)

    def score(self, units: Units) -> Accuracy:
        """See the base class: the mean rank correlation, with an interval over the queries."""
        return mean_score(self.values(units), measure=self.measure)

    def given(self, units: Units) -> NDArray[np.int64]:
        """See the base class: the nearest of the other inputs."""
        return nearest(units.scores)

    def predictions(
        self,
        outputs: NDArray[np.floating],
        names: Sequence[str],
        inputs: Sequence[Any],
        encoded: Encoded,
    ) -> list[EmbeddingPrediction]:
        """See the base class."""
        return [
            EmbeddingPrediction(embedding=tuple(row), truncated=truncated)
            for row, truncated in zip(outputs.tolist(), encoded.truncated, strict=True)
        ]


def rank_correlations(reference: Vectors, candidate: Vectors) -> Table:
    """How well each input keeps the order of the others, by their cosine similarity to it.

    Args:
        reference: (N, size)
        candidate: (N, size'), of the same inputs.

    Returns:
        (N,) Spearman's rank correlation, in [-1, 1], ties with their mean rank; where all others
        are equally near in one of the two, 1 if they are in both and else 0.
    """
    found = []
    for own, first, second in _similarities(reference, candidate):
        before, after = _centred_ranks(first, own), _centred_ranks(second, own)
        spread = np.sqrt(np.square(before).sum(axis=1) * np.square(after).sum(axis=1))
        same = (before == after).all(axis=1).astype(np.float64)
        product = (before * after).sum(axis=1)
        found.append(np.divide(product, spread, out=same, where=spread > 0))
    return np.concatenate(found)


def neighbour_recall(
    reference: Vectors, candidate: Vectors, *, count: int = NUM_NEIGHBOURS
) -> Table:
    """Share of each input's nearest ones that are among the nearest in the other model too.

    Args:
        reference: (N, size), N > 1
        candidate: (N, size'), of the same inputs.
        count: How many of the nearest; all others, where there are fewer.

    Returns:
        (N,), in [0, 1].
    """
    found = []
    for own, *both in _similarities(reference, candidate):
        count = min(count, own.shape[1] - 1)
        near = []
        for table in both:
            chosen = np.zeros(table.shape, dtype=bool)
            last = np.argpartition(-_of_others(table, own), count - 1, axis=1)[:, :count]
            np.put_along_axis(chosen, last, values=True, axis=1)
            near.append(chosen)
        found.append((near[0] & near[1]).sum(axis=1) / count)
    return np.concatenate(found)


def nearest(embeddings: Vectors) -> NDArray[np.int64]:
    """The place of each input's nearest other one, among those it is compared with.

    Args:
        embeddings: (N, size), N > 1

    Returns:
        (N,)
    """
    found = []
    for own, table in _similarities(embeddings):
        found.append(_of_others(table, own).argmax(axis=1))
    return np.concatenate(found)


def _of_others(table: Table, own: Any) -> Table:
    """Similarities of which no two are equal: of others that are as near, the first is nearest.

    Args:
        table: (inputs, others)
        own: Cells of an input with itself, which are left out.
    """
    ordered = np.round(table, _DECIMALS) - _TIE * np.arange(table.shape[1])
    ordered[own] = -np.inf
    return np.asarray(ordered)


def _similarities(*models: Vectors) -> Iterator[tuple[Any, ...]]:
    """Of some inputs at a time: which cells are those of an input with itself, and the cosine
    similarities in every model.  # (inputs, others) each"""
    directions = [
        each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        for each in (vectors.astype(np.float64) for vectors in models)
    ]
    total = len(models[0])
    others = np.unique(np.linspace(0, total - 1, min(total, MAX_CORPUS)).astype(np.int64))
    step = max(1, _CELLS // len(others))
    for start in range(0, total, step):
        inputs = np.arange(start, min(start + step, total))
        own = inputs[:, None] == others[None, :]
        yield own, *((each[inputs] @ each[others].T).round(_DECIMALS) for each in directions)


def _centred_ranks(table: Table, own: NDArray[np.bool_]) -> Table:
    """The ranks of each line minus their mean; 0 for an input itself, which does not count."""
    table[own] = np.inf  # behind all others, whose ranks are then as if it were not there
    order = np.argsort(table, axis=1, kind="stable")
    ordered = np.take_along_axis(table, order, axis=1)
    places = np.broadcast_to(np.arange(table.shape[1]), table.shape)
    begins = np.ones(table.shape, dtype=bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = np.ones(table.shape, dtype=bool)
    ends[:, :-1] = begins[:, 1:]
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    last = np.where(ends, places, table.shape[1])[:, ::-1]
    last = np.minimum.accumulate(last, axis=1)[:, ::-1]
    ranks = np.empty(table.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, axis=1)
    ranks -= (table.shape[1] - 1 - own.sum(axis=1, keepdims=True)) / 2
    ranks[own] = 0
    return ranks
