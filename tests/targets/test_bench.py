"""One bench measures every combination it is asked for, and its report survives JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from targets import Bundle
from targets.bench import BenchReport, Sweep, bench
from targets.benchmark import BenchmarkSettings, Failure, Shape
from targets.errors import BundleError, TargetError
from targets.measurement import Measurement

MakeBundle = Callable[..., Path]
QUICK = BenchmarkSettings(sequence_length=4, rounds=2, min_round_s=0.001, pause_s=0)


def test_shapes_are_every_combination() -> None:
    sweep = Sweep(batch_sizes=(1, 2), sequence_lengths=(8, 16), real_texts=True)
    assert [str(shape) for shape in sweep.shapes] == [
        "1 x 8",
        "2 x 8",
        "1 x 16",
        "2 x 16",
        "1 x real",
        "1 x raw text",
        "2 x real",
        "2 x raw text",
    ]
    assert Sweep(real_texts=False, batch_sizes=(3,)).shapes == (Shape(3, 128),)


def test_every_combination_is_measured_with_its_own_threads(make_bundle: MakeBundle) -> None:
    bundles = {name: Bundle.open(make_bundle(name, delay_ms=1)) for name in ("one", "two")}
    sweep = Sweep(threads=(1, 2), batch_sizes=(1, 2), sequence_lengths=(4,), real_texts=True)
    report = bench(bundles, sweep, QUICK, texts=["w1", "w2 w3", "w4 w5 w6"])
    assert report.complete
    assert [(each.bundle, each.threads) for each in report.entries] == [
        ("one", 1),
        ("one", 2),
        ("two", 1),
        ("two", 2),
    ]
    for entry in report.entries:
        assert entry.identity == bundles[entry.bundle].identity
        for shape in sweep.shapes:
            found = entry.result.at(shape)
            assert isinstance(found, Measurement)
            assert (found.batch_size, found.sequence_length, found.tokenization) == shape
            assert found.threads == entry.threads
            if shape.sequence_length is None:
                assert len(found.rounds[0].run_ns) % 32 == 0  # each request equally often
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


def test_what_is_measured_alone_stands_beside_the_latencies(make_bundle: MakeBundle) -> None:
    sweep = Sweep(batch_sizes=(2,), sequence_lengths=(4,), num_cold_starts=2, sustained_s=0.1)
    [entry] = bench({"one": Bundle.open(make_bundle())}, sweep, QUICK).entries
    assert entry.cold_start is not None
    assert len(entry.cold_start.starts) == 2
    assert entry.sustained is not None
    assert (entry.sustained.batch_size, entry.sustained.sequence_length) == (2, 4)


@pytest.mark.parametrize(
    ("function", "what"), [("cold_starts", "cold start"), ("sustained_run", "sustained run")]
)
def test_what_was_measured_before_a_failure_stays(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, function: str, what: str
) -> None:
    def fail(*given: object, **more: object) -> None:
        raise TargetError("the device is gone")

    monkeypatch.setattr(f"targets.bench.{function}", fail)
    sweep = Sweep(batch_sizes=(2,), sequence_lengths=(4,), num_cold_starts=1, sustained_s=0.1)
    report = bench({"one": Bundle.open(make_bundle())}, sweep, QUICK)
    [entry] = report.entries
    assert isinstance(entry.result.at(Shape(2, 4)), Measurement)
    assert (entry.cold_start is None, entry.sustained is None) == (
        what == "cold start",
        what == "sustained run",
    )
    assert list(entry.failures) == [what]
    assert "the device is gone" in str(entry.failures[what])
    assert not report.complete
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


def test_a_bundle_that_fails_leaves_the_others(make_bundle: MakeBundle) -> None:
    bundles = {
        "bad": Bundle.open(make_bundle("bad", fault="load")),
        "good": Bundle.open(make_bundle("good")),
    }
    sweep = Sweep(batch_sizes=(1,), sequence_lengths=(4,), num_cold_starts=1)
    report = bench(bundles, sweep, QUICK)
    assert not report.complete
    bad, good = report.entries
    assert isinstance(bad.result.at(Shape(1, 4)), Failure)
    assert bad.cold_start is None
    assert isinstance(good.result.at(Shape(1, 4)), Measurement)
    assert good.cold_start is not None


def test_real_texts_need_test_data_or_a_file(make_bundle: MakeBundle) -> None:
    sweep = Sweep(batch_sizes=(1,), sequence_lengths=(4,), real_texts=True)
    with pytest.raises(BundleError, match="carries no test data"):
        bench({"one": Bundle.open(make_bundle())}, sweep, QUICK)
