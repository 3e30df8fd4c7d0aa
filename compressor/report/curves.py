"""Training curves: loss and validation accuracy of each pass that trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.report.axes import Axis, linear_axis, percent_labels
from compressor.report.drawing import Chart, Label, Shape, marker, polyline, segment
from compressor.report.schema import Report, Step
from compressor.report.wording import percent, significant

__all__ = ["Curve", "training_curves"]

WIDTH = 360
LEFT, RIGHT = 50, WIDTH - 10
PANEL_HEIGHT = 104
GAP = 34
_LONG_S = 300.0
PANELS = (
    ("loss", "loss"),
    ("validation_accuracy", "validation accuracy"),
    ("validation_perplexity", "validation perplexity"),
)


@dataclass(frozen=True)
class Curve:
    """The training of one pass.

    Attributes:
        title: The pass.
        variants: Whose recipe it is part of.
        chart: Loss, and validation accuracy where it was evaluated, over the time of the training.
    """

    title: str
    variants: tuple[str, ...]
    chart: Chart


def training_curves(report: Report) -> tuple[Curve, ...]:
    """One curve for each pass that trained; a pass that several variants share is shown once."""
    found: dict[str, tuple[Step, list[str]]] = {}
    for variant, steps in report.steps.items():
        for step in steps:
            if any("step" in entry for entry in step.history):
                found.setdefault(step.key, (step, []))[1].append(variant)
    return tuple(
        Curve(step.pass_name, tuple(variants), _chart(step)) for step, variants in found.values()
    )


def _chart(step: Step) -> Chart:
    history = [entry for entry in step.history if "step" in entry]
    unit, places = _along(step, history)
    across = linear_axis([0, *places], LEFT, RIGHT, from_zero=True)
    shapes: list[Shape] = []
    labels: list[Label] = []
    said: list[str] = []
    bottom = 0.0
    for name, title in PANELS:
        values = [entry.get(name, math.nan) for entry in history]
        points = [each for each in zip(places, values, strict=True) if math.isfinite(each[1])]
        if not points:
            continue
        top, bottom = bottom + GAP - 10, bottom + GAP - 10 + PANEL_HEIGHT
        up = linear_axis([value for _, value in points], bottom, top)
        is_share = name == "validation_accuracy"
        shapes += _panel(points, across, up, dotted=is_share)
        labels.append(Label(LEFT, top - 8, title, "name"))
        ticks = up.ticks(3)
        texts = percent_labels(ticks) if is_share else [f"{tick:g}" for tick in ticks]
        labels += [
            Label(LEFT - 7, up.at(tick) + 4, text, "axis", "end")
            for tick, text in zip(ticks, texts, strict=True)
        ]
        first, last = (
            percent(v) if is_share else significant(v) for v in (points[0][1], points[-1][1])
        )
        labels.append(Label(RIGHT, top - 8, f"{first} → {last}", "axis", "end"))
        said.append(f"{title} from {first} to {last}")
    labels += [
        Label(across.at(t), bottom + 17, f"{t:g}", "axis", "middle") for t in across.ticks(4)
    ]
    labels.append(Label((LEFT + RIGHT) / 2, bottom + 34, unit, "axis", "middle"))
    summary = f"Training curve of {step.pass_name} over {unit}: {'; '.join(said)}."
    return Chart(WIDTH, bottom + 40, summary, tuple(shapes), tuple(labels))


def _along(step: Step, history: Sequence[Mapping[str, float]]) -> tuple[str, list[float]]:
    """What the curves are drawn over, and the place of each entry.

    Time at the mean pace of the training, evaluations included, where that is known: it says what
    an accuracy costs.
    """
    pace = step.metrics.get("epoch_s")
    if pace is None or any("epoch" not in entry for entry in history):
        return "steps", [entry["step"] for entry in history]
    unit, size = ("minutes", 60.0) if pace * history[-1]["epoch"] > _LONG_S else ("seconds", 1.0)
    return f"{unit} of training", [entry["epoch"] * pace / size for entry in history]


def _panel(
    points: Sequence[tuple[float, float]], across: Axis, up: Axis, *, dotted: bool
) -> list[Shape]:
    grid = [Shape(segment(LEFT, up.at(t), RIGHT, up.at(t)), "grid") for t in up.ticks(3)]
    placed = [(across.at(x), up.at(y)) for x, y in points]
    dots = [Shape(marker("circle", x, y, 3.5), "point series-0") for x, y in placed]
    return [*grid, Shape(polyline(placed), "curve series-0"), *(dots if dotted else [])]
