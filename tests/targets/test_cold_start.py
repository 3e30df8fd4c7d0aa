"""A cold start is timed from nothing to the first answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from targets.cold_start import ColdStart, cold_starts
from targets.errors import TargetError

MakeBundle = Callable[..., Path]


def test_every_start_is_a_process_of_its_own_that_answers_once(make_bundle: MakeBundle) -> None:
    # A session that dies at its second run answers every start, or it would not be a new one.
    folder = make_bundle("bundle", delay_ms=30, fault="crash@1")
    seen: list[tuple[int, int]] = []
    found = cold_starts(
        folder, num_starts=3, sequence_length=4, on_progress=lambda *step: seen.append(step)
    )
    assert seen == [(0, 3), (1, 3), (2, 3)]
    assert len(found.starts) == 3
    for start in found.starts:
        assert start.first_run_ms >= 30
        assert start.process_ms > 1  # an interpreter does not start in less
        assert start.total_ms == pytest.approx(
            start.process_ms + start.load_ms + start.first_run_ms
        )
    assert found.interval.low <= found.median_ms <= found.interval.high
    assert ColdStart.model_validate_json(found.model_dump_json()) == found


def test_the_files_are_left_as_they_were(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert cold_starts(folder, num_starts=1, sequence_length=4).evicted
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_bundle_that_does_not_load_says_why(make_bundle: MakeBundle) -> None:
    with pytest.raises(TargetError, match="the runtime refused it"):
        cold_starts(make_bundle(fault="load"), num_starts=1, sequence_length=4)
