"""The verdict: what a row misses, which row is shipped, and the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from compressor.gate.budget import Budget, Limits
from compressor.gate.limits import check_row, target_label
from compressor.gate.verdict import choose, judge, judge_rows
from compressor.passes import advice_for
from compressor.report.schema import (
    Change,
    Check,
    Comparison,
    Group,
    OnDevice,
    Perplexity,
    Row,
    Verdict,
)
from targets.measurement import Measurement, Round, Speedup
from targets.writing import Writing

SHAPE = "1x128"


def measurement(ms: float, *, others_cpus: float = 0.0, slowdown: float = 1.0) -> Measurement:
    run = round(ms * 1e6)
    rounds = tuple(
        Round(
            run_ns=(run,) * 5,
            cpu_ns=5 * run,
            others_cpus=others_cpus,
            reference_ns=round(1e6 * slowdown),
        )
        for _ in "1234"
    )
    return Measurement(
        best_reference_ns=1_000_000,
        rounds=rounds,
        threads=1,
        batch_size=1,
        sequence_length=128,
        num_cpus=2,
        load_time_ms=1,
        peak_memory_bytes=3_000_000,
        size_bytes=1,
    )


def writing(token_ms: float, *, others_cpus: float = 0.0) -> Writing:
    """A prompt of 100 tokens in ten times the time of a token."""
    times = tuple(round(1e6 * each) for each in (10 * token_ms, token_ms, token_ms))
    rounds = (Round(run_ns=times, cpu_ns=1, others_cpus=others_cpus),) * 4
    return Writing(threads=1, num_cpus=2, prompt_tokens=100, num_tokens=3, rounds=rounds)


def group(column: str | None, value: str, drop: float, low: float) -> Group:
    return Group(
        column=column,
        value=value,
        num_rows=40,
        accuracy=0.9 - drop / 100,
        reference=0.9,
        drop_points=drop,
        low_points=low,
        high_points=2 * drop - low,
    )


def comparison(drop: float) -> Comparison:
    return Comparison(
        drop_points=drop,
        low_points=drop - 1,
        high_points=drop + 2,
        p_value=0.5,
        agreement=0.9,
        reference_accuracy=0.8,
        metrics={
            "macro_f1": Change(
                value=0.7, reference=0.75, drop_points=5, low_points=2, high_points=8
            )
        },
        groups=(
            group(None, "rare", 20.0, 4.0),
            group(None, "common", 6.0, -1.0),
            group("source", "web", 9.0, 2.0),
        ),
        max_probability_difference=0.25,
        calibration_error=0.04,
        reference_calibration_error=0.02,
        perplexity=Perplexity(
            value=25.5,
            low=24,
            high=27,
            reference=25,
            rise=2,
            rise_low=1,
            rise_high=3,
        ),
    )


def row(
    variant: str = "small",
    *,
    target: str = "onnxruntime",
    ms: float | None = 2.0,
    drop: float | None = 0.5,
    validation_drop: float | None = None,
    speedup: float | None = 3.0,
    **changes: Any,
) -> Row:
    """A measured candidate; a row without ``ms`` is one that was not measured."""
    if ms is None:
        drop = speedup = None
    seen = drop if validation_drop is None else validation_drop
    given: dict[str, Any] = {
        "variant": variant,
        "kind": "candidate",
        "target": target,
        "device": None,
        "precision": "int8",
        "status": "failed" if ms is None else "measured",
        "bundle": f"bundles/{variant}",
        "size_bytes": 10_000_000,
        "size_ratio": 4.0,
        "test_comparison": None if drop is None else comparison(drop),
        "validation_comparison": None if seen is None else comparison(seen),
        "latency": {} if ms is None else {SHAPE: measurement(ms)},
        "speedup": None
        if speedup is None
        else Speedup(ratio=speedup, low=speedup, high=speedup, num_rounds=9),
        "speedup_eager": None
        if speedup is None
        else Speedup(ratio=2 * speedup, low=speedup, high=3 * speedup, num_rounds=9),
    }
    return Row(**(given | changes))


def written(variant: str = "small", *, token_ms: float = 20.0, **changes: Any) -> Row:
    """A row of a language model, 4 times as fast as the untouched one and 8 times as eager."""
    faster = [Speedup(ratio=each, low=each, high=each, num_rounds=4) for each in (4.0, 8.0)]
    return row(
        variant,
        writing=writing(token_ms),
        writing_speedup=faster[0],
        writing_speedup_eager=faster[1],
        **changes,
    )


def absent(target: str, status: str, reason: str | None, *, bundle: str | None = None) -> Row:
    return row(target=target, ms=None, status=status, reason=reason, bundle=bundle)


def verdict(
    rows: list[Row], budget: Budget, pass_names: Sequence[str] = ("prune", "distill")
) -> Verdict:
    """Choose and judge as a run does."""
    advice = {str(goal): each for goal, each in advice_for(pass_names).items()}
    return judge(judge_rows(rows, budget, SHAPE), budget, SHAPE, advice=advice)


def shortfalls(
    row: Row, budget: Budget, comparison: Comparison | None, shape: str
) -> dict[str, tuple[float, str]]:
    """What a row misses: limit -> (share of the limit, in words)."""
    return {
        check.limit: (check.shortfall, check.text)
        for check in check_row(row, budget, comparison, shape)
        if not check.met
    }


# What a row misses


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("max_accuracy_drop", 0.5, None),
        ("max_accuracy_drop", 0.49, "loses 0.50 points of accuracy, allowed 0.49"),
        ("max_accuracy_drop", 0.0, "loses 0.50 points of accuracy, allowed 0"),
        ("max_accuracy_drop", -1.0, "loses 0.50 points of accuracy, allowed -1"),
        ("min_speedup", 3.0, None),
        ("min_speedup", 3.01, "is 3.00x as fast, wanted 3.01x"),
        ("max_latency_ms", 2.0, None),
        ("max_latency_ms", 1.9, "takes 2.000 ms, allowed 1.9 ms"),
        ("max_size_mb", 10.0, None),
        ("max_size_mb", 9.99, "is 10.00 MB, allowed 9.99 MB"),
        ("min_size_ratio", 4.0, None),
        ("min_size_ratio", 4.5, "is 4.00x smaller, wanted 4.5x"),
        ("max_relative_drop", 0.625, None),
        ("max_relative_drop", 0.6, "loses 0.62% of the accuracy, allowed 0.6%"),
        ("min_label_agreement", 0.9, None),
        (
            "min_label_agreement",
            0.95,
            "answers as the untouched model does on 90.0% of the examples, wanted 95.0%",
        ),
        ("max_probability_difference", 0.25, None),
        ("max_probability_difference", 0.2, "differs by 0.25 in a probability, allowed 0.2"),
        ("max_calibration_error", 0.04, None),
        ("max_calibration_error", 0.03, "has a calibration error of 0.040, allowed 0.03"),
        ("max_p90_ms", 2.0, None),
        ("max_p90_ms", 1.5, "takes 2.000 ms at the 90th percentile, allowed 1.5 ms"),
        ("max_p99_ms", 1.5, "takes 2.000 ms at the 99th percentile, allowed 1.5 ms"),
        ("min_speedup_eager", 6.0, None),
        ("min_speedup_eager", 7.0, "is 6.00x as fast as eager PyTorch, wanted 7x"),
        ("max_first_token_ms", 200.0, None),
        ("max_first_token_ms", 150.0, "takes 200.0 ms to the first token, allowed 150 ms"),
        ("min_tokens_per_s", 50.0, None),
        ("min_tokens_per_s", 51.0, "writes 50.0 tokens/s, wanted 51"),
        ("min_writing_speedup", 4.0, None),
        ("min_writing_speedup", 4.5, "writes 4.00x as fast, wanted 4.5x"),
        ("min_writing_speedup_eager", 8.0, None),
        ("min_writing_speedup_eager", 9.0, "writes 8.00x as fast as eager PyTorch, wanted 9x"),
        ("max_load_time_ms", 1.0, None),
        ("max_load_time_ms", 0.5, "takes 1 ms to load, allowed 0.5 ms"),
        ("max_peak_memory_mb", 3.0, None),
        ("max_peak_memory_mb", 2.0, "needs 3 MB of memory, allowed 2 MB"),
        ("max_metric_drop", {"macro_f1": 5}, None),
        ("max_metric_drop", {"macro_f1": 4.5}, "loses 5.00 points of macro_f1, allowed 4.5"),
        ("max_class_drop", 20, None),
        ("max_class_drop", 19, "loses 20.0 points (4.0 to 36.0) on class rare, allowed 19"),
        ("max_slice_drop", 9, None),
        ("max_slice_drop", 8, "loses 9.0 points (2.0 to 16.0) on source = web, allowed 8"),
    ],
)
def test_a_limit_is_met_at_the_limit_and_missed_beyond_it(
    limit: str, value: Any, words: str | None
) -> None:
    budget = Budget.model_validate({limit: value})
    missed = shortfalls(written(), budget, comparison(0.5), SHAPE)
    if words is None:
        assert missed == {}
    else:
        assert list(missed) == [limit]
        share, text = missed[limit]
        assert text == words
        assert share > 0


@pytest.mark.parametrize(
    ("limit", "value", "share"),
    [
        ("max_accuracy_drop", 0.0, 4.0),  # in points, where the limit is near 0
        ("max_accuracy_drop", 0.5, 3.5),
        ("max_accuracy_drop", 2.0, 1.0),
        ("min_speedup", 6.0, 0.5),
        ("max_latency_ms", 1.0, 1.0),
        ("max_size_mb", 8.0, 0.25),
        ("min_size_ratio", 5.0, 0.2),
    ],
)
def test_a_miss_is_a_share_of_the_limit(limit: str, value: float, share: float) -> None:
    budget = Budget.model_validate({limit: value})
    missed = shortfalls(row(), budget, comparison(4.0), SHAPE)
    assert missed[limit][0] == pytest.approx(share)


IMPOSSIBLE = Budget.model_validate(
    {
        "max_accuracy_drop": 0,
        "max_relative_drop": 0,
        "max_perplexity_rise": 0,
        "max_metric_drop": {"macro_f1": 0},
        "max_class_drop": 0,
        "max_slice_drop": 0,
        "min_label_agreement": 1,
        "max_probability_difference": 0,
        "max_calibration_error": 0,
        "max_latency_ms": 0.1,
        "max_p90_ms": 0.1,
        "max_p99_ms": 0.1,
        "min_speedup": 99,
        "min_speedup_eager": 99,
        "max_first_token_ms": 0.1,
        "min_tokens_per_s": 1e6,
        "min_writing_speedup": 99,
        "min_writing_speedup_eager": 99,
        "max_load_time_ms": 0.1,
        "max_peak_memory_mb": 1e-9,
        "max_size_mb": 0.001,
        "min_size_ratio": 99,
    }
)
"""No bundle meets any of these."""


def test_every_limit_is_looked_at() -> None:
    limits = set(Limits.model_fields) - {"drop_at"}
    assert IMPOSSIBLE.model_fields_set == limits
    assert set(shortfalls(written(), IMPOSSIBLE, comparison(1), SHAPE)) == limits
    assert shortfalls(row(), Budget(), comparison(1), SHAPE) == {}


def test_what_could_not_be_measured_is_a_miss() -> None:
    nothing = row(ms=None, size_bytes=None, size_ratio=None)
    missed = shortfalls(nothing, IMPOSSIBLE, None, SHAPE)
    assert {text for _, text in missed.values()} == {
        f"{name} could not be measured" for name in IMPOSSIBLE.model_fields_set
    }
    # A report that knows no groups cannot vouch for them.
    bare = comparison(0).model_copy(update={"groups": (), "metrics": {}})
    assert {"max_class_drop", "max_slice_drop", "max_metric_drop"} <= set(
        shortfalls(row(), IMPOSSIBLE, bare, SHAPE)
    )


def test_of_language_models_the_one_that_writes_fastest_is_chosen() -> None:
    rows = [
        written("reads fast", ms=1.0, token_ms=30),
        written("writes fast", ms=2.0, token_ms=20),
        row("writes nothing", ms=0.5),  # it failed: nobody knows how fast it is
    ]
    assert choose(rows, Budget(), SHAPE) == {"onnxruntime": 1}
    [line] = verdict(rows, Budget()).lines
    assert "writes 50 tokens/s, 4x those of the untouched model there" in line
    assert choose(rows, Budget(max_latency_ms=1.0), SHAPE) == {"onnxruntime": 0}


def test_noise_while_texts_were_written_is_that_of_their_limits_alone() -> None:
    quiet = written()
    busy = quiet.model_copy(update={"writing": writing(20, others_cpus=2.0)})
    limits = Budget(min_tokens_per_s=99, max_latency_ms=0.1)
    for row_, expected in ((quiet, False), (busy, True)):
        checks = {each.limit: each for each in check_row(row_, limits, comparison(0), SHAPE)}
        assert checks["min_tokens_per_s"].noisy == expected
        assert not checks["max_latency_ms"].noisy
        assert verdict([row_], limits).noisy == expected
    # What a ratio divides was disturbed, and the ratio may as well be on the other side.
    base = written("original", kind="baseline").model_copy(update={"writing": busy.writing})
    ratio = Speedup(ratio=4, low=3.5, high=4.5, num_rounds=4)
    unsure = quiet.model_copy(update={"writing_speedup": ratio})
    wanted = Budget(min_writing_speedup=4.2)
    [_, judged] = judge_rows([base, unsure], wanted, SHAPE)
    [check] = judged.checks
    assert (check.met, check.noisy) == (False, True)


def test_only_the_primary_shape_counts() -> None:
    slow = row(latency={"8x128": measurement(50), SHAPE: measurement(1)})
    assert shortfalls(slow, Budget(max_latency_ms=2), comparison(0), SHAPE) == {}


def test_a_rise_of_the_perplexity_is_judged_in_percent() -> None:
    def checked(**limits: Any) -> Check:
        [check] = check_row(row(), Budget.model_validate(limits), comparison(0), SHAPE)
        return check

    assert checked(max_perplexity_rise=2.5).met
    missed = checked(max_perplexity_rise=1.5)
    assert not missed.met
    assert missed.text == "changes the perplexity by +2.00%, allowed +1.5%"
    upper = checked(max_perplexity_rise=2.5, drop_at="upper")
    assert not upper.met
    assert upper.found == 3


def test_a_loss_below_0_is_a_gain() -> None:
    gained = comparison(-0.6).model_copy(
        update={
            "metrics": {
                "macro_f1": Change(
                    value=0.8, reference=0.75, drop_points=-5, low_points=-8, high_points=-2
                )
            },
            "groups": (group(None, "rare", -3.0, -5.0),),
        }
    )
    limits = {
        "max_accuracy_drop": 1, "max_relative_drop": 1, "max_class_drop": 1,
        "max_metric_drop": {"macro_f1": 1},
    }  # fmt: skip
    checks = check_row(row(), Budget.model_validate(limits), gained, SHAPE)
    assert [check.text for check in checks] == [
        "gains 0.60 points of accuracy, allowed 1",
        "gains 0.75% of the accuracy, allowed 1%",
        "gains 5.00 points of macro_f1, allowed 1",
        "gains 3.0 points (1.0 to 5.0) on class rare, allowed 1",
    ]
    assert all(check.met for check in checks)
    assert checks[0].found == -0.6  # the number stays a loss


def test_a_loss_on_a_group_that_may_be_chance_does_not_count() -> None:
    checks = check_row(row(), Budget(max_class_drop=1), comparison(0), SHAPE)
    assert [(check.subject, check.met) for check in checks] == [
        ("class rare", False),
        ("class common", True),
    ]
    assert checks[1].text.endswith("on class common, allowed 1; it may be chance, with 40 examples")


def test_the_upper_end_of_the_interval_counts_where_that_is_asked_for() -> None:
    lenient = {"max_accuracy_drop": 1, "max_relative_drop": 1, "max_metric_drop": {"macro_f1": 6}}
    assert shortfalls(row(), Budget.model_validate(lenient), comparison(0.5), SHAPE) == {}
    strict = Budget.model_validate(lenient | {"drop_at": "upper"})
    missed = shortfalls(row(), strict, comparison(0.5), SHAPE)
    assert [text for _, text in missed.values()] == [
        "loses 2.50 points of accuracy at the upper end of the interval, allowed 1",
        "loses 3.12% of the accuracy at the upper end of the interval, allowed 1%",
        "loses 8.00 points of macro_f1 at the upper end of the interval, allowed 6",
    ]


def test_a_target_has_its_own_limits_and_for_the_rest_those_of_all() -> None:
    budget = Budget.model_validate(
        {
            "max_latency_ms": 1,
            "max_size_mb": 11,
            "targets": {
                "openvino": {"max_latency_ms": 3},
                "onnxruntime (cuda)": {"min_speedup": 9},
            },
        }
    )
    assert list(shortfalls(row(), budget, None, SHAPE)) == ["max_latency_ms"]
    assert shortfalls(row(target="openvino"), budget, None, SHAPE) == {}
    on_gpu = row(device="cuda")
    assert list(shortfalls(on_gpu, budget, None, SHAPE)) == ["max_latency_ms", "min_speedup"]
    # A limit can be lifted there, too.
    lifted = Budget.model_validate(
        {"max_latency_ms": 1, "targets": {"openvino": {"max_latency_ms": None}}}
    )
    assert shortfalls(row(target="openvino"), lifted, None, SHAPE) == {}


def test_a_device_has_limits_on_what_it_measures() -> None:
    budget = Budget.model_validate({"devices": {"pi": {"max_latency_ms": 30, "min_speedup": 2}}})
    slow = OnDevice(
        latency={SHAPE: measurement(40)},
        speedup=Speedup(ratio=3, low=3, high=3, num_rounds=9),
    )
    missed = shortfalls(row(devices={"pi": slow}), budget, None, SHAPE)
    assert [text for _, text in missed.values()] == ["on pi: takes 40.000 ms, allowed 30 ms"]
    gone = shortfalls(row(devices={"pi": OnDevice(reason="no route")}), budget, None, SHAPE)
    assert [text for _, text in gone.values()] == [
        "on pi: max_latency_ms could not be measured",
        "on pi: min_speedup could not be measured",
    ]
    assert list(shortfalls(row(), budget, None, SHAPE)) == ["max_latency_ms", "min_speedup"]


def test_a_time_that_is_too_long_on_a_slowed_machine_is_doubtful_and_a_ratio_is_not() -> None:
    slowed = row(latency={SHAPE: measurement(3, slowdown=1.5)})
    limits = Budget(max_latency_ms=2, max_p99_ms=4, min_speedup=100)
    checks = {check.limit: check for check in check_row(slowed, limits, None, SHAPE)}
    assert {name: (check.met, check.noisy) for name, check in checks.items()} == {
        "max_latency_ms": (False, True),
        "max_p99_ms": (True, False),
        "min_speedup": (False, False),
    }
    assert checks["max_latency_ms"].text.endswith(
        "; but fixed work took 1.50x as long as it has before"
    )


def test_where_threads_were_woken_slowly_a_ratio_is_doubtful_too() -> None:
    slow = measurement(3)
    rounds = [each.model_copy(update={"wakeup_ns": 51_000}) for each in slow.rounds]
    two = {"rounds": tuple(rounds), "threads": 2, "best_wakeup_ns": 34_000}
    slowed = row(latency={SHAPE: slow.model_copy(update=two)})
    limits = Budget(max_latency_ms=2, max_p99_ms=4, min_speedup=100)
    checks = {check.limit: check for check in check_row(slowed, limits, None, SHAPE)}
    assert {name: (check.met, check.noisy) for name, check in checks.items()} == {
        "max_latency_ms": (False, True),
        "max_p99_ms": (True, False),
        "min_speedup": (False, True),
    }
    assert checks["min_speedup"].text.endswith(
        "; but waking a thread took 1.50x as long as it has before"
    )


@pytest.mark.parametrize(
    ("kind", "target", "wanted", "noisy"),
    [
        ("baseline", "onnxruntime", {"min_speedup": 3.0}, True),
        ("baseline", "onnxruntime", {"min_speedup": 1.5}, False),  # the interval leaves no doubt
        ("baseline", "onnxruntime", {"min_speedup": 6.0}, False),
        ("baseline", "openvino", {"min_speedup": 3.0}, False),  # of another target
        ("reference", "pytorch", {"min_speedup_eager": 6.0}, True),
        ("reference", "pytorch", {"min_speedup": 3.0}, False),
        ("reference", "onnxruntime", {"min_speedup": 3.0}, True),  # a target that is the reference
    ],
)
def test_a_ratio_to_a_noisy_time_decides_nothing_where_it_could_be_on_either_side(
    kind: str, target: str, wanted: dict[str, float], noisy: bool
) -> None:
    base = row(kind=kind, target=target, latency={SHAPE: measurement(6, others_cpus=2.0)})
    ratios = {
        name: Speedup(ratio=middle, low=middle / 1.6, high=middle * 1.6, num_rounds=9)
        for name, middle in (("speedup", 3.0), ("speedup_eager", 6.0))
    }
    found = row().model_copy(update=ratios)
    _, judged = judge_rows([base, found], Budget(**wanted), SHAPE)
    assert [check.noisy for check in judged.checks] == [noisy]


def test_a_noisy_base_on_a_device_decides_nothing_there() -> None:
    """Of a device only its own base counts, and of this machine only the one here."""
    ratio = Speedup(ratio=3, low=1.5, high=4.5, num_rounds=9)
    there = OnDevice(latency={SHAPE: measurement(2)}, speedup=ratio)
    noisy = {SHAPE: measurement(6, others_cpus=2.0)}
    base = row(kind="baseline", devices={"pi": OnDevice(latency=noisy)})
    found = row(devices={"pi": there}).model_copy(update={"speedup": ratio})
    limits = {"min_speedup": 4, "devices": {"pi": {"min_speedup": 4}}}
    _, judged = judge_rows([base, found], Budget.model_validate(limits), SHAPE)
    assert [(check.met, check.noisy) for check in judged.checks] == [(False, False), (False, True)]


def test_a_difference_of_shares_holds_a_limit_that_it_is_equal_to() -> None:
    """100 * (0.936 - 0.931) is a little more than 0.5."""
    points = 100 * (0.936 - 0.931)
    assert points > 0.5
    lost = Change(value=0.931, reference=0.936, drop_points=points, low_points=0, high_points=1)
    found = comparison(points).model_copy(update={"metrics": {"accuracy": lost}})
    limits = Budget(max_metric_drop={"accuracy": 0.5}, max_accuracy_drop=0.5)
    assert all(check.met for check in check_row(row(), limits, found, SHAPE))


def test_a_share_of_less_than_nothing_is_not_known() -> None:
    found = comparison(50).model_copy(update={"reference_accuracy": -0.2})
    [check] = check_row(row(), Budget(max_relative_drop=1.0), found, SHAPE)
    assert (check.met, check.found) == (False, None)


def test_only_checks_of_latency_are_noisy() -> None:
    noisy = row(latency={SHAPE: measurement(2, others_cpus=2.0)})
    checks = check_row(noisy, Budget(max_latency_ms=3, max_size_mb=99), None, SHAPE)
    assert {check.limit: check.noisy for check in checks} == {
        "max_latency_ms": True,
        "max_size_mb": False,
    }


# What is shipped


def test_the_fastest_within_the_budget_is_chosen() -> None:
    rows = [row("a", ms=3), row("b", ms=1, drop=2), row("c", ms=2), row("d", ms=4)]
    assert choose(rows, Budget(max_accuracy_drop=1), SHAPE) == {"onnxruntime": 2}
    assert choose(rows, Budget(), SHAPE) == {"onnxruntime": 1}


def test_the_nearest_is_chosen_where_none_is_within_the_budget() -> None:
    rows = [row("a", ms=1, drop=5), row("b", ms=3, drop=2), row("c", ms=2, drop=3)]
    assert choose(rows, Budget(max_accuracy_drop=1), SHAPE) == {"onnxruntime": 1}


def test_misses_of_several_limits_add_up() -> None:
    budget = Budget(max_accuracy_drop=1, min_speedup=4)
    rows = [row("a", drop=1.5, speedup=2), row("b", drop=1.8, speedup=4), row("c", drop=3)]
    assert choose(rows, budget, SHAPE) == {"onnxruntime": 1}


def test_a_drop_just_above_a_limit_of_nothing_does_not_outweigh_all_else() -> None:
    budget = Budget(max_accuracy_drop=0, min_speedup=4)
    rows = [row("a", drop=0.1, speedup=4), row("b", drop=0.0, speedup=1)]
    assert choose(rows, budget, SHAPE) == {"onnxruntime": 0}


def test_the_choice_sees_validation_data_only() -> None:
    rows = [
        row("lucky", ms=1, drop=0, validation_drop=3),
        row("steady", ms=2, drop=3, validation_drop=0),
    ]
    budget = Budget(max_accuracy_drop=1)
    assert choose(rows, budget, SHAPE) == {"onnxruntime": 1}
    # And what is shipped is judged on the test data.
    found = verdict(rows, budget)
    assert not found.met
    assert "steady misses it: loses 3.00 points" in found.lines[0]


def test_the_choice_needs_no_slices_in_the_validation_data() -> None:
    bare = comparison(0).model_copy(update={"groups": ()})
    rows = [row("a", ms=2), row("b", ms=1, validation_comparison=bare)]
    assert choose(rows, Budget(max_slice_drop=10), SHAPE) == {"onnxruntime": 1}


def test_each_target_and_device_gets_its_own_choice() -> None:
    rows = [
        row("a", ms=1),
        row("a", target="openvino", ms=2),
        row("b", target="openvino", ms=1),
        row("a", target="openvino", device="GPU", ms=9),
    ]
    assert choose(rows, Budget(), SHAPE) == {"onnxruntime": 0, "openvino": 2, "openvino (GPU)": 3}
    assert target_label(rows[3]) == "openvino (GPU)"


def test_only_measured_candidates_are_chosen() -> None:
    rows = [
        row("original", ms=0.1, kind="baseline"),
        row("original", target="pytorch", ms=0.1, kind="reference"),
        row("a", latency={"8x128": measurement(1)}),
        row("b", ms=5),
        absent("onnxruntime", "failed", "crashed"),
    ]
    assert choose(rows, Budget(), SHAPE) == {"onnxruntime": 3}


def test_of_equals_the_first_is_chosen() -> None:
    assert choose([row("a"), row("b")], Budget(), SHAPE) == {"onnxruntime": 0}


# The verdict


def two_targets(first: float, second: float) -> list[Row]:
    return [row("a", drop=first), row("a", target="openvino", drop=second)]


@pytest.mark.parametrize(
    ("require", "drops", "met"),
    [
        ("every", (0, 0), True),
        ("every", (0, 9), False),
        ("every", (9, 9), False),
        ("any", (0, 0), True),
        ("any", (9, 0), True),
        ("any", (9, 9), False),
    ],
)
def test_every_target_or_any_has_to_meet_the_budget(
    require: str, drops: tuple[float, float], met: bool
) -> None:
    budget = Budget.model_validate({"max_accuracy_drop": 1, "require": require})
    found = verdict(two_targets(*drops), budget)
    assert found.met is met
    assert found.exit_code == (0 if met else 5)


def test_without_limits_whatever_was_measured_passes() -> None:
    found = verdict(two_targets(50, 50), Budget())
    assert (found.met, found.exit_code) == (True, 0)


@pytest.mark.parametrize("require", ["every", "any"])
@pytest.mark.parametrize(
    ("status", "bundle", "words"),
    [
        ("built", "bundles/a", "tensorrt: built, not judged: no GPU"),
        ("unavailable", None, "tensorrt: no bundle: no GPU"),
    ],
)
def test_a_target_that_cannot_run_here_is_not_judged(
    require: str, status: str, bundle: str | None, words: str
) -> None:
    budget = Budget.model_validate({"max_accuracy_drop": 1, "require": require})
    rows = [row(), absent("tensorrt", status, "no GPU\nand more", bundle=bundle)]
    found = verdict(rows, budget)
    assert (found.met, found.exit_code) == (True, 0)
    assert found.lines[1] == words


@pytest.mark.parametrize("status", ["refused", "failed"])
@pytest.mark.parametrize("require", ["every", "any"])
def test_a_target_that_could_run_here_but_has_no_bundle_misses_the_budget(
    require: str, status: str
) -> None:
    budget = Budget.model_validate({"require": require})
    found = verdict([row(), absent("openvino", status, "it crashed")], budget)
    assert found.met is (require == "any")
    assert found.exit_code == (0 if require == "any" else 5)
    assert found.lines[1] == "openvino: misses the budget: no bundle: it crashed"
    assert not any("to try next" in line for line in found.lines)


def test_a_bundle_that_failed_while_it_was_measured_is_not_called_absent() -> None:
    found = verdict([row(), absent("openvino", "failed", None, bundle="bundles/a")], Budget())
    assert found.lines[1] == (
        "openvino: misses the budget: built, but not measured: no reason is known"
    )


def test_the_reason_is_that_of_what_was_built() -> None:
    refused = absent("openvino", "refused", "it has no such integers")
    crashed = absent("openvino", "failed", "it crashed", bundle="bundles/a")
    assert (
        verdict([row(), refused, crashed], Budget())
        .lines[1]
        .endswith("built, but not measured: it crashed")
    )
    elsewhere = row(target="openvino", latency={"8x128": measurement(1)})
    assert verdict([row(), refused, elsewhere], Budget()).lines[1] == (
        f"openvino: misses the budget: built, but not measured at {SHAPE}"
    )
    built = absent("tensorrt", "built", "no GPU", bundle="bundles/a")
    refused = absent("tensorrt", "refused", "it has no such integers")
    assert verdict([row(), refused, built], Budget()).lines[1] == (
        "tensorrt: built, not judged: no GPU"
    )


def test_of_what_was_only_built_the_nearest_is_judged() -> None:
    budget = Budget.model_validate(
        {"max_latency_ms": 9, "targets": {"tensorrt": {"max_size_mb": 20, "min_size_ratio": 2}}}
    )
    large, small = (
        row(name, target="tensorrt", ms=None, status="built", reason="no GPU", size_bytes=size)
        for name, size in (("large", 30_000_000), ("small", 10_000_000))
    )
    rows = judge_rows([row(), large, small], budget, SHAPE)
    assert [[check.limit for check in each.checks] for each in rows] == [
        ["max_latency_ms"],
        [],
        ["max_size_mb", "min_size_ratio"],  # what holds for all is not of its own
    ]
    assert [each.chosen for each in rows] == [True, False, False]
    assert judge(rows, budget, SHAPE).met
    found = verdict([row(), large], budget)
    assert (found.met, found.exit_code) == (False, 5)
    assert found.lines[1] == (
        "tensorrt: large misses the limits of this target: is 30.00 MB, allowed 20 MB "
        "(built, not judged: no GPU)"
    )
    # Nothing that was measured is nothing to ship, whatever is known of the rest.
    assert verdict([small], budget).exit_code == 6


def test_without_a_bundle_there_is_nothing_to_ship() -> None:
    found = verdict([row(bundle=None)], Budget(max_latency_ms=9))
    assert (found.met, found.exit_code) == (False, 5)
    assert "misses it: nothing to ship: the report names no bundle of it" in found.lines[0]
    # Another variant with one is taken instead.
    rows = judge_rows([row("a", ms=1, bundle=None), row("b", ms=2)], Budget(), SHAPE)
    assert [each.chosen for each in rows] == [False, True]


def test_a_failed_variant_does_not_count_where_another_one_is_shipped() -> None:
    found = verdict([absent("onnxruntime", "failed", "crashed"), row("b")], Budget())
    assert found.met
    assert len(found.lines) == 1


@pytest.mark.parametrize("require", ["every", "any"])
@pytest.mark.parametrize(
    ("rows", "last"),
    [
        ([], "no candidate could be measured on this machine"),
        (
            [absent("tensorrt", "unavailable", "no GPU")],
            "no candidate could be measured on this machine",
        ),
        (
            [absent("tensorrt", "built", "no GPU", bundle="b")],
            "no candidate could be measured on this machine; the bundles that were built are kept",
        ),
        (
            [absent("tensorrt", "failed", "crashed")],
            "no candidate could be measured on this machine",
        ),
        (
            [row("original", kind="baseline"), row("original", kind="reference", target="pytorch")],
            "no candidate could be measured on this machine",
        ),
    ],
)
def test_nothing_measured_is_no_success(rows: list[Row], last: str, require: str) -> None:
    found = verdict(rows, Budget.model_validate({"require": require}))
    assert (found.met, found.exit_code) == (False, 6)
    assert found.lines[-1] == last


def test_the_line_of_a_shipped_row_has_its_figures() -> None:
    found = verdict([row("half", ms=1.234, drop=0.5, speedup=3.2)], Budget(max_accuracy_drop=1))
    assert found.lines == (
        "onnxruntime: half meets the budget (1.234 ms, 3.2x the speed of the untouched model "
        "there, -0.5 points of accuracy (-2.5 to +0.5), +2.0% of perplexity (+1.0 to +3.0), "
        "4.0x smaller)",
    )


def test_no_change_of_accuracy_is_not_minus_zero() -> None:
    assert "+0.0 points of accuracy" in verdict([row(drop=0.0)], Budget()).lines[0]


def test_figures_that_are_not_known_are_left_out() -> None:
    found = verdict([row(drop=None, speedup=None, size_ratio=None)], Budget())
    assert found.lines == ("onnxruntime: small meets the budget (2.000 ms)",)


@pytest.mark.parametrize(
    ("budget", "passes", "advice"),
    [
        (
            {"max_accuracy_drop": 0.1},
            "prune distill quantize",
            "more epochs for distill, a lower ratio for prune, or more steps with recovery, or "
            "another calibration for quantize, or smooth_quant",
        ),
        (
            {"max_accuracy_drop": 0.1},
            "drop_layers",
            "more layers left by drop_layers, or a distill pass after the cuts",
        ),
        (
            {"min_speedup": 9},
            "prune distill quantize",
            "fewer layers for distill, a higher ratio for prune, a drop_blocks pass, a "
            "merge_tokens pass, or another target",
        ),
        (
            {"max_latency_ms": 0.1},
            "quantize",
            "a distill pass with fewer layers, a drop_blocks pass, a merge_tokens pass, a prune "
            "pass, or another target",
        ),
        (
            {"max_size_mb": 1},
            "distill",
            "fewer layers for distill, a prune pass, a variant with quantize, or trim_vocabulary",
        ),
        (
            {"min_size_ratio": 9},
            "trim_vocabulary distill prune quantize",
            "fewer layers for distill, or a higher ratio for prune",
        ),
        (
            {"max_accuracy_drop": 0.1, "min_speedup": 9},
            "distill",
            "first more epochs for distill, then a smaller shape for the rest",
        ),
        ({"max_accuracy_drop": 0.1}, "export trim_vocabulary", "a larger keep_first for trim_voc"),
    ],
)
def test_a_missed_budget_says_what_to_try_next(
    budget: dict[str, float], passes: str, advice: str
) -> None:
    found = verdict([row()], Budget.model_validate(budget), passes.split())
    assert found.lines[-1].startswith(f"to try next: {advice}")
    assert found.lines[0].startswith("onnxruntime: small misses it: ")


def test_what_was_not_measured_is_to_be_measured_not_compressed() -> None:
    limits = {"max_latency_ms": 1, "max_peak_memory_mb": 1}
    budget = Budget.model_validate({"devices": {"pi": limits}})
    found = verdict([row()], budget, ["prune"])
    assert found.lines[-1] == (
        "measure what these limits need, or remove them: "
        "max_latency_ms on pi, max_peak_memory_mb on pi"
    )
    assert not any("to try next" in line for line in found.lines)
    both = Budget.model_validate({"devices": {"pi": limits}, "max_size_mb": 1})
    lines = verdict([row()], both, ["prune"]).lines
    assert lines[-2].startswith("to try next: ")
    assert lines[-1].startswith("measure what these limits need")


def test_noise_of_any_row_marks_the_verdict() -> None:
    assert not verdict([row()], Budget()).noisy
    busy = row("original", kind="baseline", latency={SHAPE: measurement(2, others_cpus=1.9)})
    assert verdict([row(), busy], Budget()).noisy
