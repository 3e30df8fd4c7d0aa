"""Judge rows against the budget: what each one misses, which to ship, and whether all is well."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from compressor.gate.budget import Budget
from compressor.gate.limits import GOALS, NoisyBases, check_row, target_label
from compressor.report.schema import Check, Row, Verdict
from compressor.report.wording import significant, worst_layer
from targets.measurement import Measurement
from targets.writing import Writing

__all__ = ["choose", "judge", "judge_rows", "judged_rows", "shortfall"]

Advice = Mapping[str, Sequence[str]]

MET, BUDGET_UNMET, NOTHING_MEASURED = 0, 5, 6

_CANNOT_RUN_HERE = ("built", "unavailable")


def choose(
    rows: Sequence[Row], budget: Budget, primary_shape: str, *, trust_noise: bool = True
) -> dict[str, int]:
    """Pick what to ship on each target, by the validation data alone.

    Args:
        rows: All rows.
        budget: The limits.
        primary_shape: The shape whose latency counts.
        trust_noise: Whether a limit that was missed while the machine was noisy counts as missed.

    Returns:
        Label of the target -> index of the fastest row that meets the budget, or of the one that
        misses it least.
    """
    chosen: dict[str, tuple[float, tuple[bool, float], int]] = {}
    for index, row in enumerate(rows):
        if row.kind != "candidate" or primary_shape not in row.latency:
            continue
        bases = {} if trust_noise else _noisy_bases(rows, row, primary_shape)
        missed = shortfall(row, budget, primary_shape, trust_noise=trust_noise, noisy_bases=bases)
        rank = (missed, row.slowness(primary_shape), index)
        if target_label(row) not in chosen or rank < chosen[target_label(row)]:
            chosen[target_label(row)] = rank
    return {label: index for label, (_, _, index) in chosen.items()}


def shortfall(
    row: Row,
    budget: Budget,
    primary_shape: str,
    *,
    trust_noise: bool = True,
    noisy_bases: NoisyBases | None = None,
) -> float:
    """How far a row misses the budget on the validation data, as shares of its limits; 0: it holds.

    The validation data need not have the columns that the test data is sliced by.
    """
    checks = check_row(
        row, budget, row.validation_comparison, primary_shape, noisy_bases=noisy_bases
    )
    return sum(
        check.shortfall
        for check in checks
        if not (check.limit == "max_slice_drop" and check.found is None)
        if trust_noise or not check.noisy
    )


def judge_rows(
    rows: Sequence[Row], budget: Budget, primary_shape: str, *, trust_noise: bool = True
) -> list[Row]:
    """Mark which rows to ship, and compare every measured candidate with the budget.

    Of a target that cannot run here, the nearest row is compared with the limits that the target
    has of its own. What was marked before does not count. Arguments as of `choose`.
    """
    chosen = set(choose(rows, budget, primary_shape, trust_noise=trust_noise).values())
    marked = []
    for index, row in enumerate(rows):
        checks: tuple[Check, ...] = ()
        if row.kind == "candidate" and row.status == "measured":
            checks = check_row(
                row,
                budget,
                row.test_comparison,
                primary_shape,
                noisy_bases=_noisy_bases(rows, row, primary_shape),
            )
        marked.append(row.model_copy(update={"chosen": index in chosen, "checks": checks}))
    for index, checks in _unmeasured(marked, budget, primary_shape).items():
        marked[index] = marked[index].model_copy(update={"checks": checks})
    return marked


def _noisy_bases(rows: Sequence[Row], candidate: Row, shape: str) -> NoisyBases:
    """Device, None for this machine -> limits on ratios to what was measured on a noisy machine."""
    untouched = [row for row in rows if row.kind != "candidate"]
    own = [row for row in untouched if target_label(row) == target_label(candidate)]
    eager = [row for row in untouched if row.kind == "reference"]

    def noisy(limit: str, timed: Iterable[Measurement | Writing | None]) -> frozenset[str]:
        is_noisy = any(each is not None and each.noise.verdict == "noisy" for each in timed)
        return frozenset({limit} if is_noisy else ())

    here = (
        noisy("min_speedup", (row.latency.get(shape) for row in own)),
        noisy("min_speedup_eager", (row.latency.get(shape) for row in eager)),
        noisy("min_writing_speedup", (row.writing for row in own)),
        noisy("min_writing_speedup_eager", (row.writing for row in eager)),
    )
    found: dict[str | None, frozenset[str]] = {None: frozenset().union(*here)}
    for name in candidate.devices:
        there = (row.devices[name].latency for row in own if name in row.devices)
        found[name] = noisy("min_speedup", (each.get(shape) for each in there))
    return found


def _unmeasured(
    rows: Sequence[Row], budget: Budget, primary_shape: str
) -> dict[int, tuple[Check, ...]]:
    """Index of the nearest row of each target that has limits of its own and cannot run here.

    What is not known of it, such as its latency, is a miss.
    """
    found: dict[int, tuple[Check, ...]] = {}
    for label, group in _by_target(rows).items():
        own = budget.alone(label)
        if own.is_empty or any(row.chosen for row in group):
            continue
        checks = {
            index: check_row(row, own, row.test_comparison, primary_shape)
            for index, row in enumerate(rows)
            if row.kind == "candidate" and target_label(row) == label
            if row.status in _CANNOT_RUN_HERE
        }
        if checks:
            nearest = min(checks, key=lambda index: sum(each.shortfall for each in checks[index]))
            found[nearest] = checks[nearest]
    return found


def judged_rows(rows: Sequence[Row]) -> list[Row]:
    """What a verdict rests on: the chosen rows, and those of targets that cannot run here."""
    return [row for row in rows if row.chosen or (row.checks and row.status in _CANNOT_RUN_HERE)]


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
    met: list[bool] = []
    unmeasured: list[bool] = []  # whether they keep what can be known; none of them can ship
    shipped = False
    for label, group in _by_target(rows).items():
        ship = next((row for row in group if row.chosen), None)
        if ship is not None:
            shipped = True
            met.append(not ship.unmet)
            lines.append(_line(label, ship, primary_shape))
            continue
        outcome = _state(group, primary_shape)
        if not any(row.status in _CANNOT_RUN_HERE for row in group):
            met.append(False)  # it could run here, and has nothing to ship
            outcome = f"misses the budget: {outcome}"
        for row in judged_rows(group):
            unmeasured.append(not row.unmet)
            its = "misses" if row.unmet else "keeps"
            missed = f": {'; '.join(row.unmet)}" if row.unmet else ""
            outcome = f"{row.variant} {its} the limits of this target{missed} ({outcome})"
        lines.append(f"{label}: {outcome}")
    passed = any(met) if budget.require == "any" else bool(met) and all([*met, *unmeasured])
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
    noises = [each.noise for row in rows for each in row.latency.values()]
    noises += [row.writing.noise for row in rows if row.writing is not None]
    noisy = any(each.verdict == "noisy" for each in noises)
    return Verdict(met=passed, exit_code=code, lines=tuple(lines), noisy=noisy)


def _by_target(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == "candidate":
            groups.setdefault(target_label(row), []).append(row)
    return groups


def _state(group: Sequence[Row], primary_shape: str) -> str:
    """How far a target with nothing to ship got, and why no further."""
    built = [row for row in group if row.status == "built"]
    kept = [row for row in group if row.bundle]
    if built:
        return f"built, not judged: {_first_reason(built)}"
    if any(row.status == "measured" for row in kept):
        return f"built, but not measured at {primary_shape}"
    if kept:
        return f"built, but not measured: {_first_reason(kept)}"
    return f"no bundle: {_first_reason(group)}"


def _first_reason(rows: Sequence[Row]) -> str:
    reasons = [row.reason for row in rows if row.reason]
    return reasons[0].splitlines()[0] if reasons else "no reason is known"


def _line(label: str, row: Row, primary_shape: str) -> str:
    parts = [f"{row.latency[primary_shape].median_ms:.3f} ms"]
    if row.speedup is not None:
        parts.append(f"{row.speedup.ratio:.3g}x the speed of the untouched model there")
    if row.writing is not None:
        parts.append(f"writes {significant(row.writing.written_per_s)} tokens/s")
    if row.writing_speedup is not None:
        parts.append(f"{row.writing_speedup.ratio:.3g}x those of the untouched model there")
    if row.test_comparison is not None:
        drop = row.test_comparison
        parts.append(
            f"{_gain(drop.drop_points)} points of {row.measure} "
            f"({_gain(drop.high_points)} to {_gain(drop.low_points)})"
        )
        if drop.perplexity is not None:
            rise = drop.perplexity
            parts.append(
                f"{rise.rise:+.1f}% of perplexity ({rise.rise_low:+.1f} to {rise.rise_high:+.1f})"
            )
    if row.size_ratio is not None:
        parts.append(f"{row.size_ratio:.1f}x smaller")
    outcome = "meets the budget" if not row.unmet else "misses it: " + "; ".join(row.unmet)
    return f"{label}: {row.variant} {outcome} ({', '.join(parts)})"


def _gain(lost: float) -> str:
    """Points that were gained, with their sign."""
    return f"{0.0 - lost:+.1f}".replace("-0.0", "+0.0")


def _advice(rows: Sequence[Row], advice: Advice) -> list[str]:
    """What to try after a miss, one line each; nothing where nothing was missed."""
    unmet = [check for row in rows if row.chosen for check in row.checks if not check.met]
    unknown = dict.fromkeys(
        " ".join(filter(None, (check.limit, check.subject)))
        for check in unmet
        if check.found is None
    )
    found = [check for check in unmet if check.found is not None]
    missed = {GOALS[check.limit] for check in found if check.limit in GOALS}
    lines = [f"to try next: {_mend(missed, advice)}"] if missed else []
    if unknown:
        lines.append(f"measure what these limits need, or remove them: {', '.join(unknown)}")
    return lines


def _mend(missed: Collection[str], advice: Advice) -> str:
    if "accuracy" in missed:
        text = _either(advice.get("accuracy", ()))
        return f"first {text}, then a smaller shape for the rest" if len(missed) > 1 else text
    parts = [each for goal in ("speed", "size") if goal in missed for each in advice.get(goal, ())]
    if "speed" in missed:
        parts.append("another target")
    return _either(list(dict.fromkeys(parts)))


def _lost_precision(rows: Sequence[Row]) -> list[str]:
    """Where the bundles that lost too much accuracy are furthest from float32."""
    return [
        f"{target_label(row)}: {row.variant} is furthest from float32 there: "
        f"{worst_layer(row.layers)}"
        for row in rows
        if row.chosen and row.layers
        if any(GOALS.get(check.limit) == "accuracy" for check in row.checks if not check.met)
    ]


def _either(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts) or "a looser budget"
    return f"{', '.join(parts[:-1])}, or {parts[-1]}"
