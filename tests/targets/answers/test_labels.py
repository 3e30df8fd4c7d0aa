"""Labels by their names."""

from __future__ import annotations

import pytest

from targets.answers.labels import by_name


def test_classes_of_one_name_share_their_probabilities() -> None:
    """ImageNet has two cranes."""
    found = by_name(("crane", "owl", "crane"), (0.9, 0.08, 0.02))
    assert found == {"crane": pytest.approx(0.92), "owl": 0.08}
