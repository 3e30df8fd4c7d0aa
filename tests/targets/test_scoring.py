"""The interval of an accuracy against scipy, and by its properties."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from targets.scoring import accuracy, count_equal, design_effect, wilson_interval

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


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 1000))
def test_where_each_row_is_one_unit_nothing_changes(answers: list[bool], seed: int) -> None:
    correct = np.array(answers)
    rows = np.random.default_rng(seed).permutation(len(correct))
    assert design_effect(correct, rows) == 1.0
    assert accuracy(correct, rows) == accuracy(correct)


def test_units_that_are_right_or_wrong_together_count_as_their_rows() -> None:
    by_row = np.random.default_rng(0).random(400) < 0.8
    rows = np.repeat(np.arange(400), 5)
    found, plain = accuracy(by_row[rows], rows, unit="word"), accuracy(by_row)
    assert found.value == plain.value
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=2e-4)
    assert (found.num_rows, found.num_units) == (400, 2000)
    assert str(found).endswith(", 2000 words in 400 rows)")


def test_units_without_a_common_cause_count_almost_as_they_are() -> None:
    generator = np.random.default_rng(1)
    correct = generator.random(20_000) < 0.8
    found = accuracy(correct, generator.integers(0, 1000, 20_000), unit="word")
    plain = accuracy(correct)
    assert found.high - found.low == pytest.approx(plain.high - plain.low, rel=0.06)


def test_where_nothing_varies_only_the_rows_count() -> None:
    rows = np.repeat(np.arange(50), 10)
    found = accuracy(np.ones(500, dtype=bool), rows, unit="word")
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(wilson_interval(50, 50)[0])


def test_the_interval_of_ragged_rows_holds_the_truth_as_often_as_it_says() -> None:
    """Rows of 1 to 30 units that share how likely they are right; the plain interval fails."""
    held = {True: 0, False: 0}
    for seed in range(400):
        generator = np.random.default_rng(seed)
        rows = np.repeat(np.arange(150), generator.integers(1, 31, 150))
        chance = generator.beta(4, 1, 150)  # 0.8 on average
        correct = generator.random(len(rows)) < chance[rows]
        for by_row in held:
            found = accuracy(correct, rows if by_row else None)
            held[by_row] += found.low <= 0.8 <= found.high
    assert 0.92 <= held[True] / 400 <= 0.98
    assert held[False] / 400 < 0.8


def test_lines_that_are_equal_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.scoring._CHUNK", 7)
    generator = np.random.default_rng(0)
    table = [generator.integers(0, size, 100) for size in (5, 3)]
    table.append(generator.random(100) < 0.5)
    columns, found = count_equal(table)
    expected = Counter(zip(*(each.tolist() for each in table), strict=True))
    lines = list(zip(*(each.tolist() for each in columns), strict=True))
    assert lines == sorted(expected)
    assert found.tolist() == [expected[line] for line in lines]


def test_units_that_are_counted_together_count_as_each_alone() -> None:
    generator = np.random.default_rng(0)
    rows = np.sort(generator.integers(0, 20, 500))
    correct = generator.random(500) < np.linspace(0.2, 0.9, 20)[rows]
    (few_rows, few), sizes = count_equal((rows, correct))
    assert len(few) <= 40
    expected = design_effect(correct, rows)
    assert expected > 2
    assert design_effect(few, few_rows, sizes) == pytest.approx(expected)
