"""Judge rows against the budget: what each one misses, which to ship, and whether all is well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compressor.passes import Goal
from compressor.recipe.schema import Budget
from compressor.report.schema import Comparison, Row, Verdict

__all__ = ["choose", "judge", "shortfalls", "target_label"]

Advice = Mapping[Goal, Sequence[str]]

MET, BUDGET_UNMET, NOTHING_MEASURED = 0, 5, 6

_LEAST_DROP = 1.0
"""Points of accuracy that a miss is measured by where the limit itself is near 0."""

_GOALS: Mapping[str, Goal] = {
    "max_accuracy_drop": "accuracy",
    "min_speedup": "speed",
    "max_latency_ms": "speed",
    "max_size_mb": "size",
    "min_size_ratio": "size",
}
"""Limit of the budget -> what it is about."""

_CANNOT_RUN_HERE = ("built", "unavailable")


def shortfalls(
    row: Row, budget: Budget, comparison: Comparison | None, primary_shape: str
) -> dict[str, tuple[float, str]]:
    """What a row misses.

    Args:
        row: A measured row.
        budget: The limits.
        comparison: The row against the untouched model, on the data that is to count.
        primary_shape: The shape whose latency counts.

    Returns:
        Limit -> (how far it was missed as a share of the limit, above 0; the same in words).
    """
    latency = row.latency.get(primary_shape)
    found = {
        "max_accuracy_drop": None if comparison is None else comparison.drop_points,
        "min_speedup": None if row.speedup is None else row.speedup.ratio,
        "max_latency_ms": None if latency is None else latency.median_ms,
        "max_size_mb": None if row.size_bytes is None else row.size_bytes / 1e6,
        "min_size_ratio": row.size_ratio,
    }
    words = {
        "max_accuracy_drop": "loses {found:.2f} points of accuracy, allowed {limit:g}",
        "min_speedup": "is {found:.2f}x as fast, wanted {limit:g}x",
        "max_latency_ms": "takes {found:.3f} ms, allowed {limit:g} ms",
        "max_size_mb": "is {found:.2f} MB, allowed {limit:g} MB",
        "min_size_ratio": "is {found:.2f}x smaller, wanted {limit:g}x",
    }
    missed = {}
    for name, value in found.items():
        limit = getattr(budget, name)
        if limit is None:
            continue
        if value is None:
            missed[name] = (1.0, f"{name} could not be measured")
        elif (value > limit) if name.startswith("max") else (value < limit):
            text = words[name].format(found=value, limit=limit)
            scale = max(abs(limit), _LEAST_DROP) if name == "max_accuracy_drop" else limit
            missed[name] = (abs(value - limit) / scale, text)
    return missed


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
        missed = shortfalls(row, budget, row.validation_comparison, primary_shape)
        rank = (sum(share for share, _ in missed.values()), latency.median_ms, index)
        if target_label(row) not in chosen or rank < chosen[target_label(row)]:
            chosen[target_label(row)] = rank
    return {label: index for label, (_, _, index) in chosen.items()}


def judge(
    rows: Sequence[Row], budget: Budget, primary_shape: str, *, advice: Advice | None = None
) -> Verdict:
    """Give the verdict of a run.

    Args:
        rows: All rows, those to ship marked as chosen and ``unmet`` filled in from the test data.
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
        lines.extend([] if passed else _advice(rows, budget, primary_shape, advice or {}))
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


def target_label(row: Row) -> str:
    """Name of a row's target, with the device where that is not the default."""
    return row.target if row.device is None else f"{row.target} ({row.device})"


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
        parts.append(f"{row.speedup.ratio:.1f}x the speed of the untouched model there")
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


def _advice(rows: Sequence[Row], budget: Budget, primary_shape: str, advice: Advice) -> list[str]:
    """What to try after a miss, as one line; nothing where nothing was missed."""
    missed = {
        _GOALS[name]
        for row in rows
        if row.chosen
        for name in shortfalls(row, budget, row.test_comparison, primary_shape)
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


def _either(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts) or "a looser budget"
    return f"{', '.join(parts[:-1])}, or {parts[-1]}"
