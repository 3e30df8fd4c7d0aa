"""Tuning takes what is faster for certain and answers the same, and keeps the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import targets
from targets import Bundle, registry
from targets.benchmark import BenchmarkSettings
from targets.bundle import Tuning, merge_options
from targets.errors import BundleError, InputError, TargetError
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import TextPreprocessing
from targets.tuning import _is_faster, _together, describe, offered, tune, write_tuned

MakeBundle = Callable[..., Path]
QUICK = BenchmarkSettings(
    threads=1, sequence_length=8, batch_sizes=(1, 2), rounds=9, min_round_s=0.02, timeout_s=60
)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "pack.safetensors"
    EvaluationPack.from_rows(
        {"input_ids": [[2, 5, 3], [2, 6, 7, 3]]},
        np.array([0, 0]),
        preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
    ).save(path)
    return path


def chosen(options: dict[str, Any]) -> Tuning:
    """A tuning that took these options, without its trials."""
    return Tuning(
        machine="m", libraries={}, threads=1, batch_size=1, sequence_length=8, trials=(),
        options=options, max_threads=None,
    )  # fmt: skip


def trials(tuning: Tuning) -> dict[str, Any]:
    return {trial.name: trial for trial in tuning.trials}


def test_the_fastest_that_answers_the_same_is_chosen_and_measured_again(
    make_bundle: MakeBundle, pack: Path
) -> None:
    seen: list[float] = []
    bundle = Bundle.open(make_bundle(delay_ms=8))
    tuning = tune(
        bundle,
        QUICK,
        pack=pack,
        even_if_noisy=True,
        on_progress=lambda done, line: seen.append(done),
    )
    assert tuning.options == {"fake": {"delay_ms": 2}}
    assert tuning.max_threads is None
    found = trials(tuning)
    assert list(found) == ["default", "fast", "slow", "wrong", "broken", "confirmed"]
    assert found["default"].gain.ratio == 1
    assert found["fast"].gain.low > 1
    assert found["slow"].gain.ratio < 1 < found["fast"].gain.ratio < found["wrong"].gain.ratio
    assert found["wrong"].rejected == "changes 2 of 2 labels"
    assert "SIGSEGV" in found["broken"].rejected
    assert found["broken"].median_ms is None
    assert found["confirmed"].options == tuning.options
    assert found["confirmed"].gain.low > 1
    assert (tuning.threads, tuning.batch_size, tuning.sequence_length) == (1, 1, 8)
    assert max(seen) <= 1
    assert "delay_ms" in describe(tuning)
    assert Tuning.model_validate_json(tuning.model_dump_json()) == tuning


def test_times_of_a_noisy_machine_are_not_believed(
    make_bundle: MakeBundle, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("targets.measurement.MAX_CONTENTION", -math.inf)
    tuning = tune(Bundle.open(make_bundle(delay_ms=8)), QUICK, pack=pack)
    assert tuning.options == {}
    assert describe(tuning) == "tuned: no option is changed, the machine was noisy"
    assert trials(tuning)["fast"].rejected.startswith("the machine was noisy: ")


def test_without_test_data_nothing_that_may_change_the_outputs_is_tried(
    make_bundle: MakeBundle,
) -> None:
    bundle = Bundle.open(make_bundle())
    one = BenchmarkSettings(threads=1)
    assert list(offered(bundle, one, has_pack=False)) == ["fast", "slow", "broken"]
    assert list(offered(bundle, one, has_pack=True)) == ["fast", "slow", "wrong", "broken"]


def test_where_nothing_is_faster_the_bundle_stays_what_it_was(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = Bundle.open(make_bundle())
    assert "alternatives is certainly faster" in describe(chosen({}))
    assert write_tuned(bundle, chosen({}), tmp_path / "tuned").identity == bundle.identity


def test_fewer_threads_are_tried_and_kept_as_a_limit(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle()
    bundle = Bundle.open(folder)
    found = offered(bundle, BenchmarkSettings(threads=4), has_pack=True)
    assert found["2 threads"].threads == 2
    assert found["1 thread"].threads == 1
    limited = Bundle(folder, bundle.manifest.model_copy(update={"max_threads": 2}))
    asked: list[int] = []

    class Recorder:
        def load(self, bundle: Bundle, *, threads: int) -> None:
            asked.append(threads)

    monkeypatch.setattr(registry, "get", lambda name, **settings: Recorder())
    for threads in (1, 2, 8):
        registry.open_session(limited, threads=threads)
    registry.open_session(bundle, threads=8)
    assert asked == [1, 2, 2, 8]


def test_a_tuned_bundle_has_the_options_and_the_evidence(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = Bundle.open(make_bundle(delay_ms=8))
    tuning = chosen({"fake": {"delay_ms": 2.0}})
    written = write_tuned(bundle, tuning, tmp_path / "tuned")
    again = Bundle.open(tmp_path / "tuned")
    assert again.manifest.tuning == tuning
    assert again.manifest.options["fake"] == tuning.options["fake"]
    assert set(again.manifest.files) == set(bundle.manifest.files)
    assert again.identity == written.identity != bundle.identity
    other_times = tuning.model_copy(update={"machine": "another"})
    twin = write_tuned(bundle, other_times, tmp_path / "twin")
    assert twin.identity == written.identity  # the times are no part of what it is
    with targets.load(tmp_path / "tuned") as predictor:
        assert predictor.predict(["w1"])[0].label == "negative"


def test_the_tuned_bundle_of_a_read_only_one_may_be_written(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = Bundle.open(make_bundle())
    (bundle.folder / "notes.txt.swp").touch()  # belongs to no bundle
    try:
        bundle.folder.chmod(0o555)
        written = write_tuned(bundle, chosen({}), tmp_path / "tuned")
    finally:
        bundle.folder.chmod(0o755)
    assert written.folder.stat().st_mode & 0o200
    assert set(written.manifest.files) == set(bundle.manifest.files)


def test_a_folder_that_holds_something_is_not_written_to(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = Bundle.open(make_bundle())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(BundleError, match="is not empty"):
        write_tuned(bundle, chosen({}), tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_bundle_that_does_not_run_says_why(make_bundle: MakeBundle) -> None:
    with pytest.raises(TargetError, match="the runtime refused it"):
        tune(Bundle.open(make_bundle(fault="load")), QUICK)


def test_a_length_that_the_model_does_not_take_is_refused(make_bundle: MakeBundle) -> None:
    settings = QUICK.model_copy(update={"sequence_length": 17})
    with pytest.raises(InputError, match="takes no text of this length"):
        tune(Bundle.open(make_bundle()), settings)


def test_options_are_merged_level_by_level() -> None:
    before = {"a": 1, "session": {"x": "1", "y": "1"}}
    changes = {"session": {"y": "2"}, "b": 3}
    assert merge_options(before, changes) == {"a": 1, "session": {"x": "1", "y": "2"}, "b": 3}
    assert before == {"a": 1, "session": {"x": "1", "y": "1"}}
    assert merge_options({"a": {"x": 1}}, {"a": 2}) == {"a": 2}


def test_of_two_winners_that_set_one_option_the_faster_stays() -> None:
    from targets.base import Alternative
    from targets.bundle import Trial
    from targets.measurement import Speedup

    offered = {
        "one": Alternative({"x": 1, "y": 1}),
        "two": Alternative({"x": 2}),
        "thread": Alternative(threads=1),
    }

    def trial(name: str, ratio: float) -> Trial:
        gain = Speedup(ratio=ratio, low=ratio, high=ratio, num_rounds=9)
        options = dict(offered[name].options)
        return Trial(name=name, options=options, threads=None, median_ms=1, gain=gain)

    few = trial("one", 1.5).model_copy(
        update={"gain": Speedup(ratio=1.5, low=1.5, high=1.5, num_rounds=5)}
    )
    assert not _is_faster(few)  # so few rounds prove nothing
    assert _is_faster(trial("one", 1.5))
    both = _together([trial("one", 1.5), trial("two", 1.2), trial("thread", 1.1)], offered)
    assert both.options == {"x": 1, "y": 1}
    assert both.threads == 1
