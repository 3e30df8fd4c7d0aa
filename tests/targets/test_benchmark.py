"""A benchmark measures what runs, in turn, and gives a reason for what does not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from targets.benchmark import (
    BenchmarkCase,
    BenchmarkSettings,
    CaseResult,
    Failure,
    Shape,
    _length_of,
    alternate,
    benchmark,
)
from targets.measurement import Measurement, speedup

MakeBundle = Callable[..., Path]
QUICK = BenchmarkSettings(
    sequence_length=8, batch_sizes=(1, 2), rounds=3, min_round_s=0.01, timeout_s=20
)
ONE, TWO = QUICK.shapes


def measured(result: CaseResult, shape: Shape = ONE) -> Measurement:
    found = result.at(shape)
    assert isinstance(found, Measurement)
    return found


def failed(result: CaseResult, shape: Shape = ONE) -> Failure:
    found = result.at(shape)
    assert isinstance(found, Failure)
    return found


def test_every_case_is_measured_on_every_shape(make_bundle: MakeBundle) -> None:
    cases = {
        "slow": BenchmarkCase(make_bundle("slow", delay_ms=4)),
        "fast": BenchmarkCase(make_bundle("fast", delay_ms=2)),
    }
    results = benchmark(cases, QUICK)
    assert list(results) == ["slow", "fast"]
    for result in results.values():
        assert result.failures == ()
        assert [(each.batch_size, each.sequence_length) for each in result.measurements] == [
            (1, 8),
            (2, 8),
        ]
        each = result.measurements[0]
        assert len(each.rounds) == 3
        assert all(len(one.run_ns) >= 2 for one in each.rounds)
        assert each.load_time_ms > 0
        assert each.size_bytes > 0
        assert each.peak_memory_bytes > 1e6
    slow, fast = measured(results["slow"]), measured(results["fast"])
    assert slow.min_ms >= 4  # a sleep is never shorter
    assert fast.min_ms >= 2
    assert speedup(slow, fast).ratio > 1


def test_rounds_alternate_and_the_order_turns(make_bundle: MakeBundle) -> None:
    seen: list[tuple[int, int, str]] = []
    settings = QUICK.model_copy(update={"batch_sizes": (1,)})
    cases = {name: BenchmarkCase(make_bundle(name)) for name in "AB"}
    benchmark(cases, settings, lambda *step: seen.append(step))
    order = [message.split()[1] for _, _, message in seen if message.startswith("measuring")]
    assert [order[:2], order[2:4], order[4:]] == [["A", "B"], ["B", "A"], ["B", "A"]]
    assert [done for done, _, _ in seen] == list(range(len(seen)))
    assert {total for _, total, _ in seen} == {len(seen)}


def test_failure_to_load_is_a_row_and_the_others_go_on(make_bundle: MakeBundle) -> None:
    results = benchmark(
        {
            "bad": BenchmarkCase(make_bundle("bad", fault="load")),
            "good": BenchmarkCase(make_bundle("good")),
        },
        QUICK,
    )
    assert failed(results["bad"]).error.what == "the runtime refused it"
    assert failed(results["bad"]).shape is None
    assert measured(results["good"])


def test_crash_in_the_rounds_is_a_row_and_the_others_go_on(make_bundle: MakeBundle) -> None:
    # The warm-up ends before 45 runs of 20 ms, and 30 rounds make more of them.
    settings = QUICK.model_copy(update={"batch_sizes": (1,), "rounds": 30})
    results = benchmark(
        {
            "bad": BenchmarkCase(make_bundle("bad", delay_ms=20, fault="crash@45")),
            "good": BenchmarkCase(make_bundle("good")),
        },
        settings,
    )
    assert results["bad"].measurements == ()
    (failure,) = results["bad"].failures
    assert (failure.error.where, failure.shape) == ("command round", ONE)
    assert "SIGSEGV" in failure.error.what
    assert len(measured(results["good"]).rounds) == 30


def test_shape_that_fails_leaves_the_other_shapes(make_bundle: MakeBundle) -> None:
    results = benchmark({"static": BenchmarkCase(make_bundle("static", fault="big"))}, QUICK)
    assert measured(results["static"], ONE)
    failure = failed(results["static"], TWO)
    assert (failure.error.what, failure.shape) == ("static shape", TWO)


def test_folder_that_is_no_bundle_is_a_row(tmp_path: Path) -> None:
    results = benchmark({"none": BenchmarkCase(tmp_path)}, QUICK)
    assert failed(results["none"]).error.type == "BundleError"


def test_shape_that_was_not_asked_for_has_no_result(make_bundle: MakeBundle) -> None:
    results = benchmark({"case": BenchmarkCase(make_bundle())}, QUICK)
    assert results["case"].at(Shape(64, 64)) is None


def test_result_survives_json(make_bundle: MakeBundle) -> None:
    result = benchmark({"case": BenchmarkCase(make_bundle(fault="big"))}, QUICK)["case"]
    assert CaseResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threads", 0),
        ("batch_sizes", ()),
        ("batch_sizes", (0,)),
        ("batch_sizes", (1, 1)),
        ("rounds", 0),
        ("min_round_s", 0),
        ("unknown", 1),
    ],
)
def test_settings_refuse(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        BenchmarkSettings.model_validate({field: value})


def test_settings_survive_a_round_trip() -> None:
    assert BenchmarkSettings.model_validate(QUICK.model_dump(mode="json")) == QUICK


def test_order_gives_every_lane_every_place_and_both_directions() -> None:
    orders = [alternate(list("ABC"), index) for index in range(6)]
    assert ["".join(order) for order in orders] == ["ABC", "CBA", "BCA", "ACB", "CAB", "BAC"]  # type: ignore[arg-type]


@pytest.mark.parametrize("lanes", ["AB", "ABCD"])
def test_each_of_an_even_number_of_lanes_is_as_often_before_as_behind_another(lanes: str) -> None:
    orders = [alternate(list(lanes), index) for index in range(2 * len(lanes))]
    for one, other in itertools.permutations(lanes, 2):
        assert sum(each.index(one) < each.index(other) for each in orders) == len(lanes)
    assert {each[0] for each in orders} == set(lanes)


@pytest.mark.parametrize(
    ("run_ms", "num_runs", "settle_runs"), [(1, 100, 2), (40, 3, 1), (1000, 2, 1), (0.001, 500, 2)]
)
def test_number_of_runs_fills_a_round(run_ms: float, num_runs: int, settle_runs: int) -> None:
    length = _length_of([round(run_ms * 1e6)] * 10, 0.1)
    assert (length.num_runs, length.settle_runs) == (num_runs, settle_runs)
