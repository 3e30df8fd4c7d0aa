"""Judge rows against the budget: what each one misses, which to ship, and whether all is well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compressor.gate.budget import Budget
from compressor.gate.limits import GOALS, check_row, target_label
from compressor.report.schema import Row, Verdict
from compressor.report.wording import worst_layer

__all__ = ["choose", "judge", "judge_rows"]

Advice = Mapping[str, Sequence[str]]

MET, BUDGET_UNMET, NOTHING_MEASURED = 0, 5, 6

_CANNOT_RUN_HERE = ("built", "unavailable")


def choose(rows: Sequence[Row], budget: Budget, primary_shape: str) -> dict[str, int]:
    """Pick what to ship on each target, by the validation data alone.

    Returns:
        Label of the target -> index of the fastest row that meets the budget, or of the one that
        misses it least.
    """
    chosen: dict[str, tuple[float, float, int]] = {}
    for index, row in enumerate(rows):
        latency = row.latency.get(primary_shape)
        if row.kind != "candidate" or latency is None:
            continue
        checks = check_row(row, budget, row.validation_comparison, primary_shape)
        # The validation data need not have the columns that the test data is sliced by.
        missed = sum(
            check.shortfall
            for check in checks
            if not (check.limit == "max_slice_drop" and check.found is None)
        )
        rank = (missed, latency.median_ms, index)
        if target_label(row) not in chosen or rank < chosen[target_label(row)]:
            chosen[target_label(row)] = rank
    return {label: index for label, (_, _, index) in chosen.items()}


def judge_rows(rows: Sequence[Row], budget: Budget, primary_shape: str) -> list[Row]:
    """Mark which rows to ship, and compare every measured candidate with the budget.

    What was marked before does not count.
    """
    chosen = set(choose(rows, budget, primary_shape).values())
    return [
        row.model_copy(
            update={
                "chosen": index in chosen,
                "checks": check_row(row, budget, row.test_comparison, primary_shape)
                if row.kind == "candidate" and row.status == "measured"
                else (),
            }
        )
        for index, row in enumerate(rows)
    ]


def judge(
    rows: Sequence[Row], budget: Budget, primary_shape: str, *, advice: Advice | None = None
) -> Verdict:
    """Give the verdict of a run.

    Args:
        rows: All rows, as :func:`judge_rows` left them.
        budget: The limits.
        primary_shape: The shape whose latency counts.
        advice: Goal -> what to try next where it was missed.
    """
    lines: list[str] = []
    met: dict[str, bool] = {}
    shipped = False
    for label, group in _by_target(rows).items():
        ship = next((row for row in group if row.chosen), None)
        if ship is not None:
            shipped = True
            met[label] = not ship.unmet
            lines.append(_line(label, ship, primary_shape))
            continue
        outcome = f"{_state(group)}: {_first_reason(group)}"
        if not any(row.status in _CANNOT_RUN_HERE for row in group):
            met[label] = False  # it could run here, and has nothing to ship
            outcome = f"misses the budget: {outcome}"
        lines.append(f"{label}: {outcome}")
    passed = any(met.values()) if budget.require == "any" else bool(met) and all(met.values())
    if shipped:
        code = MET if passed else BUDGET_UNMET
        if not passed:
            lines += [*_lost_precision(rows), *_advice(rows, advice or {})]
    else:
        code = NOTHING_MEASURED
        kept = any(row.bundle for row in rows if row.kind == "candidate")
        lines.append(
            "no candidate could be measured on this machine"
            + ("; the bundles that were built are kept" if kept else "")
        )
    noisy = any(
        measured.noise.verdict == "noisy" for row in rows for measured in row.latency.values()
    )
    return Verdict(met=passed, exit_code=code, lines=tuple(lines), noisy=noisy)


def _by_target(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == "candidate":
            groups.setdefault(target_label(row), []).append(row)
    return groups


def _state(group: Sequence[Row]) -> str:
    if any(row.status == "built" for row in group):
        return "built, not judged"
    return "built, but not measured" if any(row.bundle for row in group) else "no bundle"


def _first_reason(group: Sequence[Row]) -> str:
    reasons = [row.reason for row in group if row.reason]
    return reasons[0].splitlines()[0] if reasons else "no reason is known"


def _line(label: str, row: Row, primary_shape: str) -> str:
    parts = [f"{row.latency[primary_shape].median_ms:.3f} ms"]
    if row.speedup is not None:
        parts.append(f"{row.speedup.ratio:.3g}x the speed of the untouched model there")
    if row.test_comparison is not None:
        drop = row.test_comparison
        parts.append(
            f"{0.0 - drop.drop_points:+.1f} points of accuracy "
            f"({0.0 - drop.high_points:+.1f} to {0.0 - drop.low_points:+.1f})"
        )
    if row.size_ratio is not None:
        parts.append(f"{row.size_ratio:.1f}x smaller")
    outcome = "meets the budget" if not row.unmet else "misses it: " + "; ".join(row.unmet)
    return f"{label}: {row.variant} {outcome} ({', '.join(parts)})"


def _advice(rows: Sequence[Row], advice: Advice) -> list[str]:
    """What to try after a miss, as one line; nothing where nothing was missed."""
    missed = {
        GOALS[check.limit] for row in rows if row.chosen for check in row.checks if not check.met
    }
    if not missed:
        return []
    if "accuracy" in missed:
        text = _either(advice.get("accuracy", ()))
        if len(missed) > 1:
            text = f"first {text}, then a smaller shape for the rest"
    else:
        parts = [
            each for goal in ("speed", "size") if goal in missed for each in advice.get(goal, ())
        ]
        if "speed" in missed:
            parts.append("another target")
        text = _either(list(dict.fromkeys(parts)))
    return [f"to try next: {text}"]


def _lost_precision(rows: Sequence[Row]) -> list[str]:
    """Where the bundles that lost too much accuracy are furthest from float32."""
    return [
        f"{target_label(row)}: {row.variant} is furthest from float32 there: "
        f"{worst_layer(row.layers)}"
        for row in rows
        if row.chosen and row.layers
        if any(GOALS[check.limit] == "accuracy" for check in row.checks if not check.met)
    ]


def _either(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts) or "a looser budget"
    return f"{', '.join(parts[:-1])}, or {parts[-1]}"
