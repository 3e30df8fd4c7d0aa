"""The time that a search has: what it has taken, what a training would take, and what fits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.progress import Progress
from compressor.store import StoredStep

__all__ = ["Clock", "Deadline", "OutOfTimeError", "Pace", "fitting_epochs"]

FEWER_EPOCHS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125)
"""Of those that are wanted, where there is not the time for all: few values, so that a search that
goes on finds the trainings of the one that was interrupted."""


class OutOfTimeError(KeyboardInterrupt):
    """The next training would not end in time, or the first did not.

    What is interrupted so is kept to go on from, as where a user does it.
    """


@dataclass(frozen=True)
class Pace:
    """How fast a training was, from which others are predicted.

    Attributes:
        epoch_s: Time of an epoch, in seconds.
        rest_s: What it takes besides, in seconds: cutting the model, reading the rows, judging it.
        label_s: Time in which the untouched model labels all rows, in seconds: once for all
            trainings of a process.
    """

    epoch_s: float = 0.0
    rest_s: float = 0.0
    label_s: float = 0.0

    @classmethod
    def of(cls, steps: Sequence[StoredStep], epochs: int) -> Pace:
        """How fast the training was that ends a chain of steps, by their times."""
        record = steps[-1].record
        metrics = record.facts["metrics"]
        epoch_s = metrics.get("epoch_s", record.duration_s / epochs)
        label_s = metrics.get("prepare_s", 0.0)
        rest_s = sum(step.record.duration_s for step in steps) - epochs * epoch_s - label_s
        return cls(epoch_s, max(rest_s, 0.0), label_s)

    def seconds(self, epochs: int) -> float:
        """What a training is expected to take where the rows have their labels, in seconds."""
        return epochs * self.epoch_s + self.rest_s


class Clock:
    """What a search has taken, and how fast its trainings are.

    Steps that were there already count as if they were made now: a search that goes on divides its
    time as one that was never interrupted.

    Attributes:
        limit_s: Time that there is, in seconds.
        pace: Of the last training; None before the first.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.pace: Pace | None = None
        self._started = time.monotonic()
        self._earlier_s = 0.0
        self._counted: set[str] = set()

    @property
    def spent_s(self) -> float:
        """Time that the search has taken, also before it was interrupted."""
        return time.monotonic() - self._started + self._earlier_s

    def expected_s(self, epochs: int, *, labels: bool) -> float:
        """What a training is expected to take, in seconds; 0 where nothing is known.

        Args:
            epochs: Of the training.
            labels: Whether the untouched model is to label the rows first.
        """
        if self.pace is None:
            return 0.0
        return self.pace.seconds(epochs) + (self.pace.label_s if labels else 0.0)

    def count(self, steps: Sequence[StoredStep], taken_s: float = math.inf) -> list[StoredStep]:
        """Count what steps took before this search began; those that were not counted yet.

        Args:
            steps: Those of a chain.
            taken_s: What those that were not there have taken now: of a training that was
                interrupted before, what it had taken until then counts as well.
        """
        new = [step for step in steps if step.record.key not in self._counted]
        self._counted.update(step.record.key for step in new)
        made_s = sum(step.record.duration_s for step in new if not step.cached)
        self._earlier_s += sum(step.record.duration_s for step in new if step.cached)
        self._earlier_s += max(made_s - taken_s, 0.0)
        return new

    def trained(self, pace: Pace) -> None:
        """Learn how fast trainings are, from the one that just ended.

        The first asked the untouched model for what the others find.
        """
        if self.pace is not None:
            rest_s = min(pace.rest_s, self.pace.rest_s)
            pace = Pace(pace.epoch_s, rest_s, self.pace.label_s)
        self.pace = pace


class Deadline:
    """Progress that interrupts the first training once the time is over.

    Args:
        progress: Is told what this is.
        clock: Of the search.
    """

    def __init__(self, progress: Progress, clock: Clock) -> None:
        self._progress = progress
        self._clock = clock

    def warn(self, line: str) -> None:
        """See `Progress`."""
        self._progress.warn(line)

    def start(self, title: str) -> None:
        """See `Progress`."""
        self._progress.start(title)

    def update(self, fraction: float, line: str) -> None:
        """See `Progress`.

        Raises:
            OutOfTimeError: The time is over, and how long a training takes is not known.
        """
        if self._clock.pace is None and self._clock.spent_s > self._clock.limit_s:
            raise OutOfTimeError
        self._progress.update(fraction, line)

    def finish(self, line: str, *, cached: bool) -> None:
        """See `Progress`."""
        self._progress.finish(line, cached=cached)


def fitting_epochs(wanted: int, fits: Callable[[int], bool], *, more_than: int = 0) -> int:
    """How many epochs to train, as many as there is time for; 0 where it is not worth it.

    Args:
        wanted: Where time is no matter.
        fits: Whether there is the time for so many.
        more_than: As many were trained already: as few are not worth it.
    """
    found = (max(1, round(wanted * share)) for share in FEWER_EPOCHS)
    return next((count for count in found if more_than < count and fits(count)), 0)
