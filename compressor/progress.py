"""How a run tells what it is doing; the command line draws it, the library stays silent."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Receives what happens in a run, in order."""

    def warn(self, line: str) -> None:
        """Something will not be as one may expect; the run goes on."""

    def start(self, title: str) -> None:
        """A step begins."""

    def update(self, fraction: float, line: str) -> None:
        """The step in progress got to ``fraction`` in [0, 1]."""

    def finish(self, line: str, *, cached: bool) -> None:
        """The step ended, or was found finished in the store."""


class Silent:
    """Says nothing."""

    def warn(self, line: str) -> None:
        """See `Progress`."""

    def start(self, title: str) -> None:
        """See `Progress`."""

    def update(self, fraction: float, line: str) -> None:
        """See `Progress`."""

    def finish(self, line: str, *, cached: bool) -> None:
        """See `Progress`."""
