"""How what is shipped changed from run to run: latency, accuracy and size, target by target."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from compressor.report.axes import Axis, linear_axis, percent_labels
from compressor.report.charts import RADIUS
from compressor.report.comparison import Comparison, Entry, Run
from compressor.report.drawing import (
    Chart,
    Label,
    Shape,
    marker,
    polyline,
    segment,
    shorten,
    text_width,
)
from compressor.report.wording import bytes_text, capitalized

__all__ = ["History", "TargetHistory", "histories_of"]

WIDTH, HEIGHT = 340, 192
LEFT, RIGHT, TOP, BOTTOM = 58, WIDTH - 14, 24, HEIGHT - 40
HEADROOM = 1.08
"""Above the largest value of an axis from zero, so that its point is not on the edge."""


@dataclass(frozen=True)
class TargetHistory:
    """What a lineage shipped on one target.

    Attributes:
        target: Its label.
        charts: Latency, accuracy and size; those that at least two runs have.
        rows: Each run, with what it ships there, if anything.
    """

    target: str
    charts: tuple[Chart, ...]
    rows: tuple[tuple[Run, Entry | None], ...]


@dataclass(frozen=True)
class History:
    """Runs with one recipe name, or of one model.

    Attributes:
        title: The names of the recipes.
        targets: Those on which at least two of the runs ship something; there may be none.
    """

    title: str
    targets: tuple[TargetHistory, ...]


@dataclass(frozen=True)
class _Value:
    value: float
    low: float
    high: float
    text: str
    joins: Hashable
    """A line joins values for which this is equal."""


@dataclass(frozen=True)
class _Panel:
    title: str
    of: Callable[[Entry], _Value | None]
    form: Callable[[Sequence[float]], Sequence[str]]
    """Texts of ticks."""
    from_zero: bool


def histories_of(found: Comparison) -> tuple[History, ...]:
    """The history of each group of runs that are of one recipe or model, oldest first."""
    histories = []
    for runs in _lineages(found.runs):
        numbers = {run.number for run in runs}
        shipped = [e for e in found.entries if e.run.number in numbers and e.text.mark == "chosen"]
        targets = []
        for target in dict.fromkeys(entry.text.target for entry in shipped):
            own = {e.run.number: e for e in shipped if e.text.target == target}
            if len(own) > 1:
                rows = tuple((run, own.get(run.number)) for run in runs)
                targets.append(TargetHistory(target, _charts(target, rows, found.measure), rows))
        title = ", ".join(dict.fromkeys(run.report.name for run in runs))
        histories.append(History(title, tuple(targets)))
    return tuple(histories)


def _lineages(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that share a name or an untouched model, also by way of others; oldest first."""
    groups: list[list[Run]] = []
    for run in runs:
        related = [group for group in groups if any(_is_related(run, each) for each in group)]
        groups = [group for group in groups if group not in related]
        groups.append([run, *itertools.chain.from_iterable(related)])
    latest = datetime.max.replace(tzinfo=UTC)
    return [
        sorted(group, key=lambda run: (run.moment or latest, run.number))
        for group in groups
        if len(group) > 1
    ]


def _is_related(run: Run, other: Run) -> bool:
    one, two = run.report, other.report
    return one.name == two.name or one.model.sha256 == two.model.sha256


def _latency(entry: Entry) -> _Value | None:
    if entry.measured is None:
        return None
    low, high = entry.measured.interval
    text = f"{entry.text.latency} ms ({entry.text.latency_interval})"
    return _Value(entry.measured.median_ms, low, high, text, entry.ground)


def _accuracy(entry: Entry) -> _Value | None:
    if entry.accuracy is None:
        return None
    text = f"{entry.text.accuracy} ({entry.text.accuracy_interval})"
    accuracy = entry.accuracy
    return _Value(accuracy.value, accuracy.low, accuracy.high, text, entry.data_key)


def _size(entry: Entry) -> _Value | None:
    size = entry.text.row.size_bytes
    return None if size is None else _Value(size, size, size, entry.text.size, "size")


def _panels(measure: str) -> tuple[_Panel, ...]:
    return (
        _Panel("latency, ms", _latency, lambda ticks: [f"{t:g}" for t in ticks], from_zero=True),
        _Panel(measure, _accuracy, percent_labels, from_zero=False),
        _Panel("size", _size, lambda ticks: [bytes_text(t) for t in ticks], from_zero=True),
    )


def _charts(
    target: str, rows: Sequence[tuple[Run, Entry | None]], measure: str
) -> tuple[Chart, ...]:
    charts = []
    for panel in _panels(measure):
        values = [(run, panel.of(entry) if entry else None) for run, entry in rows]
        if sum(value is not None for _, value in values) > 1:
            charts.append(_chart(panel, target, values))
    return tuple(charts)


def _chart(panel: _Panel, target: str, values: Sequence[tuple[Run, _Value | None]]) -> Chart:
    known = [value for _, value in values if value]
    ends = [end for each in known for end in (each.low, each.high)]
    ends.append(max(ends) * HEADROOM if panel.from_zero else max(ends))
    up = linear_axis(ends, BOTTOM, TOP, from_zero=panel.from_zero)
    step = (RIGHT - LEFT) / len(values)
    places = [LEFT + step * (index + 0.5) for index in range(len(values))]
    ticks = up.ticks(4)
    shapes = [Shape(segment(LEFT, up.at(t), RIGHT, up.at(t)), "grid") for t in ticks]
    labels = [Label(0, 12, panel.title, "name")]
    labels += [
        Label(LEFT - 7, up.at(tick) + 4, text, "axis", "end")
        for tick, text in zip(ticks, panel.form(ticks), strict=True)
    ]
    drawn = [(x, run, value) for x, (run, value) in zip(places, values, strict=True) if value]
    shapes += [
        Shape(polyline((x, up.at(value.value)) for x, _, value in drawn if value.joins == each),
              "curve plain")
        for each in dict.fromkeys(value.joins for _, _, value in drawn)
    ]  # fmt: skip
    for x, run, value in drawn:
        shapes += _dot(x, run, value, up)
    labels += _dates([run for run, _ in values], places)
    told = "; ".join(f"{run.created} {value.text}" for _, run, value in drawn)
    summary = f"{capitalized(panel.title)} of what is shipped on {target}, by date: {told}."
    return Chart(WIDTH, HEIGHT, summary, tuple(shapes), tuple(labels))


def _dot(x: float, run: Run, value: _Value, up: Axis) -> list[Shape]:
    return [
        Shape(segment(x, up.at(value.low), x, up.at(value.high)), f"error {run.css}"),
        Shape(
            marker("circle", x, up.at(value.value), RADIUS - 1),
            f"point {run.css}",
            f"{run.label}, {run.created}: {value.text}",
        ),
    ]


def _dates(runs: Sequence[Run], places: Sequence[float]) -> list[Label]:
    """The day of each run, or its hour where all are of one; as many as there is room for."""
    moments = [run.moment for run in runs]
    days = {moment.date() for moment in moments if moment}
    form = "%H:%M" if len(days) == 1 else "%d %b"
    texts = [moment.strftime(form) if moment else "?" for moment in moments]
    room = text_width(max(texts, key=len)) + 8
    each = max(1, round(room / (places[1] - places[0]) + 0.499))
    labels = [
        Label(x, BOTTOM + 17, text, "axis", "middle")
        for x, text in list(zip(places, texts, strict=True))[::each]
    ]
    span = f"{runs[0].created} to {runs[-1].created}"
    middle = (LEFT + RIGHT) / 2
    return [*labels, Label(middle, HEIGHT - 4, shorten(span, WIDTH - 20), "axis", "middle")]
