"""How trials share a cluster, and what counts of their accuracy."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.gate.budget import Budget
from compressor.search.objective import least_drop_allowed
from compressor.search.workers import share_of_nodes


@pytest.mark.parametrize(
    ("nodes", "size", "share"),
    [
        ([16], 3, 5),
        ([8, 8], 2, 8),
        ([8, 8], 3, 4),  # of 5 each, one would fit on a node
        ([8, 2], 3, 2),  # with 3, the small node would take none
        ([4, 4], 9, 1),
        ([], 2, 1),
    ],
)
def test_as_many_trials_run_as_there_are_workers(nodes: list[int], size: int, share: int) -> None:
    assert share_of_nodes(nodes, size) == share
    if sum(nodes) >= size:
        assert sum(each // share for each in nodes) >= size


@pytest.mark.parametrize(
    ("budget", "points"),
    [
        ({"min_speedup": 2}, None),
        ({"max_accuracy_drop": 1.5}, 1.5),
        ({"max_relative_drop": 2}, 1.6),  # of 80%
        ({"max_accuracy_drop": 1.5, "max_relative_drop": 1}, 0.8),
        ({"targets": {"openvino": {"max_accuracy_drop": 0.5}}, "max_accuracy_drop": 1}, 0.5),
    ],
)
def test_what_may_be_lost_is_the_least_of_all_limits(
    budget: dict[str, Any], points: float | None
) -> None:
    found = least_drop_allowed(Budget.model_validate(budget), 0.8)
    assert found == (None if points is None else pytest.approx(points))
