"""``report.md``: the verdict first, then every row, every pass, and how it was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import yaml

from compressor.report.changes import change_texts
from compressor.report.schema import Report
from compressor.report.steps import step_texts
from compressor.report.summary import (
    RowText,
    absent_groups,
    accuracy_split,
    best,
    device_table,
    environment_facts,
    how_measured,
    intervals_text,
    measure_of,
    noise_reasons,
    row_texts,
)
from compressor.report.wording import (
    NONE,
    bytes_text,
    cost_text,
    count_text,
    milliseconds,
    one_line,
    shape_words,
    smaller_text,
)

__all__ = ["escape", "render_markdown"]

SPECIAL = re.compile(r"([\\`*_\[\]|~])")


def render_markdown(report: Report) -> str:
    """Write a report as GitHub-flavoured Markdown; names in it cannot bring markup of their own."""
    sections = [
        f"# Compression report: {escape(report.name)}",
        *_verdict(report),
        *_headline(report),
        "## Results",
        *_results(report),
        *_missed(report),
        *_absent(report),
        *_devices(report),
        *_changes(report),
        *_passes(report),
        "## Environment",
        _table(("", ""), environment_facts(report), align="ll"),
        *_provenance(report),
    ]
    return "\n\n".join(sections) + "\n"


def _verdict(report: Report) -> list[str]:
    verdict = report.verdict
    parts = ["**Budget met**" if verdict.met else "**Budget not met**"]
    if verdict.lines:
        parts.append(_bullets(verdict.lines))
    if verdict.noisy:
        parts += [
            "> **Noisy machine: do not trust these latencies.** Other work disturbed the "
            "measurements; measure again on an idle machine.",
            _bullets(noise_reasons(report)),
        ]
    return [part for part in parts if part]


def _headline(report: Report) -> list[str]:
    found = best(report)
    if found is None:
        return ["No candidate could be measured."]
    text = found.text
    was = "" if found.baseline_ms is None else f" instead of {milliseconds(found.baseline_ms)} ms"
    rows = [
        ("latency", f"{text.latency} ms{was}"),
        ("speed-up on the same target", _with(text.speedup, text.speedup_interval)),
        ("speed-up against eager PyTorch", text.speedup_eager),
        *_wrote(text),
        (f"{measure_of(report)} drop, points", _with(text.drop, text.drop_interval)),
        ("size", _with(text.size, smaller_text(text.size_ratio))),
    ]
    title = "Best bundle" if found.met else "Nearest candidate (not within the budget)"
    row = text.row
    return [
        f"## {title}: {escape(row.variant)} on {escape(text.target)} ({row.precision})",
        _table(("", ""), rows, align="lr"),
    ]


def _wrote(text: RowText) -> list[tuple[str, str]]:
    if text.written == NONE:
        return []
    return [
        ("first token, ms", text.first_token),
        ("tokens written a second", _with(text.written, text.written_interval)),
        (
            "speed-up of writing on the same target",
            _with(text.writing_speedup, text.writing_speedup_interval),
        ),
    ]


def _results(report: Report) -> list[str]:
    split, measure = accuracy_split(report), measure_of(report)
    header: tuple[str, ...] = (
        "#",
        "variant",
        "target",
        "precision",
        "latency, ms",
        "p90, ms",
        "speed-up",
        "against eager",
        "first token, ms",
        "tokens/s",
        "writing",
        f"{split} {measure}" if split else measure,
        "drop, points",
        "perplexity",
        "size",
        "smaller",
        "budget",
    )
    rows = [_result(text) for text in row_texts(report)]
    align = "rlllrrrrrrrrrrrrl"
    for name in ("perplexity", "first token, ms", "tokens/s", "writing"):
        place = header.index(name)
        if all(row[place] == NONE for row in rows):
            header, *rows = (each[:place] + each[place + 1 :] for each in (header, *rows))
            align = align[:place] + align[place + 1 :]
    return [
        _table(header, rows, align=align),
        f"Latency is the median at {shape_words(report.primary_shape)}. Brackets hold "
        f"{intervals_text(report)}. Speed-up: against the fastest uncompressed model on the same "
        "target. "
        + (
            "Writing: the same of the tokens after the first. "
            if any(row.writing for row in report.rows)
            else ""
        )
        + f"A drop is positive where {measure} was lost. `~`: noisy.",
    ]


def _result(text: RowText) -> tuple[str, ...]:
    row = text.row
    return (
        str(text.number),
        one_line(row.variant),
        text.target,
        row.precision,
        _with(text.latency + ("~" if text.noisy else ""), text.latency_interval),
        text.p90,
        _with(text.speedup, text.speedup_interval),
        text.speedup_eager,
        text.first_token,
        _with(text.written, text.written_interval),
        _with(text.writing_speedup, text.writing_speedup_interval),
        _with(text.accuracy, text.accuracy_interval),
        _with(text.drop, text.drop_interval),
        text.perplexity,
        text.size,
        text.size_ratio,
        text.state,
    )


def _missed(report: Report) -> list[str]:
    missed = [text for text in row_texts(report) if text.mark in ("nearest", "missed")]
    lines = [f"{_name(text)}: {'; '.join(text.row.unmet)}" for text in missed]
    return ["### Missed the budget", _bullets(lines)] if lines else []


def _absent(report: Report) -> list[str]:
    lines = [
        f"{', '.join(_name(text) for text in group)}: {group[0].state}: {group[0].reason}"
        for group in absent_groups(report)
    ]
    return ["### Not measured here", _bullets(lines)] if lines else []


def _devices(report: Report) -> list[str]:
    table = device_table(report)
    if table is None:
        return []
    parts = ["## On the devices"]
    if table.rows:
        header = ("#", "variant", "target", "precision", *(f"{name}, ms" for name in table.names))
        rows = [
            (
                str(text.number),
                one_line(text.row.variant),
                text.target,
                text.row.precision,
                *(_with(value, more) for value, more in cells),
            )
            for text, cells in table.rows
        ]
        parts.append(_table(header, rows, align="rlll" + "r" * len(table.names)))
        parts.append(
            f"Median latency at {report.primary_shape}; in brackets, how many times as fast as the "
            "fastest uncompressed model of the same target on that device. `~`: noisy."
        )
    if table.absent:
        parts.append(_bullets(f"{name}: {reason}" for name, reason in table.absent))
    return parts


def _passes(report: Report) -> list[str]:
    parts: list[str] = []
    header = ("#", "pass", "time", "parameters", "size", "validation accuracy", "measured")
    for variant in report.steps:
        texts = step_texts(report, variant)
        rows = [
            (
                str(text.number),
                text.step.pass_name,
                text.duration,
                _with(text.parameters, text.parameters_change),
                _with(text.size, text.size_change),
                _with(text.accuracy, text.accuracy_change),
                ", ".join(f"{name} {value}" for name, value in text.metrics),
            )
            for text in texts
        ]
        notes = [f"{text.step.pass_name}: {note}" for text in texts for note in text.step.notes]
        if rows:
            parts.append(f"### {escape(variant)}")
            parts.append(_table(header, rows, align="rlrrrrl"))
            parts += [_bullets(notes)] if notes else []
    return ["## Passes", *parts] if parts else []


def _provenance(report: Report) -> list[str]:
    model = report.model
    facts = [
        ("model", f"{model.name}: {model.architecture}"),
        ("parameters", count_text(model.num_parameters)),
        ("size", bytes_text(model.size_bytes)),
        ("sha256", model.sha256),
        *((f"data {name}", _value(value)) for name, value in report.data.items()),
        ("created", report.created),
        ("took", cost_text(report.duration_s, report.peak_memory_bytes)),
        ("seed", str(report.seed)),
    ]
    recipe = report.model_dump(mode="json", include={"recipe"})["recipe"]
    notes = [f"{_name(t)}: {note}" for t in row_texts(report) for note in t.row.notes]
    return [
        "## How it was measured",
        *([_bullets(how_measured(report))] if how_measured(report) else ["Nothing was measured."]),
        "## Origin",
        _table(("", ""), facts, align="ll"),
        *(["## Notes", _bullets(notes)] if notes else []),
        "## Recipe",
        _fenced(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), "yaml"),
    ]


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _name(text: RowText) -> str:
    # Not "#5": where this is pasted into a ticket, that would link to another ticket.
    return (
        f"row {text.number}, {one_line(text.row.variant)} on {text.target} ({text.row.precision})"
    )


def _with(value: str, more: str) -> str:
    return f"{value} ({more})" if more else value


def escape(text: str) -> str:
    """Text on one line that Markdown and HTML show as it stands."""
    escaped = SPECIAL.sub(r"\\\1", one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _changes(report: Report) -> list[str]:
    """What the chosen bundles lose by metric, class and slice."""
    parts: list[str] = []
    for change in change_texts(report):
        parts += [
            f"## What {escape(_name(change.text))} changes",
            "; ".join(f"{name}: {value}" for name, value in change.facts),
            _table(
                ("on", "examples", "untouched", "bundle", "drop, points"),
                (
                    (
                        each.title,
                        each.num_rows,
                        each.before,
                        each.after,
                        ("▼ " if each.certain else "") + _with(each.drop, each.drop_interval),
                    )
                    for each in change.groups
                ),
                align="lrrrr",
            ),
        ]
    if parts:
        parts.append("▼: lost beyond chance, as the 95% interval leaves out 0.")
    return parts


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, align: str) -> str:
    rules = ["---:" if side == "r" else ":---" for side in align]
    lines = [tuple(header), tuple(rules), *(tuple(escape(cell) for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
