"""The verdict: what a row misses, which row is shipped, and the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from compressor.passes import advice_for
from compressor.recipe import Budget
from compressor.report.schema import Comparison, Row, Verdict
from compressor.verdict import choose, judge, shortfalls, target_label
from targets.measurement import Measurement, Round, Speedup

SHAPE = "1x128"


def measurement(ms: float, *, others_cpus: float = 0.0) -> Measurement:
    run = round(ms * 1e6)
    rounds = tuple(
        Round(run_ns=(run,) * 5, cpu_ns=5 * run, others_cpus=others_cpus) for _ in "1234"
    )
    return Measurement(
        rounds=rounds,
        threads=1,
        batch_size=1,
        sequence_length=128,
        num_cpus=2,
        load_time_ms=1,
        peak_memory_bytes=1,
        size_bytes=1,
    )


def comparison(drop: float) -> Comparison:
    return Comparison(
        drop_points=drop, low_points=drop - 1, high_points=drop + 2, p_value=0.5, agreement=0.9
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
    }
    return Row(**(given | changes))


def absent(target: str, status: str, reason: str | None, *, bundle: str | None = None) -> Row:
    return row(target=target, ms=None, status=status, reason=reason, bundle=bundle)


def verdict(
    rows: list[Row], budget: Budget, pass_names: Sequence[str] = ("prune", "distill")
) -> Verdict:
    """Choose and judge as a run does."""
    chosen = set(choose(rows, budget, SHAPE).values())
    judged = []
    for index, each in enumerate(rows):
        missed = {}
        if each.kind == "candidate" and each.status == "measured":
            missed = shortfalls(each, budget, each.test_comparison, SHAPE)
        unmet = tuple(text for _, text in missed.values())
        judged.append(each.model_copy(update={"unmet": unmet, "chosen": index in chosen}))
    return judge(judged, budget, SHAPE, advice=advice_for(pass_names))


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
    ],
)
def test_a_limit_is_met_at_the_limit_and_missed_beyond_it(
    limit: str, value: float, words: str | None
) -> None:
    budget = Budget.model_validate({limit: value})
    missed = shortfalls(row(), budget, comparison(0.5), SHAPE)
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


def test_every_limit_is_looked_at() -> None:
    budget = Budget(
        max_accuracy_drop=0,
        min_speedup=99,
        max_latency_ms=0.1,
        max_size_mb=0.1,
        min_size_ratio=99,
    )
    limits = set(Budget.model_fields) - {"require"}
    assert set(shortfalls(row(), budget, comparison(1), SHAPE)) == limits
    assert shortfalls(row(), Budget(), comparison(1), SHAPE) == {}


def test_what_could_not_be_measured_is_a_miss() -> None:
    budget = Budget(
        max_accuracy_drop=1, min_speedup=1, max_latency_ms=1, max_size_mb=1, min_size_ratio=1
    )
    nothing = row(ms=None, size_bytes=None, size_ratio=None)
    missed = shortfalls(nothing, budget, None, SHAPE)
    assert [text for _, text in missed.values()] == [
        f"{name} could not be measured" for name in Budget.model_fields if name != "require"
    ]


def test_only_the_primary_shape_counts() -> None:
    slow = row(latency={"8x128": measurement(50), SHAPE: measurement(1)})
    assert shortfalls(slow, Budget(max_latency_ms=2), comparison(0), SHAPE) == {}


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
        "there, -0.5 points of accuracy (-2.5 to +0.5), 4.0x smaller)",
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
            "fewer layers for distill, a higher ratio for prune, or another target",
        ),
        (
            {"max_latency_ms": 0.1},
            "quantize",
            "a distill pass with fewer layers, a prune pass, or another target",
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


def test_noise_of_any_row_marks_the_verdict() -> None:
    assert not verdict([row()], Budget()).noisy
    busy = row("original", kind="baseline", latency={SHAPE: measurement(2, others_cpus=1.9)})
    assert verdict([row(), busy], Budget()).noisy
