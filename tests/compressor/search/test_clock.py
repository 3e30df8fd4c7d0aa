"""The time of a search: counted once, also over interruptions, and predicted from trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compressor.search.clock import Clock, Pace, fitting_epochs
from compressor.store import StepRecord, StoredStep


def step(key: str, duration_s: float, *, cached: bool = True, **metrics: float) -> StoredStep:
    facts: dict[str, Any] = {"metrics": metrics}
    record = StepRecord(
        key=key,
        kind="pass:distill",
        inputs={},
        created="",
        duration_s=duration_s,
        facts=facts,
        files={},
    )
    return StoredStep(record, Path(key), cached)


@pytest.mark.parametrize(
    ("left", "more_than", "epochs"),
    [(100, 4, 24), (23.9, 4, 18), (12, 4, 12), (5, 4, 0), (6, 4, 6), (3, 0, 3), (2, 0, 0)],
)
def test_as_many_epochs_as_there_is_time_for(left: float, more_than: int, epochs: int) -> None:
    found = fitting_epochs(24, lambda count: count <= left, more_than=more_than)
    assert found == epochs


def test_what_is_used_twice_takes_its_time_once() -> None:
    clock = Clock(1e6)
    first, second = step("a", 1000.0), step("b", 500.0)
    assert clock.count([first]) == [first]
    assert clock.count([first, second]) == [second]
    assert clock.count([first, second]) == []
    assert clock.spent_s == pytest.approx(1500.0, abs=5.0)


def test_what_is_made_now_takes_its_time_by_the_clock_and_its_earlier_part_besides() -> None:
    clock = Clock(1e6)
    clock.count([step("a", 1000.0, cached=False)])
    assert clock.spent_s == pytest.approx(0.0, abs=5.0)
    clock.count([step("b", 1000.0, cached=False)], taken_s=300.0)  # it went on after 700
    assert clock.spent_s == pytest.approx(700.0, abs=5.0)


def test_a_training_takes_its_epochs_and_the_rest_of_its_chain() -> None:
    chain = [step("prune", 20.0), step("distill", 500.0, epoch_s=40.0, prepare_s=100.0)]
    pace = Pace.of(chain, epochs=9)
    assert pace == Pace(epoch_s=40.0, rest_s=60.0, label_s=100.0)
    assert Pace.of([step("distill", 30.0)], epochs=3) == Pace(epoch_s=10.0)
    clock = Clock(1000.0)
    assert clock.expected_s(24, labels=True) == 0  # nothing is known yet
    clock.trained(pace)
    assert clock.expected_s(4, labels=False) == 4 * 40 + 60
    assert clock.expected_s(4, labels=True) == 4 * 40 + 60 + 100
    # Later ones find the labels: only the first tells what those take, and the least is the rest.
    clock.trained(Pace(epoch_s=30.0, rest_s=80.0, label_s=1.0))
    assert clock.pace == Pace(epoch_s=30.0, rest_s=60.0, label_s=100.0)
