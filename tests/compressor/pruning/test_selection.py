from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compressor.pruning.selection import global_counts, top_units

LAYERS = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=40), min_size=1, max_size=5)


def test_the_highest_scores_stay_in_order() -> None:
    assert top_units(np.array([0.1, 0.9, 0.5, 0.7]), 2) == (1, 3)


def test_of_equal_scores_the_first_stay() -> None:
    assert top_units(np.zeros(5), 3) == (0, 1, 2)


def test_places_go_to_the_layer_with_the_higher_scores() -> None:
    scores = [np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.4, 0.3, 0.2, 0.1])]
    assert global_counts(scores, 5, multiple=1) == (4, 1)
    assert global_counts(scores, 6, multiple=2) == (4, 2)


def test_a_layer_without_importance_keeps_one_block() -> None:
    scores = [np.full(16, 1.0), np.zeros(16)]
    assert global_counts(scores, 20, multiple=4) == (16, 4)


@given(LAYERS, st.floats(0, 1), st.sampled_from([1, 4, 8]))
def test_counts_are_multiples_and_share_out_the_total(
    layers: list[list[float]], share: float, multiple: int
) -> None:
    scores = [np.array(layer) for layer in layers]
    widths = [len(layer) for layer in scores]
    total = round(sum(widths) * share)
    counts = global_counts(scores, total, multiple=multiple)
    smallest = [min(multiple, width) for width in widths]
    for count, width, least in zip(counts, widths, smallest, strict=True):
        assert least <= count <= width
        assert count == width or count % multiple == 0
    assert sum(counts) <= max(total, sum(smallest))
    if all(width % multiple == 0 for width in widths) and total >= sum(smallest):
        assert sum(counts) == total // multiple * multiple
