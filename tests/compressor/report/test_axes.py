from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.report.axes import (
    Axis,
    linear_axis,
    linear_ticks,
    log_axis,
    log_ticks,
    percent_labels,
)


@pytest.mark.parametrize("log", [False, True])
def test_ends_lie_on_the_ends(log):
    axis = Axis(2, 50, 10, 210, log=log)
    assert axis.at(2) == pytest.approx(10)
    assert axis.at(50) == pytest.approx(210)


def test_equal_ratios_take_equal_room_on_a_log_axis():
    axis = Axis(1, 100, 0, 200, log=True)
    assert axis.at(10) == pytest.approx(100)


@pytest.mark.parametrize(
    ("low", "high", "num", "first"),
    [(0.930, 0.943, 6, "93.00%"), (0.9990, 0.9996, 4, "99.90%"), (0.80, 0.92, 6, "80%"),
     (0.985, 0.9865, 4, "98.50%"), (0.5, 0.53, 6, "50.0%")],
)  # fmt: skip
def test_shares_are_written_exactly_and_no_longer_than_they_have_to_be(low, high, num, first):
    ticks = linear_ticks(low, high, num)
    labels = percent_labels(ticks)
    assert labels[0] == first
    for tick, label in zip(ticks, labels, strict=True):
        assert float(label[:-1]) == pytest.approx(100 * tick, abs=1e-9)


@pytest.mark.parametrize("make", [linear_axis, log_axis])
def test_a_single_value_still_makes_an_axis(make):
    axis = make([3.0], 0, 100)
    assert 0 < axis.at(3.0) < 100


def test_an_axis_from_zero_copes_with_nothing_but_zeros():
    assert linear_axis([0.0], 0, 100, from_zero=True).high > 0


def test_round_linear_ticks():
    assert linear_ticks(0.888, 0.957, 4) == (0.9, 0.92, 0.94)
    assert linear_ticks(0, 92.4, 5) == (0, 20, 40, 60, 80)


def test_round_log_ticks():
    assert log_ticks(0.46, 23, 6) == (0.5, 1, 2, 5, 10, 20)
    assert log_ticks(0.5, 60, 4) == (1, 3, 10, 30)


@given(st.floats(1e-3, 1e4), st.floats(1.02, 1e4), st.integers(2, 12))
def test_ticks_rise_inside_the_range_and_are_never_absent(low, ratio, num):
    high = low * ratio
    for ticks in (linear_ticks(low, high, num), log_ticks(low, high, num)):
        assert all(low * (1 - 1e-6) <= tick <= high * (1 + 1e-6) for tick in ticks)
        assert list(ticks) == sorted(set(ticks))
        assert 1 <= len(ticks) <= 3 * num + 2


@given(st.floats(1e-3, 1e4), st.floats(10, 1e4), st.integers(5, 12))
def test_log_ticks_leave_room_for_their_labels(low, ratio, num):
    axis = Axis(low, low * ratio, 0, 1, log=True)
    places = [axis.at(tick) for tick in axis.ticks(num)]
    assert all(b - a >= 0.79 / num for a, b in itertools.pairwise(places))
