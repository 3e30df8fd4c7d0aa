from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.pruning.widths import (
    head_multiple,
    kept_heads,
    kept_width,
    largest_head_ratio,
    step_ratio,
)

RATIOS = st.floats(0.001, 0.999)


@pytest.mark.parametrize(
    ("num_heads", "ratio", "kept"),
    [
        (12, 0.5, 6),
        (12, 0.0, 12),
        (12, 0.3, 8),
        (12, 0.7, 4),
        (4, 0.875, 1),
        (4, 0.9, 0),
        (1, 0.9, 0),
    ],
)
def test_heads_are_rounded_to_the_nearest_number(num_heads: int, ratio: float, kept: int) -> None:
    assert kept_heads(num_heads, ratio) == kept


@pytest.mark.parametrize(
    ("num_heads", "head_size", "multiple", "step"),
    [(12, 32, 8, 1), (12, 64, 64, 1), (12, 12, 8, 2), (12, 4, 16, 4), (2, 4, 16, 1)],
)
def test_heads_keep_their_joint_width_a_multiple(
    num_heads: int, head_size: int, multiple: int, step: int
) -> None:
    assert head_multiple(num_heads, head_size, multiple) == step


def test_heads_of_odd_size_are_kept_in_pairs() -> None:
    assert [kept_heads(12, ratio, step=2) for ratio in (0.0, 0.25, 0.4, 0.8)] == [12, 10, 8, 2]


@given(st.integers(1, 64), RATIOS, st.sampled_from([1, 2, 4]))
def test_heads_are_multiples_within_bounds(num_heads: int, ratio: float, step: int) -> None:
    kept = kept_heads(num_heads, ratio, step=step)
    assert 0 <= kept <= num_heads
    assert kept % step == 0


@given(st.integers(1, 64))
def test_the_largest_ratio_leaves_one_head(num_heads: int) -> None:
    ratio = largest_head_ratio(num_heads)
    assert kept_heads(num_heads, ratio) == 1 if num_heads > 1 else ratio == 0


@given(st.integers(1, 4096), RATIOS, st.sampled_from([1, 8, 16, 64]))
def test_widths_are_multiples_within_bounds(width: int, ratio: float, multiple: int) -> None:
    kept = kept_width(width, ratio, multiple=multiple)
    unit = multiple if width >= multiple else 1
    assert 1 <= kept <= width
    assert kept % unit == 0
    assert abs(kept - width * (1 - ratio)) <= unit


def test_a_ratio_of_zero_leaves_an_odd_width_alone() -> None:
    assert kept_width(1001, 0.0, multiple=8) == 1001


@given(RATIOS, st.integers(1, 10))
def test_steps_take_the_same_share_of_what_is_left_and_end_at_the_ratio(
    ratio: float, num_steps: int
) -> None:
    left = [1.0, *(1 - step_ratio(ratio, step, num_steps) for step in range(1, num_steps + 1))]
    shares = [after / before for before, after in itertools.pairwise(left)]
    assert shares == pytest.approx([shares[0]] * num_steps, rel=1e-6)
    assert step_ratio(ratio, num_steps, num_steps) == ratio
