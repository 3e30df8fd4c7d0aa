from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compressor.report.pareto import pareto_front

POINTS = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), max_size=12)


def is_dominated(point: tuple[int, int], points: list[tuple[int, int]]) -> bool:
    return any(other[0] <= point[0] and other[1] >= point[1] and other != point for other in points)


@given(POINTS)
def test_holds_exactly_the_points_that_no_other_dominates(points):
    expected = {index for index, point in enumerate(points) if not is_dominated(point, points)}
    front = pareto_front(points)
    assert set(front) == expected
    assert len(front) == len(expected)


@given(POINTS)
def test_rises_in_latency_and_accuracy(points):
    front = [points[index] for index in pareto_front(points)]
    assert front == sorted(front)
    assert [accuracy for _, accuracy in front] == sorted(accuracy for _, accuracy in front)


def test_of_no_points_is_empty():
    assert pareto_front([]) == []
