"""``compressor gate``: judge a report that exists, for a release step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.files import write_text

if TYPE_CHECKING:
    from compressor.gate.gate import GateResult

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(gate)


def gate(
    report: Annotated[Path, typer.Argument(help="report.json, or the folder that holds it.")],
    budget: Annotated[
        Path | None,
        typer.Option("--budget", "-b", help="A YAML file of limits. [default: those of the run]"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="A limit: max_latency_ms=5. Repeatable."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="The report of the last release, to compare with.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="What may differ from the last release: machine, data, shape, settings or model. "
            "Repeatable."
        ),
    ] = None,
    max_slowdown: Annotated[
        float,
        typer.Option(
            min=0, max=1000, help="Tolerated slow-down against the last release, as a share."
        ),
    ] = 0.03,
    even_if_noisy: Annotated[
        bool,
        typer.Option("--even-if-noisy", help="Accept latencies that other work disturbed."),
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    summary: Annotated[
        Path | None,
        typer.Option(help="Write Markdown here; appended if the file is $GITHUB_STEP_SUMMARY."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the result here, as JSON.")
    ] = None,
) -> None:
    """Judge a report against a budget, and against the last release.

    Exits with 0 if the release may proceed, 5 if not, 6 if nothing was measured, and 9 if the
    verdict depends on latencies from a noisy machine only.
    """
    from compressor.errors import ReportError
    from compressor.gate.gate import gate as judge_report
    from compressor.gate.gate import not_judged
    from compressor.gate.regression import DIFFERENCES, Tolerance
    from compressor.report.files import report_file
    from targets.errors import ToolkitError

    for each in allow or ():
        if each not in DIFFERENCES:
            raise typer.BadParameter(f"--allow {each}: use {', '.join(DIFFERENCES)}")
    read = [report_file(each).resolve() for each in (report, against, budget) if each]
    for option, path in (("--junit", junit), ("--summary", summary), ("--output", output)):
        if path is not None and path.resolve() in read:
            raise typer.BadParameter(f"{option} {path} is an input of the gate; pass another file")
    try:
        result = judge_report(
            report,
            budget=budget,
            overrides=set_ or (),
            against=against,
            tolerance=Tolerance(latency=max_slowdown),
            allow=allow or (),
            even_if_noisy=even_if_noisy,
        )
    except ToolkitError as error:
        # Who reads these files must not find those of an earlier gate.
        try:
            _write(not_judged(report, error), junit, summary, output)
        except ReportError as unwritten:
            typer.echo(f"error: {unwritten}", err=True)
        raise
    _write(result, junit, summary, output)
    _show(result)
    raise typer.Exit(result.exit_code)


def _show(result: GateResult) -> None:
    from rich.table import Table
    from rich.text import Text

    from compressor.cli.progress import console
    from compressor.report.wording import one_line

    rows = [(each.target, check) for each in result.targets for check in each.checks]
    rows += [("last release", check) for check in result.regression]
    if rows:
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        for target, check in rows:
            mark, style = ("ok", "green") if check.met else ("MISSED", "bold red")
            if check.noisy:
                mark, style = f"{mark} ~noisy", style if result.even_if_noisy else "yellow"
            cells = (one_line(each) for each in (target, check.limit, check.text))
            table.add_row(Text(mark, style), *cells)
        console().print(table)
    for line in result.lines:
        console().print(one_line(line), soft_wrap=True)
    title = {"pass": "PASSED", "fail": "FAILED", "undecided": "UNDECIDED"}[result.outcome]
    style = {"pass": "bold green", "fail": "bold red", "undecided": "bold yellow"}[result.outcome]
    console().print(f"gate {title}", style=style)


def _write(
    result: GateResult, junit: Path | None, summary: Path | None, output: Path | None
) -> None:
    from compressor.gate.junit import junit_xml
    from compressor.gate.summary import markdown_summary

    if junit is not None:
        write_text(junit, junit_xml(result))
    if summary is not None:
        # The page of a job on GitHub is one file, to which every step adds.
        page = os.environ.get("GITHUB_STEP_SUMMARY")
        is_page = bool(page) and summary.resolve() == Path(str(page)).resolve()
        write_text(summary, markdown_summary(result), mode="a" if is_page else "w")
    if output is not None:
        write_text(output, result.model_dump_json(indent=1) + "\n")
