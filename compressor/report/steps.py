"""What each pass cost and what it gained, as text."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.report.schema import Report, Step
from compressor.report.wording import (
    bytes_text,
    change,
    count_text,
    duration_text,
    percent,
    significant,
)

__all__ = ["StepText", "step_texts"]

ACCURACY = "validation_accuracy"


@dataclass(frozen=True)
class StepText:
    """One pass as text; a change is against the model that the pass was given.

    Attributes:
        number: Position in its variant, from 1.
        step: What it tells of.
        metrics: What the pass measured, but for the validation accuracy.
    """

    number: int
    step: Step
    duration: str
    parameters: str
    parameters_change: str
    size: str
    size_change: str
    accuracy: str
    accuracy_change: str
    metrics: tuple[tuple[str, str], ...]


def step_texts(report: Report, variant: str) -> tuple[StepText, ...]:
    """The passes of a variant, each against the one before it."""
    parameters: int | None = report.model.num_parameters
    size = report.model.size_bytes
    accuracy = next(
        (row.validation.value for row in report.rows if row.kind == "reference" and row.validation),
        None,
    )
    texts = []
    for number, step in enumerate(report.steps.get(variant, ()), start=1):
        reached = step.metrics.get(ACCURACY)
        texts.append(
            StepText(
                number=number,
                step=step,
                duration=duration_text(step.duration_s) + (" (cached)" if step.cached else ""),
                parameters=count_text(step.num_parameters),
                parameters_change=change(parameters, step.num_parameters) or "",
                size=bytes_text(step.size_bytes),
                size_change=change(size, step.size_bytes) or "",
                accuracy=percent(reached),
                accuracy_change=_points_change(accuracy, reached),
                metrics=tuple(
                    (name, significant(value))
                    for name, value in step.metrics.items()
                    if name != ACCURACY
                ),
            )
        )
        parameters = step.num_parameters or parameters
        size = step.size_bytes
        accuracy = accuracy if reached is None else reached
    return tuple(texts)


def _points_change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    text = f"{(after - before) * 100:+.1f}"
    return "" if text in ("+0.0", "-0.0") else text
