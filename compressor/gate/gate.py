"""Judge a report that exists: against a budget, and against the last release."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from compressor.gate.budget_file import load_budget
from compressor.gate.limits import target_label, targets_of
from compressor.gate.regression import Tolerance, compare_releases
from compressor.gate.verdict import BUDGET_UNMET, MET, judge, judge_rows
from compressor.report.files import read_answers, read_report, report_file
from compressor.report.schema import Check, Report
from targets.bundle import hash_file

__all__ = ["NOISY", "GateResult", "TargetChecks", "gate"]

NOISY = 9
"""Exit code of a gate that cannot tell, because the machine was noisy."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TargetChecks(_Frozen):
    """What a target ships, or what comes nearest, beside every limit."""

    target: str
    variant: str
    bundle: str | None
    """Folder of the bundle, relative to the report."""
    checks: tuple[Check, ...]

    @property
    def met(self) -> bool:
        """Whether every limit is met."""
        return all(check.met for check in self.checks)


class GateResult(_Frozen):
    """The verdict of a gate."""

    name: str
    report_sha256: str
    """Of the ``report.json`` that was judged."""
    exit_code: int
    outcome: Literal["pass", "fail", "undecided"]
    """``undecided``: latencies that were measured on a noisy machine decide it."""
    lines: tuple[str, ...]
    """For people."""
    targets: tuple[TargetChecks, ...]
    regression: tuple[Check, ...] = ()
    """Against the last release; empty where there is none to compare with."""
    ships: tuple[str, ...] = ()
    """Where the gate passed, the bundles within all limits, relative to the report."""

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
    now = read_report(report)
    wanted = load_budget(
        budget,
        report=report_file(report),
        base=now.budget,
        targets=targets_of(now.rows),
        overrides=overrides,
    )
    rows = judge_rows(now.rows, wanted, now.primary_shape)
    verdict = judge(rows, wanted, now.primary_shape, advice=now.advice)
    judged = now.model_copy(update={"rows": tuple(rows), "verdict": verdict})
    regression: tuple[Check, ...] = ()
    if against is not None:
        before = read_report(against)
        regression = compare_releases(
            judged,
            before,
            answers_now=read_answers(now, report),
            answers_before=read_answers(before, against),
            tolerance=tolerance or Tolerance(),
            allow=allow,
        )
    digest = hash_file(report_file(report))
    return _result(judged, digest, regression, even_if_noisy=even_if_noisy)


def _result(
    report: Report, digest: str, regression: tuple[Check, ...], *, even_if_noisy: bool
) -> GateResult:
    verdict = report.verdict
    targets = tuple(
        TargetChecks(
            target=target_label(row), variant=row.variant, bundle=row.bundle, checks=row.checks
        )
        for row in report.rows
        if row.chosen
    )
    worse = tuple(check for check in regression if not check.met)
    code = verdict.exit_code
    if code == MET and worse:
        code = BUDGET_UNMET
    lines = [*verdict.lines, *(f"worse than the last release: {check.text}" for check in worse)]
    checks = [check for each in targets for check in each.checks] + list(regression)
    # Nothing fails that a quiet machine would not change.
    open_to_doubt = any(check.noisy for check in checks) and all(
        check.met or check.noisy for check in checks
    )
    if open_to_doubt and not even_if_noisy and code in (MET, BUDGET_UNMET):
        code = NOISY
        lines.append(
            "the machine was noisy, so that its latencies decide nothing: measure again on an idle "
            "one with `compressor run --measure-again`, or accept them with --even-if-noisy"
        )
    outcome: Literal["pass", "fail", "undecided"] = "fail"
    if code in (MET, NOISY):
        outcome = "pass" if code == MET else "undecided"
    return GateResult(
        name=report.name,
        report_sha256=digest,
        exit_code=code,
        outcome=outcome,
        lines=tuple(lines),
        targets=targets,
        regression=regression,
        ships=tuple(each.bundle for each in targets if each.bundle and each.met)
        if outcome == "pass"
        else (),
    )
