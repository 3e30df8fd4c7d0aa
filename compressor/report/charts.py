"""Charts with a line a row: spread of the latencies and sizes; and how each target looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.report.axes import Axis, linear_axis, log_axis
from compressor.report.drawing import (
    MARKERS,
    Chart,
    Label,
    Shape,
    bar,
    marker,
    segment,
    shorten,
    text_width,
)
from compressor.report.schema import Report
from compressor.report.summary import RowText, measurement_of, row_texts
from compressor.report.wording import bytes_text, significant, smaller_text
from targets.measurement import Measurement

__all__ = [
    "NUM_COLOURS",
    "RADIUS",
    "Series",
    "latency_chart",
    "markers_of",
    "name_of",
    "series_of",
    "size_chart",
]

NUM_COLOURS = 8
"""Of the page's style sheet: the classes ``series-0`` to ``series-7``."""
MAX_DOTS = 90
"""Raw times drawn for a row: more would only cover each other, and make the file large."""

RADIUS = 6
ROW_HEIGHT = 44
FOOT = 40


@dataclass(frozen=True)
class Series:
    """How rows look, such as those of one target: a colour class of the page, and a marker."""

    target: str
    css: str
    marker: str

    @property
    def key(self) -> Chart:
        """The marker alone, for a legend, whose text says the rest."""
        shape = Shape(marker(self.marker, 9, 9, RADIUS), f"point {self.css}")
        return Chart(18, 18, "", (shape,), ())


def markers_of(texts: Iterable[RowText]) -> dict[str, str]:
    """Target label -> its marker; eager PyTorch, the reference, has one of its own."""
    found: dict[str, str] = {}
    *others, own = MARKERS
    for text in texts:
        if text.target not in found:
            number = sum(each != own for each in found.values())
            is_reference = text.row.kind == "reference"
            found[text.target] = own if is_reference else others[number % len(others)]
    return found


def series_of(report: Report) -> dict[str, Series]:
    """Target label -> its look; eager PyTorch, the reference, is grey."""
    texts = row_texts(report)
    grey = {text.target for text in texts if text.row.kind == "reference"}
    markers = markers_of(texts)
    coloured = [target for target in markers if target not in grey]
    colours = {target: f"series-{i % NUM_COLOURS}" for i, target in enumerate(coloured)}
    return {
        target: Series(target, colours.get(target, "reference"), shape)
        for target, shape in markers.items()
    }


def name_of(text: RowText) -> str:
    """A row in full, for titles and summaries."""
    return f"{text.number} {text.row.variant} · {text.target} {text.row.precision}"


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
    smaller = smaller_text(text.size_ratio) if width > 500 else ""
    return f"{text.size}, {smaller}" if smaller else text.size


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
