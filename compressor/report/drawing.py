"""What charts are made of: shapes and labels, placed in pixels and styled by class in the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = [
    "MARKERS",
    "Box",
    "Chart",
    "Label",
    "Shape",
    "bar",
    "marker",
    "place",
    "polyline",
    "segment",
    "shorten",
    "text_width",
]

# Width of a character in 12 px text, in pixels: of a wide font, so that labels fit in all.
CHARACTER_WIDTH = 7.0
LINE_HEIGHT = 14.0

MARKERS = ("circle", "square", "triangle", "diamond", "down", "hexagon")
# Corners on a circle: how many, the angle of the first, and a radius that makes areas look alike.
CORNERS = {
    "square": (4, math.pi / 4, 1.25),
    "triangle": (3, -math.pi / 2, 1.4),
    "diamond": (4, 0.0, 1.3),
    "down": (3, math.pi / 2, 1.4),
    "hexagon": (6, 0.0, 1.15),
}


@dataclass(frozen=True)
class Shape:
    """An SVG path; ``title`` shows when the pointer rests on it, ``data`` is for scripts."""

    d: str
    css: str
    title: str = ""
    data: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    """A line of text; ``y`` is its baseline, ``data`` is for scripts."""

    x: float
    y: float
    text: str
    css: str = ""
    anchor: str = "start"
    data: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """A drawing; ``summary`` is what a screen reader says in its place, if anything."""

    width: float
    height: float
    summary: str
    shapes: tuple[Shape, ...]
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Box:
    """A rectangle that a label takes up, or must keep off."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Area that both take up, in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def is_inside(self, outer: Box) -> bool:
        """Whether it lies wholly within another."""
        return (
            self.left >= outer.left
            and self.right <= outer.right
            and self.top >= outer.top
            and self.bottom <= outer.bottom
        )


def polyline(points: Iterable[tuple[float, float]]) -> str:
    """A path through points; one with a coordinate that is not finite leaves a gap."""
    parts: list[str] = []
    pen = "M"
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            parts.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def segment(x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line."""
    return f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"


def bar(left: float, top: float, right: float, bottom: float) -> str:
    """A rectangle."""
    return f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z"


def marker(name: str, x: float, y: float, radius: float) -> str:
    """One of ``MARKERS`` around a point."""
    if name == "circle":
        return (
            f"M{x - radius:.1f} {y:.1f}"
            f"a{radius} {radius} 0 1 0 {2 * radius} 0a{radius} {radius} 0 1 0 {-2 * radius} 0Z"
        )
    count, first, scale = CORNERS[name]
    angles = [first + 2 * math.pi * index / count for index in range(count)]
    corners = [
        (x + radius * scale * math.cos(angle), y + radius * scale * math.sin(angle))
        for angle in angles
    ]
    return polyline(corners) + "Z"


def text_width(text: str) -> float:
    """Room that a line of 12 px text needs at most, in pixels."""
    return len(text) * CHARACTER_WIDTH


def shorten(text: str, room: float) -> str:
    """Cut text that is wider than ``room`` pixels, in the middle: its two ends tell most."""
    longest = max(int(room / CHARACTER_WIDTH), 3)
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 2
    return f"{text[: longest - 1 - tail]}…{text[len(text) - tail :]}"


def place(
    x: float, y: float, texts: Sequence[str], taken: Sequence[Box], area: Box, *, gap: float = 10
) -> tuple[Label, Box]:
    """Put a label beside a point so that it covers nothing.

    Args:
        x: Of the point.
        y: Of the point.
        texts: What to write, best first; a later one is used where no earlier one fits.
        taken: What to keep off.
        area: What to stay within.
        gap: From the point to the text, in pixels.

    Returns:
        The label and its room: of the first choice that covers nothing, else of the last text
        where it covers least.
    """
    least: tuple[float, Label, Box] | None = None
    for text in texts:
        width = text_width(text)
        for dx, dy, anchor in (
            (gap, 0, "start"),
            (-gap, 0, "end"),
            (0, -gap - 4, "middle"),
            (0, gap + 4, "middle"),
            (gap, -gap, "start"),
            (gap, gap, "start"),
            (-gap, -gap, "end"),
            (-gap, gap, "end"),
        ):
            left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            middle = y + dy
            room = Box(left, middle - LINE_HEIGHT / 2, left + width, middle + LINE_HEIGHT / 2)
            covered = sum(room.overlap(other) for other in taken)
            covered += 0 if room.is_inside(area) else 1e6
            label = Label(x + dx, middle + 4, text, anchor=anchor)
            if covered == 0:
                return label, room
            if text == texts[-1] and (least is None or covered < least[0]):
                least = (covered, label, room)
    if least is None:
        raise ValueError("there is no text to place")
    return least[1], least[2]
