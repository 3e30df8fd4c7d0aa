"""Paired intervals and tests against scipy, by their properties, and by simulation."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from compressor.evaluation import compare, mcnemar_p_value, paired_interval, sign_flip_p_value
from targets.scoring import Z_95, accuracy, count_equal

tables = st.integers(1, 2000).flatmap(
    lambda n: st.integers(0, n).flatmap(
        lambda lost: st.tuples(st.just(lost), st.integers(0, n - lost), st.just(n))
    )
)
"""(lost, gained, rows)."""

labelled = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n)] * 3)
)
"""(reference, candidate, labels)."""


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1500), st.integers(0, 1500))
def test_mcnemar_matches_the_exact_binomial_test(lost: int, gained: int) -> None:
    total = lost + gained
    expected = binomtest(min(lost, gained), total, 0.5).pvalue if total else 1.0
    assert mcnemar_p_value(lost, gained) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("lost", "gained", "expected"),
    [(0, 0, 1.0), (1, 0, 1.0), (0, 5, 0.0625), (5, 0, 0.0625), (1, 8, 0.0390625), (4, 4, 1.0)],
)
def test_mcnemar_of_small_tables(lost: int, gained: int, expected: float) -> None:
    assert mcnemar_p_value(lost, gained) == expected


def test_mcnemar_of_a_large_test_set_takes_no_time() -> None:
    start = time.process_time()
    assert mcnemar_p_value(5_000, 5_200) == pytest.approx(
        binomtest(5_000, 10_200, 0.5).pvalue, rel=1e-9
    )
    assert time.process_time() - start < 2


@settings(max_examples=100, deadline=None)
@given(tables)
def test_the_paired_interval_is_ordered_inside_and_symmetric(case: tuple[int, int, int]) -> None:
    lost, gained, count = case
    low, high = paired_interval(lost, gained, count)
    assert -1 <= low < high <= 1
    swapped = paired_interval(gained, lost, count)
    assert swapped == pytest.approx((-high, -low), abs=1e-12)
    if lost == gained:
        assert low == pytest.approx(-high, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(tables)
def test_more_loss_moves_the_paired_interval_up(case: tuple[int, int, int]) -> None:
    lost, gained, count = case
    shifted = paired_interval(lost + 1, gained, count + 1)
    assert sum(shifted) > sum(paired_interval(lost, gained, count + 1))


def test_the_paired_interval_of_models_that_agree_everywhere_is_no_point() -> None:
    low, high = paired_interval(0, 0, 100)
    assert low == pytest.approx(-high)
    assert 0.01 < high < 0.03


def test_the_paired_interval_is_the_published_formula() -> None:
    # Half an observation in each of the four cells, then Wald: p12* - p21*, n* = n + 2.
    b, c, n = 12.5, 5.5, 202
    p12, p21 = b / n, c / n
    spread = Z_95 * ((p12 + p21 - (p12 - p21) ** 2) / n) ** 0.5
    expected = (p12 - p21 - spread, p12 - p21 + spread)
    assert paired_interval(12, 5, 200) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("num_rows", "lost", "gained"),
    [(100, 0.02, 0.02), (100, 0.08, 0.03), (500, 0.01, 0.0), (1000, 0.03, 0.02), (50, 0.2, 0.1)],
)
def test_the_paired_interval_covers_the_truth_in_95_of_100_samples(
    num_rows: int, lost: float, gained: float
) -> None:
    generator = np.random.default_rng(0)
    samples = generator.multinomial(num_rows, [lost, gained, 1 - lost - gained], size=4000)
    covered = [
        low <= lost - gained <= high
        for low, high in (paired_interval(int(b), int(c), num_rows) for b, c, _ in samples)
    ]
    # 4,000 samples: standard error 0.35 points; the method itself errs to the wide side.
    assert 0.935 <= np.mean(covered) <= 1.0


def test_the_paired_interval_is_no_wider_than_needed() -> None:
    generator = np.random.default_rng(1)
    samples = generator.multinomial(1000, [0.06, 0.04, 0.9], size=4000)
    intervals = np.array([paired_interval(int(b), int(c), 1000) for b, c, _ in samples])
    covered = (intervals[:, 0] <= 0.02) & (intervals[:, 1] >= 0.02)
    assert 0.94 <= covered.mean() <= 0.965


def test_a_drop_is_positive_where_accuracy_was_lost() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    reference = labels.copy()
    reference[9] = 1  # 9 of 10 right
    candidate = labels.copy()
    candidate[:3] = [1, 2, 0]  # 7 of 10 right: loses three, gains one
    found = compare(reference, candidate, labels)
    assert found.drop_points == pytest.approx(20)
    assert found.agreement == pytest.approx(0.6)
    assert found.p_value == mcnemar_p_value(3, 1)
    low, high = paired_interval(3, 1, 10)
    assert (found.low_points, found.high_points) == (100 * low, 100 * high)


def test_two_wrong_answers_agree_only_when_they_are_the_same() -> None:
    labels = np.array([0, 0, 0])
    found = compare(np.array([1, 1, 0]), np.array([1, 2, 0]), labels)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.drop_points == 0
    assert found.p_value == 1


@settings(max_examples=100, deadline=None)
@given(labelled)
def test_the_drop_is_the_difference_of_the_accuracies(case: tuple[list[int], ...]) -> None:
    reference, candidate, labels = (np.array(each) for each in case)
    found = compare(reference, candidate, labels)
    before, after = accuracy(reference == labels), accuracy(candidate == labels)
    assert found.drop_points == pytest.approx(100 * (before.value - after.value), abs=1e-9)
    assert found.low_points < found.high_points
    back = compare(candidate, reference, labels)
    assert back.drop_points == pytest.approx(-found.drop_points, abs=1e-9)
    assert back.p_value == pytest.approx(found.p_value)
    assert back.agreement == found.agreement
    assert compare(reference, reference, labels).agreement == 1


@settings(max_examples=100, deadline=None)
@given(labelled, st.integers(0, 1000))
def test_where_each_row_is_one_unit_nothing_changes(case: tuple[list[int], ...], seed: int) -> None:
    reference, candidate, labels = (np.array(each) for each in case)
    rows = np.random.default_rng(seed).permutation(len(labels))
    assert compare(reference, candidate, labels, rows) == compare(reference, candidate, labels)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-4, 4), max_size=10))
def test_the_sign_flip_test_counts_all_signs(differences: list[int]) -> None:
    reached = abs(sum(differences))
    sums = [
        abs(sum(sign * each for sign, each in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    expected = np.mean([each >= reached for each in sums])
    assert sign_flip_p_value(np.array(differences, dtype=np.int64)) == pytest.approx(expected)


def clustered(seed: int) -> tuple[np.ndarray, ...]:
    """Two models that are equally good, whose answers hang together within a row."""
    generator = np.random.default_rng(seed)
    rows = np.repeat(np.arange(200), generator.integers(1, 20, 200))
    labels = np.zeros(len(rows), dtype=np.int64)
    answers = []
    for _ in range(2):
        wrong = generator.beta(0.3, 1.2, 200)  # a fifth on average
        answers.append((generator.random(len(rows)) < wrong[rows]).astype(np.int64))
    return *answers, labels, rows


def test_of_equally_good_models_the_paired_interval_of_rows_holds_0() -> None:
    held, plain, small = 0, 0, 0
    for seed in range(300):
        reference, candidate, labels, rows = clustered(seed)
        found = compare(reference, candidate, labels, rows)
        alone = compare(reference, candidate, labels)
        held += found.low_points <= 0 <= found.high_points
        plain += alone.low_points <= 0 <= alone.high_points
        small += found.p_value < 0.05
    assert 0.92 <= held / 300 <= 0.98
    assert plain / 300 < 0.8
    assert 0.02 <= small / 300 <= 0.08


def test_the_sign_flip_test_of_many_rows_takes_no_time() -> None:
    start = time.perf_counter()
    differences = np.random.default_rng(0).integers(-3, 4, 5000)
    assert 0 < sign_flip_p_value(differences) <= 1
    assert time.perf_counter() - start < 2


def test_units_that_are_counted_together_compare_as_each_alone() -> None:
    generator = np.random.default_rng(0)
    rows = np.sort(generator.integers(0, 12, 400))
    labels, before = generator.integers(0, 3, (2, 400))
    after = np.where(generator.random(400) < 0.6, before, labels)
    (few_rows, few_labels, first, second), counts = count_equal((rows, labels, before, after))
    found = compare(first, second, few_labels, few_rows, counts).model_dump(exclude_defaults=True)
    expected = compare(before, after, labels, rows).model_dump(exclude_defaults=True)
    assert len(found) == 5
    assert found == pytest.approx(expected)


def test_random_signs_stand_for_all_where_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    differences = np.array([5, -3, 8, 1, -2, 9, 4, -6, 7, 3])
    exact = sign_flip_p_value(differences)
    monkeypatch.setattr("compressor.evaluation._MOST_SUMS", 0)
    assert sign_flip_p_value(differences) == pytest.approx(exact, abs=0.01)
    assert 0 < sign_flip_p_value(np.full(40, 1000)) < 0.001


def test_the_sign_flip_test_of_millions_of_pixels_takes_no_time() -> None:
    differences = np.random.default_rng(0).integers(-40_000, 60_000, 1000)
    start = time.process_time()
    assert sign_flip_p_value(differences) < 0.01
    assert time.process_time() - start < 3
