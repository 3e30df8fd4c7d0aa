"""The Pareto front: the points that no other beats on both latency and accuracy."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["pareto_front"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points that no other point dominates.

    A point dominates another when it is no slower and no less accurate, and better in one of the
    two. Equal points do not dominate each other.

    Args:
        points: (latency, accuracy) pairs: the first to be small, the second to be large.

    Returns:
        Indices of the front, by rising latency and, with it, rising accuracy.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    front: list[int] = []
    for index in order:
        if (
            not front
            or points[index][1] > points[front[-1]][1]
            or points[index] == points[front[-1]]
        ):
            front.append(index)
    return front
