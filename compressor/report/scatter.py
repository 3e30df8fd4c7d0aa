"""Accuracy against latency, with Pareto fronts; of one report, or of rows from several."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compressor.report.axes import Axis, linear_axis, log_axis, percent_labels
from compressor.report.charts import RADIUS, Series, name_of, series_of
from compressor.report.drawing import Box, Chart, Label, Shape, marker, place, segment, shorten
from compressor.report.pareto import pareto_front
from compressor.report.schema import Accuracy, Report
from compressor.report.summary import (
    RowText,
    accuracy_of,
    accuracy_split,
    measure_of,
    measurement_of,
    row_texts,
)
from targets.measurement import Measurement

__all__ = ["NUM_DASHES", "Front", "Point", "draw_scatter", "scatter_chart"]

NUM_DASHES = 4
"""Of the page's style sheet: the classes ``dash-0`` to ``dash-3``."""

CROWD = 16
"""Points above which a label that would cover something is left out."""


@dataclass(frozen=True)
class Point:
    """A row with both an accuracy and a latency.

    Attributes:
        name: The row in full.
        front: Points of one front are comparable with each other, and with no others.
        key: The row of the page's table that it stands for, for its script; empty without one.
        x: Its place, in pixels.
        y: The same.
    """

    text: RowText
    measured: Measurement
    accuracy: Accuracy
    look: Series
    name: str
    front: int = 0
    key: str = ""
    x: float = 0
    y: float = 0

    @property
    def data(self) -> dict[str, str]:
        """What the page's script joins the point with its row by."""
        return {"row": self.key} if self.key else {}


@dataclass(frozen=True)
class Front:
    """A Pareto front.

    Attributes:
        title: What begins the sentence that tells what is on it.
        css: A class of the page.
    """

    title: str = "On the Pareto front"
    css: str = "front"


def scatter_chart(report: Report, width: float, height: float) -> Chart | None:
    """Accuracy against latency with the Pareto front; None where no row has both."""
    split = accuracy_split(report)
    series = series_of(report)
    points = [
        Point(text, measured, accuracy, series[text.target], name_of(text))
        for text in row_texts(report)
        if (measured := measurement_of(report, text.row))
        and (accuracy := accuracy_of(text.row, split))
    ]
    across = f"latency at {report.primary_shape}, ms (log scale)"
    return draw_scatter(points, width, height, across=across, up=f"{split} {measure_of(report)}")


def draw_scatter(
    points: Sequence[Point],
    width: float,
    height: float,
    *,
    across: str,
    up: str,
    fronts: Sequence[Front] = (Front(),),
) -> Chart | None:
    """Points with their fronts; None where there are no points.

    Labels hold the number and variant of a row where there is room, else its number.

    Args:
        points: What to draw.
        width: Of the drawing, in pixels.
        height: The same.
        across: What the latencies are.
        up: What the accuracies are.
        fronts: Those that the points name.
    """
    if not points:
        return None
    area = Box(52, 30, width - 12, height - 46)
    x_axis = log_axis([point.measured.median_ms for point in points], area.left, area.right)
    bounds = [end for point in points for end in (point.accuracy.low, point.accuracy.high)]
    y_axis = linear_axis(bounds, area.bottom, area.top)
    points = [
        replace(p, x=x_axis.at(p.measured.median_ms), y=y_axis.at(p.accuracy.value)) for p in points
    ]
    shapes, labels = _grid(x_axis, y_axis, area, across)
    labels.append(Label(0, 12, up, "axis"))
    said = [f"Scatter chart of {up} against latency for {len(points)} rows."]
    on_fronts = [_on_front(points, index) for index in range(len(fronts))]
    for index, (front, members) in enumerate(zip(fronts, on_fronts, strict=True)):
        data = {"front": str(index), "title": front.title} if any(p.key for p in points) else {}
        title = "" if len(fronts) == 1 else front.title
        shapes.append(Shape(_staircase(members), front.css, title, data))
        if members:
            names = "; ".join(point.name for point in members)
            said.append(f"{front.title}, fastest first: {names}.")
    for point in points:
        shapes += _point(point, y_axis)
    labels += _point_labels(points, on_fronts, area, numbers_only=width < 500)
    return Chart(width, height, " ".join(said), tuple(shapes), tuple(labels))


def _on_front(points: Sequence[Point], front: int) -> list[Point]:
    own = [point for point in points if point.front == front]
    return [own[i] for i in pareto_front([(p.measured.median_ms, p.accuracy.value) for p in own])]


def _grid(across: Axis, up: Axis, area: Box, title: str) -> tuple[list[Shape], list[Label]]:
    shapes, labels = [], []
    for tick in across.ticks(max(int((area.right - area.left) / 45), 2)):
        x = across.at(tick)
        shapes.append(Shape(segment(x, area.top, x, area.bottom), "grid"))
        labels.append(Label(x, area.bottom + 17, f"{tick:g}", "axis", "middle"))
    ticks = up.ticks(6)
    for tick, text in zip(ticks, percent_labels(ticks), strict=True):
        y = up.at(tick)
        shapes.append(Shape(segment(area.left, y, area.right, y), "grid"))
        labels.append(Label(area.left - 8, y + 4, text, "axis", "end"))
    labels.append(Label((area.left + area.right) / 2, area.bottom + 38, title, "axis", "middle"))
    return shapes, labels


def _staircase(front: Sequence[Point]) -> str:
    steps = [f"H{point.x:.1f}V{point.y:.1f}" for point in front[1:]]
    return "".join([*(f"M{point.x:.1f} {point.y:.1f}" for point in front[:1]), *steps])


def _point(point: Point, up: Axis) -> list[Shape]:
    low, high = up.at(point.accuracy.low), up.at(point.accuracy.high)
    text, look = point.text, point.look
    css = "point" if text.row.kind == "candidate" else "point hollow"
    title = f"{point.name}: {text.latency} ms, {text.accuracy} ({text.accuracy_interval})"
    data = point.data
    place_data = data and {
        **data, "x": f"{point.x:.1f}", "y": f"{point.y:.1f}", "on": str(point.front)
    }  # fmt: skip
    shapes = [
        Shape(segment(point.x, low, point.x, high), f"error {look.css}", data=data),
        Shape(
            marker(look.marker, point.x, point.y, RADIUS), f"{css} {look.css}", title, place_data
        ),
    ]
    if text.row.chosen:
        ring = marker("circle", point.x, point.y, RADIUS + 5)
        shapes.append(Shape(ring, "ring", data=data))
    return shapes


def _point_labels(
    points: Sequence[Point], fronts: Sequence[Sequence[Point]], area: Box, *, numbers_only: bool
) -> list[Label]:
    """Numbers join the chart with the table; the rows that matter most get their place first."""
    taken = [Box(p.x - 8, p.y - 8, p.x + 8, p.y + 8) for p in points]
    for left, right in itertools.chain.from_iterable(map(itertools.pairwise, fronts)):
        taken.append(Box(left.x, left.y - 2, right.x, left.y + 2))
        taken.append(Box(right.x - 2, right.y, right.x + 2, left.y))
    on_front = {point.text.number for front in fronts for point in front}
    order = sorted(
        points,
        key=lambda p: (not p.text.row.chosen, p.text.number not in on_front, p.text.number),
    )
    labels = []
    for point in order:
        text = point.text
        number = str(text.number)
        named = f"{number} {shorten(text.row.variant, 160)}"
        gap = 15.0 if text.row.chosen else 11.0
        texts = (number,) if numbers_only else (named, number)
        label, room = place(point.x, point.y, texts, taken, area, gap=gap)
        matters = text.row.chosen or text.number in on_front
        if len(points) > CROWD and not matters and any(room.overlap(each) for each in taken):
            continue
        css = "name chosen" if text.row.chosen else "name"
        labels.append(replace(label, css=css, data=point.data))
        taken.append(room)
    return labels
