"""The interval of an accuracy against scipy, and by its properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from targets.scoring import accuracy, wilson_interval

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
"""(hits, rows)."""


@settings(max_examples=100, deadline=None)
@given(counts)
def test_wilson_matches_scipy(case: tuple[int, int]) -> None:
    hits, count = case
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(counts)
def test_wilson_holds_the_share_and_stays_between_0_and_1(case: tuple[int, int]) -> None:
    hits, count = case
    low, high = wilson_interval(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    assert high > low
    mirrored = wilson_interval(count - hits, count)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_accuracy_counts_hits() -> None:
    found = accuracy(np.array([True, True, False, True]))
    assert found.value == 0.75
    assert found.num_rows == 4
    assert (found.low, found.high) == wilson_interval(3, 4)
