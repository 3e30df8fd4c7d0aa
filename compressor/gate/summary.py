"""A gate as Markdown, for the job pages of GitHub and GitLab."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.gate.gate import GateResult
from compressor.report.markdown import escape
from compressor.report.schema import Check

__all__ = ["markdown_summary"]

_TITLES = {"pass": "passed", "fail": "failed", "undecided": "undecided", "error": "not judged"}
_MARKS = {"pass": "✅", "fail": "❌", "undecided": "⚠️", "error": "❌"}


def markdown_summary(result: GateResult) -> str:
    """Write a result as Markdown: the verdict, then every limit beside what was found."""
    title = f"{_MARKS[result.outcome]} Release gate {_TITLES[result.outcome]}"
    parts = [f"## {title}: {escape(result.name)}", *(f"- {escape(line)}" for line in result.lines)]
    for each in result.targets:
        parts += ["", f"### {escape(each.variant)} on {escape(each.target)}", ""]
        parts += _table(each.checks, result)
    if result.regression:
        parts += ["", "### Against the last release", "", *_table(result.regression, result)]
    return "\n".join(parts) + "\n"


def _table(checks: Sequence[Check], result: GateResult) -> list[str]:
    if not checks:
        return ["No limits."]
    rows = ["| | limit | found |", "|---|---|---|"]
    for check in checks:
        mark = "✅" if check.met else "❌"
        if check.noisy:
            mark = f"{mark if result.even_if_noisy else '⚠️'} noisy"
        name = f"{check.limit} {check.subject}".strip()
        rows.append(f"| {mark} | {escape(name)} | {escape(check.text)} |")
    return rows
