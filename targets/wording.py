"""Words that messages share."""

from __future__ import annotations

__all__ = ["plural"]


def plural(count: int, noun: str) -> str:
    """Such as ``1 thread`` or ``3 threads``."""
    return f"{count} {noun}{'s' if count != 1 else ''}"
