"""A long run tells throttling from noise, and says when it was too short to tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from targets.measurement import Round
from targets.sustained import Sustained, _throttle_events, sustained_run

MakeBundle = Callable[..., Path]


def sustained(run_ms: Sequence[float], **changes: object) -> Sustained:
    """One slice for each time, of ten runs that take that long."""
    busy = float(changes.pop("others_cpus", 0.0))  # type: ignore[arg-type]
    steal = float(changes.pop("steal", 0.0))  # type: ignore[arg-type]
    slices = tuple(
        Round(
            run_ns=(round(each * 1e6),) * 10,
            cpu_ns=round(each * 1e7),
            others_cpus=busy,
            steal=steal,
        )
        for each in run_ms
    )
    given = {
        "slices": slices,
        "clock_mhz": (None,) * len(slices),
        "throttle_events": None,
        "threads": 2,
        "num_cpus": 4,
        "batch_size": 4,
        "sequence_length": 8,
    }
    return Sustained.model_validate(given | changes)


STEADY = [10.0, 10.2, 10.1] * 8
FALLING = [10.0, 10.1] * 6 + [11.0, 12.0] * 3 + [13.0, 13.1] * 6


def test_a_steady_run() -> None:
    found = sustained(STEADY)
    assert found.verdict == "steady"
    assert found.slowdown == pytest.approx(1)
    assert found.duration_s == pytest.approx(sum(STEADY) * 10 / 1e3)
    assert found.throughput == pytest.approx(len(STEADY) * 10 * 4 / found.duration_s)


def test_a_run_that_slows_down_for_good_is_throttled() -> None:
    found = sustained(FALLING)
    assert found.verdict == "throttled"
    assert found.slowdown == pytest.approx(1.3, abs=0.01)
    assert found.last_ms.low > found.first_ms.high


def test_speeding_up_is_no_throttling() -> None:
    assert sustained(FALLING[::-1]).verdict == "steady"


def test_a_change_below_five_percent_or_within_the_spread_is_none() -> None:
    assert sustained([10.0] * 9 + [10.3] * 9).verdict == "steady"
    assert sustained([9.0, 12.0] * 6 + [10.0, 12.5] * 6).verdict == "steady"


@pytest.mark.parametrize("trouble", [{"others_cpus": 3.0}, {"steal": 0.2}])
def test_what_others_took_is_not_taken_for_throttling(trouble: dict[str, float]) -> None:
    assert sustained(FALLING, **trouble).verdict == "noisy"


def test_events_that_the_system_counted_are_throttling() -> None:
    assert sustained(STEADY, throttle_events=2).verdict == "throttled"
    assert sustained(STEADY, throttle_events=0).verdict == "steady"


def test_a_few_seconds_tell_nothing() -> None:
    assert sustained([10.0] * 5 + [20.0] * 5).verdict == "too short to tell"


def test_events_are_those_of_all_cpus(tmp_path: Path) -> None:
    assert _throttle_events(tmp_path) is None
    for cpu, core, package in ((0, 3, 1), (1, 2, 1)):
        folder = tmp_path / f"cpu{cpu}" / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{core}\n")
        (folder / "package_throttle_count").write_text(f"{package}\n")
    assert _throttle_events(tmp_path) == 7


def test_a_real_run_lasts_as_long_as_asked_for(make_bundle: MakeBundle) -> None:
    seen: list[float] = []
    found = sustained_run(
        make_bundle(delay_ms=5),
        duration_s=2.2,
        batch_size=2,
        sequence_length=4,
        on_progress=lambda fraction, line: seen.append(fraction),
    )
    assert found.duration_s > 1.8
    assert len(found.slices) == len(found.clock_mhz) == len(seen) >= 2
    assert seen == sorted(seen)
    assert found.throughput < 2 / 0.005
    assert found.verdict == "too short to tell"
    assert Sustained.model_validate_json(found.model_dump_json()) == found
