"""Chart axes: from values to positions, and where the ticks go. Pure functions of numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Axis", "linear_axis", "linear_ticks", "log_axis", "log_ticks", "percent_labels"]

# Digits that divide a decade into steps of about equal length, coarse to fine.
MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), (1, 2, 3, 4, 5, 6, 7, 8, 9))
NICE_STEPS = (1, 2, 2.5, 5, 10)


MAX_DECIMALS = 6


@dataclass(frozen=True)
class Axis:
    """A range of values laid on a range of positions.

    Attributes:
        low: Value at ``start``; above zero where ``log``.
        high: Value at ``end``.
        start: Position of the lowest value, in pixels.
        end: Position of the highest value, in pixels; less than ``start`` for an axis that rises.
        log: Whether equal ratios, rather than equal differences, take equal room.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Position of a value, in pixels."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, num: int) -> tuple[float, ...]:
        """Round values inside the range, with room for about ``num`` of them."""
        return (log_ticks if self.log else linear_ticks)(self.low, self.high, num)


def linear_axis(
    values: Iterable[float], start: float, end: float, *, from_zero: bool = False
) -> Axis:
    """An axis around the values, with room at both ends, or upwards from zero."""
    found = list(values)
    low, high = (0.0 if from_zero else min(found)), max(found)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(
        low if from_zero else low - room, high if from_zero and high else high + room, start, end
    )


def percent_labels(ticks: Sequence[float]) -> list[str]:
    """Shares as percentages, with the fewest decimals at which each is exact."""
    decimals = next(
        (
            count
            for count in range(MAX_DECIMALS)
            if all(math.isclose(round(100 * t, count), 100 * t, abs_tol=1e-9) for t in ticks)
        ),
        MAX_DECIMALS,
    )
    return [f"{tick:.{decimals}%}" for tick in ticks]


def log_axis(values: Iterable[float], start: float, end: float) -> Axis:
    """A logarithmic axis around positive values, with room at both ends."""
    found = list(values)
    room = max((max(found) / min(found)) ** 0.06, 1.04)
    return Axis(min(found) / room, max(found) * room, start, end, log=True)


def linear_ticks(low: float, high: float, num: int) -> tuple[float, ...]:
    """Multiples of the smallest round step that gives at most ``num`` + 1 of them."""
    rough = (high - low) / num
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in NICE_STEPS if nice * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def log_ticks(low: float, high: float, num: int) -> tuple[float, ...]:
    """Round values such as 1, 2, 5, 10, 20: the finest with room for ``num`` of them side by side.

    Linear ones in a range of less than a decade that holds too few of these.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    best: tuple[float, ...] = ()
    for digits in MANTISSAS:
        ticks = tuple(
            value
            for power in decades
            for digit in digits
            if low <= (value := round(digit * 10.0**power, 12)) <= high
        )
        nearest = min((b / a for a, b in itertools.pairwise(ticks)), default=math.inf)
        # They lie unevenly, so a few may come a little nearer than an even share.
        if not best or math.log(nearest) >= 0.8 * math.log(high / low) / num:
            best = ticks
    is_enough = len(best) >= 3 or high / low >= 10
    return best if is_enough else linear_ticks(low, high, num)
