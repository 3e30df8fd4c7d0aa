"""Entities in the IOB2 form: spans of words that tags such as ``B-PER`` and ``I-PER`` mark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["count_entities", "entity_spans", "is_iob2"]

_OUTSIDE, _BEGIN, _INSIDE = "O", "B-", "I-"
Span = tuple[str, int, int]


def is_iob2(label_names: Sequence[str]) -> bool:
    """Whether classes are tags in the IOB2 form: ``O``, ``B-`` and ``I-`` with a type."""
    kinds = [name[:2] for name in label_names if name != _OUTSIDE]
    return _BEGIN in kinds and set(kinds) <= {_BEGIN, _INSIDE}


def entity_spans(tags: Sequence[str]) -> set[Span]:
    """The entities among the tags of one text: (type, first word, last word + 1).

    Strict, as in seqeval's mode ``strict`` with the scheme IOB2: an entity begins with ``B-`` and
    goes on with ``I-`` of the same type; an ``I-`` without such a beginning is part of none.
    """
    found: set[Span] = set()
    begin, kind = 0, ""
    for place, tag in enumerate([*tags, _OUTSIDE]):
        if kind and tag == _INSIDE + kind:
            continue
        if kind:
            found.add((kind, begin, place))
        kind = tag.removeprefix(_BEGIN) if tag.startswith(_BEGIN) else ""
        begin = place
    return found


def count_entities(
    classes: NDArray[np.int64],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    label_names: Sequence[str],
) -> NDArray[np.int64]:
    """How many entities each row has, and how many of them are found.

    Args:
        classes: (M,) what a model gives each word.
        labels: (M,) true classes.
        rows: (M,) the row of each word, rising.
        label_names: Of the classes.

    Returns:
        (rows, 3): entities that are rightly found, in type and at both ends; that there are; and
        that are found.
    """
    _, starts = np.unique(rows, return_index=True)
    ends = [*starts[1:].tolist(), len(rows)]
    counts = np.zeros((len(starts), 3), dtype=np.int64)
    for row, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True)):
        given, wanted = (
            entity_spans([label_names[index] for index in each[start:end].tolist()])
            for each in (classes, labels)
        )
        counts[row] = len(given & wanted), len(wanted), len(given)
    return counts
