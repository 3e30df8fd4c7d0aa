"""Words that messages share."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["listed", "plural"]

_NUM_NAMED = 5


def listed(names: Sequence[str]) -> str:
    """Such as ``'a', 'b'``; the first of many, and how many more there are."""
    rest = len(names) - _NUM_NAMED
    return ", ".join(map(repr, names[:_NUM_NAMED])) + (f" and {rest} more" if rest > 0 else "")


def plural(count: int, noun: str) -> str:
    """Such as ``1 thread`` or ``3 threads``."""
    return f"{count} {noun}{'s' if count != 1 else ''}"
