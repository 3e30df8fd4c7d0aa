"""What a new release is compared with, what counts as worse, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compressor.errors import ComparisonError
from compressor.gate.regression import (
    DIFFERENCES,
    ReleaseComparison,
    Tolerance,
    compare_releases,
    latency_ratio,
)
from compressor.report.schema import Check, OnDevice, Perplexity, Report, Row
from targets.measurement import Measurement, Round
from targets.writing import Writing

from .conftest import answers_for

KEY = "int8-onnxruntime"


def measured(
    ms: float, *, seed: int, rounds: int = 9, spread: float = 0.02, drift: float = 1.0
) -> Measurement:
    """Rounds whose level varies by ``spread``, with runs that vary by a fifth of that."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(rounds):
        level = ms * drift * (1 + spread * generator.standard_normal())
        runs = level * (1 + spread / 5 * np.abs(generator.standard_normal(40)))
        found.append(Round(run_ns=tuple(int(run * 1e6) for run in runs), cpu_ns=1))
    return Measurement(
        rounds=tuple(found), threads=1, batch_size=1, sequence_length=128, num_cpus=2,
        load_time_ms=1, peak_memory_bytes=1, size_bytes=1,
    )  # fmt: skip


def found(compared: ReleaseComparison, target: str = "onnxruntime") -> dict[str, Check]:
    return {check.limit: check for check in compared.checks if check.subject == target}


def changed(report: Report, key: str = KEY, **changes: Any) -> Report:
    """The report with one row changed."""
    rows = tuple(row.model_copy(update=changes) if row.key == key else row for row in report.rows)
    assert any(row.key == key for row in rows)
    return report.model_copy(update={"rows": rows})


def row_of(report: Report, key: str = KEY) -> Row:
    return next(row for row in report.rows if row.key == key)


def with_rounds(row: Row, change: Callable[[Round], dict[str, Any]]) -> dict[str, Measurement]:
    """The latencies of a row, each of their rounds changed."""
    return {
        shape: Measurement(
            **each.model_dump()
            | {"rounds": tuple(Round(**one.model_dump() | change(one)) for one in each.rounds)}
        )
        for shape, each in row.latency.items()
    }


def slower(report: Report, factor: float, keys: tuple[str, ...] = (KEY,)) -> Report:
    """The report with all runs of some rows longer."""

    def stretch(one: Round) -> dict[str, Any]:
        return {"run_ns": tuple(int(run * factor) for run in one.run_ns)}

    for key in keys:
        report = changed(report, key, latency=with_rounds(row_of(report, key), stretch))
    return report


def noisy(report: Report) -> Report:
    """The report as if other work had gone on beside the bundle on ONNX Runtime."""
    return changed(report, latency=with_rounds(row_of(report), lambda one: {"others_cpus": 2.0}))


def test_two_runs_that_differ_in_the_seed_only_are_as_good(now: Report, before: Report) -> None:
    checks = found(compare_releases(now, before))
    assert set(checks) == {"accuracy", "latency", "size", "memory"}
    assert all(check.met for check in checks.values())
    assert "beside the untouched model in each run" in checks["latency"].text


def test_a_target_that_ships_nothing_any_more_is_told(now: Report, before: Report) -> None:
    [check] = found(compare_releases(now, before), "openvino").values()
    assert (check.limit, check.met) == ("shipped", False)
    assert check.text == "openvino ships nothing; the last release shipped int8"


def test_a_release_compared_with_itself_has_not_changed(now: Report) -> None:
    checks = found(compare_releases(now, now))
    assert all(check.met for check in checks.values())
    assert [checks[name].found for name in ("accuracy", "latency", "size", "memory")] == [0] * 4


@pytest.mark.parametrize(("rise", "met"), [(0.0, True), (-0.1, True), (0.15, False)])
def test_a_higher_perplexity_is_worse_however_the_best_tokens_are(
    now: Report, rise: float, met: bool
) -> None:
    perplexity = Perplexity(
        value=20, low=19, high=21, reference=20, rise=0, rise_low=-1, rise_high=1
    )
    compared = row_of(now).test_comparison
    assert compared is not None
    written = changed(now, test_comparison=compared.model_copy(update={"perplexity": perplexity}))
    losses = np.random.default_rng(0).gamma(2, 1, 1000).astype(np.float32)
    before = {**answers_for(written, {}), "rows": np.arange(1000) // 10, f"{KEY}.losses": losses}
    after = {**before, f"{KEY}.losses": losses + np.float32(np.log1p(rise))}
    compared_now = compare_releases(written, written, answers_now=after, answers_before=before)
    checks = found(compared_now)
    assert checks["accuracy"].found == 0
    assert checks["perplexity"].met == met
    assert checks["perplexity"].found == pytest.approx(rise, abs=1e-4)
    assert f"{100 * rise:+.1f}% perplexity" in checks["perplexity"].text.replace("-0.0", "+0.0")
    assert not any("perplexity" in note for note in compared_now.notes)
    del before[f"{KEY}.losses"]
    older = compare_releases(written, written, answers_now=after, answers_before=before)
    assert "perplexity" not in found(older)
    [note] = [each for each in older.notes if each.startswith("onnxruntime")]
    assert note == "onnxruntime: not compared, as it is not in both reports: perplexity"


def test_a_target_on_which_nothing_was_measured_is_told(now: Report) -> None:
    assert "tensorrt_rtx" in {row.target for row in now.rows}
    notes = [note for note in compare_releases(now, now).notes if "tensorrt_rtx" in note]
    [note] = notes
    assert note.endswith(": not compared: nothing was measured there now or for the last release")


def test_a_target_that_is_new_and_ships_nothing_is_told(now: Report) -> None:
    missed = Check(limit="min_speedup", wanted=2, found=1, met=False, text="1x, 2x wanted")
    new = changed(now, checks=(missed,))
    assert row_of(new).unmet
    rows = tuple(row for row in now.rows if row.target != "onnxruntime")
    notes = compare_releases(new, now.model_copy(update={"rows": rows})).notes
    [note] = [each for each in notes if each.startswith("onnxruntime")]
    assert note.endswith(": not compared: nothing was measured there for the last release")


@pytest.mark.parametrize(("factor", "met"), [(1.02, True), (1.25, False), (0.5, True)])
def test_a_bundle_that_is_slower_beyond_the_noise_is_worse(
    now: Report, factor: float, met: bool
) -> None:
    check = found(compare_releases(slower(now, factor), now))["latency"]
    assert check.met is met
    assert check.found == pytest.approx(factor - 1, abs=0.01)


def wrote(report: Report, token_ms: float, *, keys: tuple[str, ...] = (KEY,), seed: int) -> Report:
    """The report with what a language model wrote in some of its rows."""
    for key in keys:
        rounds = tuple(
            Round(run_ns=(20_000_000, *each.run_ns), cpu_ns=1)
            for each in measured(token_ms, seed=seed).rounds
        )
        found = Writing(threads=1, num_cpus=2, prompt_tokens=16, num_tokens=41, rounds=rounds)
        report = changed(report, key, writing=found)
    return report


def test_a_bundle_that_writes_more_slowly_beyond_the_noise_is_worse(now: Report) -> None:
    before = wrote(now, 10, seed=1)

    def compared(token_ms: float) -> Check:
        return found(compare_releases(wrote(now, token_ms, seed=2), before))["writing"]

    same, worse = compared(10), compared(11.5)
    assert same.met
    assert not worse.met
    assert worse.found == pytest.approx(0.15, abs=0.05)
    assert "tokens/s then" in worse.text
    # The untouched model wrote more slowly as well: so did the machine.
    base = next(
        each.key
        for each in now.rows
        if each.kind == "baseline" and each.target == "onnxruntime" and each.precision == "fp32"
    )
    both = wrote(wrote(now, 11.5, seed=2), 23, keys=(base,), seed=2)
    check = found(compare_releases(both, wrote(before, 20, keys=(base,), seed=1)))["writing"]
    assert check.met
    assert "beside the untouched model in each run" in check.text


def test_writing_that_one_report_does_not_have_is_not_compared(now: Report) -> None:
    notes = compare_releases(now, wrote(now, 10, seed=1)).notes
    assert any("not in both reports: writing" in note for note in notes)
    assert not any("writing" in note for note in compare_releases(now, now).notes)
    before = wrote(now, 10, seed=1)
    written = row_of(before).writing
    assert written is not None
    longer = changed(before, writing=written.model_copy(update={"prompt_tokens": 17}))
    compared = compare_releases(longer, before)
    assert "writing" not in found(compared)
    assert "onnxruntime: writing is not compared: it was of other numbers of tokens then" in (
        compared.notes
    )


def test_noise_while_texts_were_written_leaves_it_undecided(now: Report) -> None:
    before, slow = wrote(now, 10, seed=1), wrote(now, 15, seed=2)
    written = row_of(slow).writing
    assert written is not None
    rounds = tuple(each.model_copy(update={"others_cpus": 2.0}) for each in written.rounds)
    noisy_one = changed(slow, writing=written.model_copy(update={"rounds": rounds}))
    clean, disturbed = (
        found(compare_releases(each, before))["writing"] for each in (slow, noisy_one)
    )
    assert (clean.met, clean.noisy) == (False, False)
    assert (disturbed.met, disturbed.noisy) == (False, True)


def test_a_machine_that_was_slower_as_a_whole_is_no_slower_bundle(now: Report) -> None:
    everything = tuple(row.key for row in now.rows if row.latency)
    check = found(compare_releases(slower(now, 1.5, everything), now))["latency"]
    assert check.met
    assert check.found == pytest.approx(0, abs=0.01)
    # Without the untouched model to compare with, the times stand for themselves.
    other = now.model.model_copy(update={"sha256": "0"})
    new = slower(now, 1.5, everything).model_copy(update={"model": other})
    check = found(compare_releases(new, now, allow=["model"]))["latency"]
    assert not check.met
    assert check.found == pytest.approx(0.5, abs=0.01)
    assert "untouched" not in check.text


@pytest.mark.parametrize(
    ("factor", "slowed_now", "slowed_before", "noisy"),
    [
        (1.5, True, False, True),  # all of the slow-down may be that of the machine
        (1.5, False, True, False),
        (1.0, False, True, True),  # and here a slow-down may be hidden
        (1.0, True, False, False),
    ],
)
def test_without_the_untouched_model_a_slowed_machine_decides_nothing(
    now: Report, factor: float, slowed_now: bool, slowed_before: bool, noisy: bool
) -> None:
    def on(report: Report, slowed: bool) -> Report:
        work = {"reference_ns": 1_500_000 if slowed else 1_000_000}
        latency = {
            shape: each.model_copy(update={"best_reference_ns": 1_000_000})
            for shape, each in with_rounds(row_of(report), lambda one: work).items()
        }
        return changed(report, latency=latency)

    other = now.model.model_copy(update={"sha256": "0"})
    new = slower(now, factor).model_copy(update={"model": other})
    pair = on(new, slowed_now), on(now, slowed_before)
    check = found(compare_releases(*pair, allow=["model"]))["latency"]
    assert (check.met, check.noisy) == (factor == 1.0, noisy)


def test_where_threads_were_woken_slowly_the_untouched_model_does_not_settle_it(
    now: Report,
) -> None:
    def on(report: Report, wakeup_ns: int) -> Report:
        woken = with_rounds(row_of(report), lambda one: {"wakeup_ns": wakeup_ns})
        latency = {
            shape: each.model_copy(update={"best_wakeup_ns": 30_000, "threads": 2})
            for shape, each in woken.items()
        }
        return changed(report, latency=latency)

    def compared(factor: float, at_now: int, before: int) -> tuple[bool, bool]:
        pair = on(slower(now, factor), at_now), on(now, before)
        check = found(compare_releases(*pair))["latency"]
        assert "beside the untouched model" in check.text
        return check.met, check.noisy

    assert compared(1.5, 60_000, 30_000) == (False, True)  # all of it may be that of the machine
    assert compared(1.5, 30_000, 60_000) == (False, False)
    assert compared(1.0, 30_000, 60_000) == (True, True)  # and here a slow-down may be hidden
    assert compared(1.5, 30_000, 30_000) == (False, False)


def on_device(report: Report, factor: float = 1.0) -> Report:
    """The report with a board on which every row takes ten times as long as here."""
    rows = []
    for row in report.rows:
        times = 10 * factor if row.key == KEY else 10
        latency = with_rounds(
            row, lambda one, times=times: {"run_ns": [round(times * ns) for ns in one.run_ns]}
        )
        there = {"board": OnDevice(latency=latency)} if latency else {}
        rows.append(row.model_copy(update={"devices": there}))
    return report.model_copy(update={"rows": tuple(rows)})


def test_a_bundle_that_is_slower_on_a_remote_device_is_worse(now: Report) -> None:
    compared = compare_releases(on_device(now, 1.5), on_device(now))
    check = found(compared, "onnxruntime on board")["latency"]
    assert not check.met
    assert check.text.startswith("onnxruntime on board: 1.500x the time of the last release")
    assert found(compared)["latency"].met
    same = compare_releases(on_device(now), on_device(now))
    assert found(same, "onnxruntime on board")["latency"].met


@pytest.mark.parametrize("there_now", [True, False])
def test_a_device_of_one_report_is_not_compared(now: Report, there_now: bool) -> None:
    pair = (on_device(now), now) if there_now else (now, on_device(now))
    compared = compare_releases(*pair)
    text = "onnxruntime on board: not compared, as its latency is not in both reports"
    assert text in compared.notes
    assert found(compared, "onnxruntime on board") == {}


def test_the_interval_of_a_ratio_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(50):
        pairs = [measured(ms, seed=4 * seed + index) for index, ms in enumerate((1.1, 1.0))]
        ratio, low, high = latency_ratio(*pairs)
        assert low <= ratio <= high
        held += low <= 1.1 <= high
    assert held >= 42  # 95 is promised; nine rounds are few for a bootstrap


def test_a_growing_bundle_is_worse(now: Report) -> None:
    size = row_of(now).size_bytes
    assert size is not None
    checks = found(compare_releases(changed(now, size_bytes=int(size * 1.02)), now))
    assert not checks["size"].met
    assert "+2.0% against the last release" in checks["size"].text
    lenient = Tolerance(size=0.05)
    assert found(compare_releases(changed(now, size_bytes=int(size * 1.02)), now,
                                  tolerance=lenient))["size"].met  # fmt: skip


def test_answers_are_compared_example_by_example(now: Report) -> None:
    """20 rows more wrong of 1000 are certain where they are paired, and not where they are not."""
    before = answers_for(now, {KEY: 50})
    worse = compare_releases(
        now, now, answers_now=answers_for(now, {KEY: 70}), answers_before=before
    )
    check = found(worse)["accuracy"]
    assert not check.met
    assert check.text.startswith("onnxruntime: -2.0 points of accuracy against the last release")
    little = compare_releases(
        now, now, answers_now=answers_for(now, {KEY: 52}), answers_before=before
    )
    assert found(little)["accuracy"].met
    test = row_of(now).test
    assert test is not None
    lower = test.model_copy(
        update={"value": test.value - 0.02, "low": test.low - 0.02, "high": test.high - 0.02}
    )
    unpaired = found(compare_releases(changed(now, test=lower), now))["accuracy"]
    assert unpaired.met
    assert unpaired.found == pytest.approx(2)
    far = test.model_copy(
        update={"value": test.value - 0.1, "low": test.low - 0.1, "high": test.high - 0.1}
    )
    assert not found(compare_releases(changed(now, test=far), now))["accuracy"].met


def test_classes_alone_are_compared_pixel_by_pixel(now: Report) -> None:
    generator = np.random.default_rng(0)
    rows = np.repeat(np.arange(20), 50)
    labels = generator.integers(0, 3, 1000)
    worse, before = (
        np.where(generator.random(1000) < share, labels, (labels + 1) % 3) for share in (0.6, 0.9)
    )
    both = [
        compare_releases(
            now,
            now,
            answers_now={"labels": labels, "rows": rows, KEY: shape(worse)},
            answers_before={"labels": labels, "rows": rows, KEY: shape(before)},
        )
        for shape in (lambda classes: np.eye(3)[classes], lambda classes: classes.astype(np.uint8))
    ]
    of_probabilities, of_classes = (found(each)["accuracy"] for each in both)
    assert of_classes == of_probabilities
    assert not of_classes.met
    assert of_classes.found == pytest.approx(
        100 * ((before == labels).mean() - (worse == labels).mean())
    )


def test_what_is_not_compared_is_told(now: Report, before: Report) -> None:
    nowhere = changed(before, "int8-openvino", chosen=False)
    compared = compare_releases(changed(now, "int8-openvino", checks=()), nowhere)
    assert not found(compared, "openvino")
    assert "openvino: not compared: nothing was measured there for the last release" in (
        compared.notes
    )
    [check] = [each for each in row_of(now, "int8-openvino").checks if not each.met]
    never = changed(before, "int8-openvino", checks=(check,))
    compared = compare_releases(now, never)
    assert not found(compared, "openvino")
    assert "openvino: not compared: nothing ships there, and nothing did before" in compared.notes
    compared = compare_releases(changed(now, test=None), before)
    assert set(found(compared)) == {"latency", "size", "memory"}
    assert "onnxruntime: not compared, as it is not in both reports: accuracy" in compared.notes


@pytest.mark.parametrize("of_row", [False, True])
@pytest.mark.parametrize("change", ["rows", "labels", "count", "classes"])
def test_answers_to_other_parts_are_not_paired(now: Report, change: str, of_row: bool) -> None:
    answers = answers_for(now, {KEY: 50})
    rows = np.arange(len(answers["labels"]))
    before, other = {**answers, "rows": rows}, now
    key = f"{KEY}." if of_row else ""
    if change == "rows":
        before[f"{key}rows"] = rows[::-1]
    elif change == "labels":
        before[f"{key}labels"] = answers["labels"][::-1]
    elif change == "count":
        before |= {KEY: answers[KEY][:-1], f"{key}rows": rows[:-1]}
    else:
        other = now.model_copy(update={"data": {**now.data, "labels": ["b", "a"]}})
    compared = compare_releases(
        now, other, answers_now={**answers, "rows": rows}, answers_before=before
    )
    assert found(compared)["accuracy"].found == 0  # of the same intervals
    assert any("different examples, or different classes" in each for each in compared.notes)


def test_answers_without_those_of_a_row_leave_its_intervals(now: Report) -> None:
    answers = answers_for(now, {KEY: 50})
    without = {key: each for key, each in answers.items() if key != KEY}
    compared = compare_releases(now, now, answers_now=answers, answers_before=without)
    assert found(compared)["accuracy"].found == 0
    assert compared.notes[0].endswith("with answers lies beside that of the last release")
    both = compare_releases(now, now, answers_now=answers, answers_before=answers)
    assert not [note for note in both.notes if note.startswith("onnxruntime")]


def test_a_target_that_is_gone_by_doubtful_latencies_only_is_in_doubt(
    now: Report, before: Report
) -> None:
    [check] = [each for each in row_of(now, "int8-openvino").checks if not each.met]
    assert not found(compare_releases(now, before), "openvino")["shipped"].noisy
    doubtful = changed(now, "int8-openvino", checks=(check.model_copy(update={"noisy": True}),))
    assert found(compare_releases(doubtful, before), "openvino")["shipped"].noisy


def test_noise_in_either_run_is_told(now: Report) -> None:
    assert not found(compare_releases(now, now))["latency"].noisy
    assert found(compare_releases(now, noisy(now)))["latency"].noisy
    assert found(compare_releases(noisy(now), now))["latency"].noisy


def differing(report: Report) -> dict[str, Report]:
    """For each difference that is refused, a report that has it."""
    environment = report.environment.model_copy(update={"cpu": "another"})
    threads = {
        shape: each.model_copy(update={"threads": 7})
        for shape, each in row_of(report).latency.items()
    }
    return {
        "machine": report.model_copy(update={"environment": environment}),
        "data": report.model_copy(update={"data": report.data | {"sha256": "0"}}),
        "shape": report.model_copy(update={"primary_shape": "4x128"}),
        "settings": changed(report, latency=threads),
        "model": report.model_copy(
            update={"model": report.model.model_copy(update={"sha256": "0"})}
        ),
    }


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_cannot_be_compared_is_refused_unless_it_is_allowed(now: Report, name: str) -> None:
    other = differing(now)[name]
    with pytest.raises(ComparisonError) as caught:
        compare_releases(now, other)
    assert f"they differ in {DIFFERENCES[name]}" in str(caught.value)  # type: ignore[index]
    assert f"--allow {name}" in str(caught.value)
    assert compare_releases(now, other, allow=[name]).checks


def test_every_difference_is_told_at_once(now: Report) -> None:
    other = now
    for change in ("machine", "data"):
        other = differing(other)[change]
    with pytest.raises(ComparisonError, match="the machine, the data"):
        compare_releases(now, other)
    with pytest.raises(ComparisonError, match="they differ in the data"):
        compare_releases(now, other, allow=["machine"])
