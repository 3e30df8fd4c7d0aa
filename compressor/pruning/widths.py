"""How many heads and neurons a ratio leaves, rounded to what the targets run best."""

from __future__ import annotations

import math

__all__ = [
    "head_multiple",
    "kept_heads",
    "kept_units",
    "kept_width",
    "largest_head_ratio",
    "step_ratio",
]


def _round(value: float) -> int:
    """Round to the nearest integer, halves up; a ratio's binary error does not tip a half."""
    return math.floor(value + 0.5 + 1e-9)


def head_multiple(num_heads: int, head_size: int, multiple: int) -> int:
    """Heads are kept in multiples of this, so that their joint width is a multiple of ``multiple``.

    It is 1 where the layer has fewer heads than that would take.
    """
    step = multiple // math.gcd(head_size, multiple)
    return step if step <= num_heads else 1


def kept_heads(num_heads: int, ratio: float, *, step: int = 1) -> int:
    """Heads that are left after removing the share ``ratio``, in multiples of ``step``.

    The result may be 0: the caller refuses it.
    """
    if ratio <= 0:
        return num_heads
    return min(num_heads // step, _round(num_heads * (1 - ratio) / step)) * step


def kept_units(count: int, ratio: float) -> int:
    """Units that are left after removing the share ``ratio``; it may be 0."""
    return _round(count * (1 - ratio))


def largest_head_ratio(num_heads: int, *, step: int = 1) -> float:
    """The largest ratio that leaves ``step`` heads, cut to three digits."""
    return math.floor((1 - step / num_heads) * 1000) / 1000


def kept_width(width: int, ratio: float, *, multiple: int) -> int:
    """Width that is left after removing the share ``ratio``, never 0.

    It is a multiple of ``multiple``, unless nothing is removed or the layer is narrower than that.
    """
    if ratio <= 0:
        return width
    unit = multiple if width >= multiple else 1
    return max(1, min(width // unit, _round(width * (1 - ratio) / unit))) * unit


def step_ratio(ratio: float, step: int, num_steps: int) -> float:
    """Share that is gone after step ``step`` (from 1) of ``num_steps``.

    Each step takes the same share of what is left, so the last steps, which hurt most, take least.
    The last step is exactly ``ratio``.
    """
    return ratio if step == num_steps else 1 - (1 - ratio) ** (step / num_steps)
