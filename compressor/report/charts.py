"""The charts of the HTML report, as drawings that its template prints as SVG."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compressor.report.axes import Axis, linear_axis, log_axis
from compressor.report.drawing import (
    MARKERS,
    Box,
    Chart,
    Label,
    Shape,
    bar,
    marker,
    place,
    segment,
    shorten,
    text_width,
)
from compressor.report.pareto import pareto_front
from compressor.report.schema import Accuracy, Report
from compressor.report.summary import (
    RowText,
    accuracy_of,
    accuracy_split,
    measurement_of,
    row_texts,
)
from compressor.report.wording import bytes_text, significant
from targets.measurement import Measurement

__all__ = [
    "NUM_COLOURS",
    "Series",
    "latency_chart",
    "name_of",
    "scatter_chart",
    "series_of",
    "size_chart",
]

NUM_COLOURS = 5
MAX_DOTS = 90
"""Raw times drawn for a row: more would only cover each other, and make the file large."""

RADIUS = 6
ROW_HEIGHT = 44
FOOT = 40


@dataclass(frozen=True)
class Series:
    """How the rows of one target look: a colour class of the page, and a marker."""

    target: str
    css: str
    marker: str

    @property
    def key(self) -> Chart:
        """The marker alone, for a legend."""
        shape = Shape(marker(self.marker, 9, 9, RADIUS), f"point {self.css}")
        return Chart(18, 18, f"marker of {self.target}", (shape,), ())


def series_of(report: Report) -> dict[str, Series]:
    """Target label -> its look; eager PyTorch, the reference, is grey."""
    found: dict[str, Series] = {}
    for text in row_texts(report):
        if text.target in found:
            continue
        if text.row.kind == "reference":
            found[text.target] = Series(text.target, "reference", "hexagon")
        else:
            index = sum(each.css != "reference" for each in found.values())
            css = f"series-{index % NUM_COLOURS}"
            found[text.target] = Series(text.target, css, MARKERS[index % len(MARKERS)])
    return found


def name_of(text: RowText) -> str:
    """A row in full, for titles and summaries."""
    return f"{text.number} {text.row.variant} · {text.target} {text.row.precision}"


@dataclass(frozen=True)
class _Point:
    text: RowText
    measured: Measurement
    accuracy: Accuracy
    x: float = 0
    y: float = 0


def scatter_chart(report: Report, width: float, height: float) -> Chart | None:
    """Accuracy against latency with the Pareto front; None where no row has both.

    Labels hold the number and variant of a row where there is room, else its number.
    """
    split = accuracy_split(report)
    found = [
        _Point(text, measured, accuracy)
        for text in row_texts(report)
        if (measured := measurement_of(report, text.row))
        and (accuracy := accuracy_of(text.row, split))
    ]
    if not found:
        return None
    area = Box(52, 30, width - 12, height - 46)
    across = log_axis([point.measured.median_ms for point in found], area.left, area.right)
    bounds = [end for point in found for end in (point.accuracy.low, point.accuracy.high)]
    up = linear_axis(bounds, area.bottom, area.top)
    points = [
        replace(p, x=across.at(p.measured.median_ms), y=up.at(p.accuracy.value)) for p in found
    ]
    front = pareto_front([(p.measured.median_ms, p.accuracy.value) for p in points])
    shapes, labels = _grid(across, up, area, f"latency at {report.primary_shape}, ms (log scale)")
    shapes.append(Shape(_staircase([points[index] for index in front]), "front"))
    labels.append(Label(0, 12, f"{split} accuracy", "axis"))
    series = series_of(report)
    for point in points:
        shapes += _point(point, up, series[point.text.target])
    labels += _point_labels(points, front, area, numbers_only=width < 500)
    names = "; ".join(name_of(points[index].text) for index in front)
    summary = (
        f"Scatter chart of {split} accuracy against latency for {len(points)} rows. "
        f"On the Pareto front, fastest first: {names}."
    )
    return Chart(width, height, summary, tuple(shapes), tuple(labels))


def _grid(across: Axis, up: Axis, area: Box, title: str) -> tuple[list[Shape], list[Label]]:
    shapes, labels = [], []
    for tick in across.ticks(max(int((area.right - area.left) / 45), 2)):
        x = across.at(tick)
        shapes.append(Shape(segment(x, area.top, x, area.bottom), "grid"))
        labels.append(Label(x, area.bottom + 17, f"{tick:g}", "axis", "middle"))
    ticks = up.ticks(6)
    decimals = 0 if all(abs(tick * 100 - round(tick * 100)) < 1e-6 for tick in ticks) else 1
    for tick in ticks:
        y = up.at(tick)
        shapes.append(Shape(segment(area.left, y, area.right, y), "grid"))
        labels.append(Label(area.left - 8, y + 4, f"{tick:.{decimals}%}", "axis", "end"))
    labels.append(Label((area.left + area.right) / 2, area.bottom + 38, title, "axis", "middle"))
    return shapes, labels


def _staircase(front: Sequence[_Point]) -> str:
    path = f"M{front[0].x:.1f} {front[0].y:.1f}"
    return path + "".join(f"H{point.x:.1f}V{point.y:.1f}" for point in front[1:])


def _point(point: _Point, up: Axis, series: Series) -> list[Shape]:
    low, high = up.at(point.accuracy.low), up.at(point.accuracy.high)
    css = "point" if point.text.row.kind == "candidate" else "point hollow"
    title = (
        f"{name_of(point.text)}: {point.text.latency} ms, {point.text.accuracy} "
        f"({point.text.accuracy_interval})"
    )
    shapes = [
        Shape(segment(point.x, low, point.x, high), f"error {series.css}"),
        Shape(marker(series.marker, point.x, point.y, RADIUS), f"{css} {series.css}", title),
    ]
    if point.text.row.chosen:
        shapes.append(Shape(marker("circle", point.x, point.y, RADIUS + 5), "ring"))
    return shapes


def _point_labels(
    points: Sequence[_Point], front: Sequence[int], area: Box, *, numbers_only: bool
) -> list[Label]:
    """Numbers join the chart with the table; the rows that matter most get their place first."""
    taken = [Box(p.x - 8, p.y - 8, p.x + 8, p.y + 8) for p in points]
    for left, right in itertools.pairwise(points[index] for index in front):
        taken.append(Box(left.x, left.y - 2, right.x, left.y + 2))
        taken.append(Box(right.x - 2, right.y, right.x + 2, left.y))
    order = sorted(
        range(len(points)), key=lambda i: (not points[i].text.row.chosen, i not in front, i)
    )
    labels = []
    for index in order:
        text = points[index].text
        number = str(text.number)
        named = f"{number} {shorten(text.row.variant, 160)}"
        gap = 15.0 if text.row.chosen else 11.0
        texts = (number,) if numbers_only else (named, number)
        label, room = place(points[index].x, points[index].y, texts, taken, area, gap=gap)
        labels.append(replace(label, css="name chosen" if text.row.chosen else "name"))
        taken.append(room)
    return labels


def latency_chart(report: Report, width: float) -> Chart | None:
    """Every raw time at the primary shape, a row each; None where nothing was measured."""
    rows = [
        (text, measured)
        for text in row_texts(report)
        if (measured := measurement_of(report, text.row))
    ]
    if not rows:
        return None
    ends = [end for _, each in rows for end in (each.run_ms.min(), each.run_ms.max())]
    axis = log_axis([float(end) for end in ends], 2, width - 2)
    series = series_of(report)
    lines = [(text, f"{text.latency} ms" + (" noisy" if text.noisy else "")) for text, _ in rows]
    measured_of = {text.number: measured for text, measured in rows}

    def draw(text: RowText, top: float) -> list[Shape]:
        return _spread(measured_of[text.number], axis, top, series[text.target].css)

    title = f"latency at {report.primary_shape}, ms (log scale)"
    summary = "Spread of the raw latencies. Medians: " + "; ".join(
        f"{name_of(text)} {value}" for text, value in lines
    )
    return _row_chart(lines, axis, width, draw, title=title, summary=summary, form=_plain)


def _spread(measured: Measurement, axis: Axis, top: float, css: str) -> list[Shape]:
    """Dots for runs, a line from the 1st to the 99th percentile, a box around the middle half."""
    times = np.sort(measured.run_ms)
    dots = times[np.linspace(0, len(times) - 1, min(len(times), MAX_DOTS)).round().astype(int)]
    middle = top + 8
    # The golden ratio spreads neighbours apart without looking like a pattern.
    offsets = (np.arange(len(dots)) * 0.618034 % 1 - 0.5) * 15
    path = "".join(
        f"M{axis.at(float(value)):.1f} {middle + offset:.1f}h0"
        for value, offset in zip(dots, offsets, strict=True)
    )
    p1, q1, q2, q3, p99 = (axis.at(float(v)) for v in np.percentile(times, (1, 25, 50, 75, 99)))
    title = (
        f"quartiles {significant(float(np.percentile(times, 25)))} to "
        f"{significant(float(np.percentile(times, 75)))} ms, p99 {significant(measured.p99_ms)} ms"
    )
    return [
        Shape(path, f"dots {css}"),
        Shape(segment(p1, middle, p99, middle), f"whisker {css}"),
        Shape(bar(q1, middle - 6, max(q3, q1 + 1), middle + 6), f"box {css}", title),
        Shape(segment(q2, middle - 8, q2, middle + 8), "median"),
    ]


def size_chart(report: Report, width: float) -> Chart | None:
    """Size of each bundle; None where none was built."""
    texts = [text for text in row_texts(report) if text.row.size_bytes]
    if not texts:
        return None
    axis = linear_axis([text.sort["size"] for text in texts], 2, width - 2, from_zero=True)
    series = series_of(report)
    lines = [(text, _size_value(text, width)) for text in texts]

    def draw(text: RowText, top: float) -> list[Shape]:
        css = "bar" if text.row.kind == "candidate" else "bar hollow"
        right = max(axis.at(text.sort["size"]), axis.start + 2)
        return [
            Shape(bar(axis.start, top + 1, right, top + 14), f"{css} {series[text.target].css}")
        ]

    summary = "Sizes on disk: " + "; ".join(f"{name_of(text)} {value}" for text, value in lines)
    return _row_chart(
        lines, axis, width, draw, title="size on disk", summary=summary, form=bytes_text
    )


def _size_value(text: RowText, width: float) -> str:
    is_worth_saying = width > 500 and text.sort.get("size_ratio", 1) != 1
    return f"{text.size}, {text.size_ratio} smaller" if is_worth_saying else text.size


def _row_chart(
    lines: Sequence[tuple[RowText, str]],
    axis: Axis,
    width: float,
    draw: Callable[[RowText, float], list[Shape]],
    *,
    title: str,
    summary: str,
    form: Callable[[float], str],
) -> Chart:
    """A row of the report each: its name on the left, its value on the right, a drawing below."""
    height = len(lines) * ROW_HEIGHT + FOOT
    bottom = height - FOOT
    shapes: list[Shape] = []
    labels: list[Label] = []
    for tick in axis.ticks(max(int(width / 75), 2)):
        x = axis.at(tick)
        shapes.append(Shape(segment(x, 0, x, bottom + 2), "grid"))
        anchor = "start" if x < 25 else "end" if x > width - 25 else "middle"
        labels.append(Label(x, bottom + 17, form(tick), "axis", anchor))
    labels.append(Label(width / 2, bottom + 36, title, "axis", "middle"))
    for index, (text, value) in enumerate(lines):
        top = index * ROW_HEIGHT
        tail = f" · {text.target} {text.row.precision}"
        room = width - text_width(value) - text_width(f"{text.number} {tail}") - 12
        name = f"{text.number} {shorten(text.row.variant, room)}{tail}"
        css = "name chosen" if text.row.chosen else "name"
        labels.append(Label(0, top + 14, name, css))
        labels.append(Label(width, top + 14, value, css, "end"))
        shapes += draw(text, top + 21)
    return Chart(width, height, summary, tuple(shapes), tuple(labels))


def _plain(value: float) -> str:
    return f"{value:g}"
