"""Judge a report that exists: against a budget, and against the last release."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from compressor.errors import BudgetFileError, ComparisonError
from compressor.gate.budget_file import load_budget, unknown_targets
from compressor.gate.limits import target_label, targets_of
from compressor.gate.regression import Tolerance, compare_releases
from compressor.gate.verdict import BUDGET_UNMET, MET, judge, judge_rows, judged_rows
from compressor.report.files import read_answers, read_report, report_file
from compressor.report.schema import Check, Row, Verdict
from compressor.report.wording import one_line
from targets.bundle import hash_file
from targets.errors import ToolkitError

__all__ = ["NOISY", "GateResult", "TargetChecks", "gate", "not_judged"]

NOISY = 9
"""Exit code of a gate that cannot tell, because the machine was noisy."""

Outcome = Literal["pass", "fail", "undecided", "error"]
_OUTCOMES: Mapping[int, Outcome] = {MET: "pass", NOISY: "undecided"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TargetChecks(_Frozen):
    """What a target ships, or what comes nearest, beside every limit."""

    target: str
    variant: str
    bundle: str | None
    """Folder of the bundle, relative to the report; None where nothing was measured to ship."""
    checks: tuple[Check, ...]

    @property
    def met(self) -> bool:
        """Whether every limit is met."""
        return all(check.met for check in self.checks)

    @property
    def noisy(self) -> bool:
        """Whether a limit rests on a latency that other work disturbed."""
        return any(check.noisy for check in self.checks)


class GateResult(_Frozen):
    """The verdict of a gate."""

    name: str
    report_sha256: str
    """Of the ``report.json`` that was judged; empty where it cannot be read."""
    exit_code: int
    outcome: Outcome
    """``undecided``: latencies that were measured on a noisy machine decide it. ``error``: nothing
    was judged, as the report, the budget or the comparison cannot be used."""
    even_if_noisy: bool = False
    """Whether such latencies were believed."""
    lines: tuple[str, ...]
    """For people."""
    targets: tuple[TargetChecks, ...]
    regression: tuple[Check, ...] = ()
    """Against the last release; empty where there is none to compare with."""
    ships: tuple[str, ...] = ()
    """Where the gate passed, the bundles within all limits beyond doubt, relative to the report."""

    @property
    def passed(self) -> bool:
        """Whether the release may go on."""
        return self.exit_code == MET


def gate(
    report: Path,
    *,
    budget: Path | None = None,
    overrides: Sequence[str] = (),
    against: Path | None = None,
    tolerance: Tolerance | None = None,
    allow: Collection[str] = (),
    even_if_noisy: bool = False,
) -> GateResult:
    """Judge a report.

    Args:
        report: ``report.json``, or the folder that holds it.
        budget: A file of limits, or a recipe; by default those that the report was made with.
        overrides: ``limit=value`` pairs that stand in for those of the budget.
        against: The report of the last release.
        tolerance: How much worse than the last release is still as good.
        allow: In what the two may differ; see `compressor.gate.regression.DIFFERENCES`.
        even_if_noisy: Believe latencies that other work disturbed.

    Raises:
        ReportError: A report cannot be read.
        BudgetFileError: The limits do not hold.
        ComparisonError: The two reports cannot be compared.
    """
    where = budget or (Path("command line") if overrides else report_file(report))
    given = None if budget is None else load_budget(budget, where=where, overrides=overrides)
    now = read_report(report)
    wanted = given or load_budget(None, where=where, base=now.budget, overrides=overrides)
    unknown = list(unknown_targets(wanted, targets_of(now.rows), "report"))
    if unknown:
        raise BudgetFileError(unknown, where=where)
    rows = judge_rows(now.rows, wanted, now.primary_shape)
    verdict = judge(rows, wanted, now.primary_shape, advice=now.advice)
    regression: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    if against is not None:
        before = read_report(against)
        regression, notes = compare_releases(
            now.model_copy(update={"rows": tuple(rows)}),
            before,
            answers_now=read_answers(now, report),
            answers_before=read_answers(before, against),
            tolerance=tolerance or Tolerance(),
            allow=allow,
        )
    # Without the noise, another row might have been chosen.
    others = judge_rows(now.rows, wanted, now.primary_shape, trust_noise=False)
    possible = {
        _exit_code(
            judge(_settled_rows(marked, met=met), wanted, now.primary_shape),
            _settled(regression, met=met),
        )
        for marked, met in ((rows, True), (rows, False), (others, True))
    }
    code = _exit_code(verdict, regression)
    if len(possible) > 1 and not even_if_noisy:
        code = NOISY
    if against is not None and not regression and code in (MET, NOISY):
        raise ComparisonError(
            "nothing can be compared with the last release",
            where=report_file(against),
            given="; ".join(notes),
            fix="pass the report of a release with the same targets, or leave --against out",
        )
    targets = tuple(
        TargetChecks(
            target=target_label(row),
            variant=row.variant,
            bundle=row.bundle if row.chosen else None,
            checks=row.checks,
        )
        for row in judged_rows(rows)
    )
    return GateResult(
        name=now.name,
        report_sha256=hash_file(report_file(report)),
        exit_code=code,
        outcome=_OUTCOMES.get(code, "fail"),
        even_if_noisy=even_if_noisy,
        lines=(
            *verdict.lines,
            *(f"worse than the last release: {each.text}" for each in regression if not each.met),
            *notes,
            *_on_noise(targets, code, even_if_noisy=even_if_noisy),
        ),
        targets=targets,
        regression=regression,
        ships=tuple(
            each.bundle
            for each in targets
            if each.bundle and each.met and (even_if_noisy or not each.noisy)
        )
        if code == MET
        else (),
    )


def not_judged(report: Path, error: ToolkitError) -> GateResult:
    """The result where a gate ends with an error, for those who read what it writes.

    Args:
        report: What was to be judged.
        error: Why it was not.
    """
    file = report_file(report)
    try:
        digest = hash_file(file)
    except OSError:
        digest = ""
    return GateResult(
        name=str(report),
        report_sha256=digest,
        exit_code=error.exit_code,
        outcome="error",
        lines=(one_line(str(error)),),
        targets=(),
    )


def _settled(checks: Sequence[Check], *, met: bool) -> tuple[Check, ...]:
    """The checks as they would be if all that is in doubt were met, or missed."""
    return tuple(
        check.model_copy(update={"met": met}) if check.noisy else check for check in checks
    )


def _settled_rows(rows: Sequence[Row], *, met: bool) -> list[Row]:
    return [row.model_copy(update={"checks": _settled(row.checks, met=met)}) for row in rows]


def _exit_code(verdict: Verdict, regression: Sequence[Check]) -> int:
    worse = any(not check.met for check in regression)
    return BUDGET_UNMET if verdict.exit_code == MET and worse else verdict.exit_code


def _on_noise(targets: Sequence[TargetChecks], code: int, *, even_if_noisy: bool) -> Iterator[str]:
    """What noise kept from being decided, and from being shipped."""
    if code == NOISY:
        yield (
            "the machine was noisy, so its latencies cannot be judged: measure again on an idle "
            "one with `compressor run --measure-again`, or accept them with --even-if-noisy"
        )
    if code == MET and not even_if_noisy:
        yield from (
            f"{each.target}: do not ship {each.variant}: the machine was noisy, so its latency is "
            "in doubt"
            for each in targets
            if each.bundle and each.met and each.noisy
        )
