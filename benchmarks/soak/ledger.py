"""What was injected, what held and what did not: told line by line, as a table, and as JSON."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

from targets.environment import Environment

__all__ = ["Ledger"]


class Ledger:
    """Counts faults and failures; prints each event as it comes.

    Args:
        seed: Of every random choice, to repeat a soak.
        minutes: After so long nothing new is begun; None sets no limit.
    """

    def __init__(self, *, seed: int, minutes: float | None = None) -> None:
        self.seed = seed
        self.started = time.monotonic()
        self.deadline = None if minutes is None else self.started + 60 * minutes
        self.injected: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.failures: list[str] = []
        self.skipped: dict[str, str] = {}
        self.facts: dict[str, object] = {}
        self.bytes_lost = 0
        self.steps_checked = 0
        self.is_interrupted = False

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def event(self, kind: str, line: str) -> None:
        """Tell what happens."""
        print(f"{time.monotonic() - self.started:8.1f} s  {kind:<12} {line}", flush=True)

    def count(self, kind: str, line: str) -> None:
        """A fault was injected."""
        self.injected[kind] += 1
        self.event(kind, f"{self.injected[kind]}: {line}")

    def check(self, kind: str, holds: bool, line: str) -> bool:
        """Note a failure where something does not hold."""
        if not holds:
            self.failed[kind] += 1
            self.failures.append(f"{kind} {self.injected[kind]}: {line}")
            self.event(kind, f"FAILED: {line}")
        return holds

    def skip(self, kind: str, reason: str) -> None:
        """Leave out a kind of fault that this machine does not allow."""
        self.skipped[kind] = reason
        self.event(kind, f"skipped: {reason}")

    def table(self) -> str:
        """The end of the story."""
        lines = [f"{'fault':<22} {'injected':>8} {'failures':>8}"]
        for kind, count in self.injected.items():
            lines.append(f"{kind:<22} {count:>8} {self.failed[kind]:>8}")
        lines += [f"{kind:<22} skipped: {reason}" for kind, reason in self.skipped.items()]
        lines.append(
            f"finished steps checked after a fault: {self.steps_checked}, "
            f"bytes lost: {self.bytes_lost}"
        )
        return "\n".join([*lines, *(f"FAILED {failure}" for failure in self.failures)])

    def write(self, path: Path) -> None:
        """Write all of it as JSON, with the machine and the versions."""
        result = {
            "seed": self.seed,
            "environment": Environment.here().model_dump(mode="json"),
            **({"interrupted": True} if self.is_interrupted else {}),
            "duration_s": round(time.monotonic() - self.started, 1),
            **self.facts,
            "injected": dict(self.injected),
            "failed": {kind: self.failed[kind] for kind in self.injected},
            "skipped": self.skipped,
            "finished_steps_checked": self.steps_checked,
            "bytes_lost": self.bytes_lost,
            "failures": self.failures,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
