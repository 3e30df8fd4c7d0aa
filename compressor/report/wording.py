"""Numbers as people read them; one way for the terminal, Markdown and HTML."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from compressor.report.schema import Accuracy, Comparison, LayerError, Perplexity
from targets.measurement import Interval, Speedup

__all__ = [
    "NONE",
    "accuracy_interval",
    "bytes_text",
    "capitalized",
    "change",
    "cost_text",
    "count_text",
    "drop_interval",
    "duration_text",
    "faster_text",
    "interval_text",
    "milliseconds",
    "one_line",
    "percent",
    "perplexity_text",
    "points",
    "points_interval",
    "setting",
    "shape_words",
    "significant",
    "smaller_text",
    "speedup_interval",
    "times",
    "worst_layer",
]

NONE = "-"
"""Stands where there is no value."""

ERROR_LABEL = re.compile(r"\s*\n\s+(where|given|fix|left):\s+")


def shape_words(shape: str) -> str:
    """The name of a shape, with what its numbers are."""
    return f"{shape} (batch x length)" if "x" in shape else shape


def significant(value: float, digits: int = 3) -> str:
    """Round to significant digits, whole numbers in full: 0.0123, 1.47, 16.3, 1,630, 8,192."""
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer():
        return f"{int(value):,}"
    value = float(f"{value:.{digits - 1}e}")
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{decimals}f}" if decimals > 0 else f"{round(value):,}"


def milliseconds(value: float | None) -> str:
    """A latency in ms, without the unit."""
    return NONE if value is None else significant(value)


def interval_text(interval: Interval) -> str:
    """Both ends of a confidence interval of a latency in ms."""
    return f"{milliseconds(interval.low)} to {milliseconds(interval.high)}"


def percent(value: float | None) -> str:
    """A share in [0, 1] as per cent."""
    return NONE if value is None else f"{value:.1%}"


def accuracy_interval(accuracy: Accuracy) -> str:
    """The 95% interval of an accuracy, in per cent."""
    return f"{accuracy.low * 100:.1f} to {accuracy.high * 100:.1f}"


def perplexity_text(found: Perplexity) -> str:
    """A perplexity and what was lost of it, each with its 95% interval."""
    return (
        f"{significant(found.value)} ({significant(found.low)} to {significant(found.high)}), "
        f"untouched {significant(found.reference)}: {found.rise:+.1f}% "
        f"({found.rise_low:+.1f} to {found.rise_high:+.1f})"
    )


def points(value: float | None) -> str:
    """An accuracy drop in percentage points; no sign for a loss, a minus for a gain."""
    return NONE if value is None else f"{value + 0.0:.1f}".replace("-0.0", "0.0")


def drop_interval(comparison: Comparison) -> str:
    """The 95% interval of an accuracy drop, in percentage points."""
    return points_interval(comparison.low_points, comparison.high_points)


def points_interval(low: float, high: float) -> str:
    """Both ends of an interval in percentage points; an end that is not 0 does not look like 0."""
    return f"{_end(low)} to {_end(high)}"


def times(value: float | None) -> str:
    """A ratio: 5.48x, 12.3x."""
    return NONE if value is None else f"{significant(value)}x"


def speedup_interval(value: Speedup) -> str:
    """The 95% interval of a speed-up."""
    return f"{significant(value.low)} to {significant(value.high)}"


def bytes_text(value: float | None) -> str:
    """A size in decimal units: 812 B, 22.7 MB, 1.02 GB."""
    return NONE if value is None else _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def count_text(value: float | None) -> str:
    """A large number: 384, 22.7 M."""
    return NONE if value is None else _scaled(value, ("", "k", "M", "B")).strip()


def capitalized(text: str) -> str:
    """A name at the beginning of a sentence; mAP and chrF stay as they are."""
    return text[:1].upper() + text[1:] if text.islower() else text


def smaller_text(ratio: str) -> str:
    """How many times smaller something is than it was; empty where that says nothing."""
    says_nothing = ratio in (NONE, "1x", "1.00x")
    return "" if says_nothing else f"{ratio} smaller"


def faster_text(ratio: str) -> str:
    """How many times as fast something is as it was; empty where that says nothing."""
    return "" if ratio in (NONE, "1x", "1.00x") else f"{ratio} as fast"


def cost_text(seconds: float, peak_memory_bytes: int | None) -> str:
    """What making something took: 12 min 4 s, at most 3.1 GB of memory."""
    if peak_memory_bytes is None:
        return duration_text(seconds)
    return f"{duration_text(seconds)}, at most {bytes_text(peak_memory_bytes)} of memory"


def duration_text(seconds: float) -> str:
    """A duration: 0.4 s, 12 s, 4 min 10 s, 2 h 3 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def change(before: float | None, after: float | None) -> str | None:
    """How much a positive quantity changed: -48%, +3%; None where it did not, or is unknown."""
    if not before or after is None or before == after:
        return None
    text = f"{after / before - 1:+.0%}"
    return f"{after / before - 1:+.1%}" if text in ("+0%", "-0%", "-100%") else text


def worst_layer(layers: Sequence[LayerError]) -> str:
    """The layer with the largest error, such as ``5.2% after bert.encoder.layer.2.output``."""
    worst = max(layers, key=lambda each: each.error)
    return f"{percent(worst.error)} after {worst.name}"


def setting(value: object) -> str:
    """The value of a setting, as a recipe in YAML has it: null, true, 0.5, [1, 2], a name."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def one_line(text: str) -> str:
    """Text without line breaks, runs of blanks, or characters that would steer a terminal.

    The labelled lines of an error become parts after semicolons.
    """
    text = ERROR_LABEL.sub(r"; \1: ", text)
    return "".join(char for char in " ".join(text.split()) if char.isprintable())


def _end(value: float) -> str:
    text = points(value)
    return f"{value:.2f}" if text == "0.0" and abs(value) >= 0.005 else text


def _scaled(value: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value /= 1000
        power += 1
    number = str(round(value)) if power == 0 else significant(value)
    return f"{number} {units[power]}"
