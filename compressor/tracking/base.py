"""What every tracker offers: keep the record of a report, once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from compressor.tracking.record import Record
from targets.discovery import Component

__all__ = ["AGAIN", "Tracked", "Tracker"]

AGAIN = "the report and the bundles are as they were, and the same command can be run again"
"""For the end of every fix: tracking comes after the work."""


@dataclass(frozen=True)
class Tracked:
    """What a tracker did.

    Attributes:
        place: Where the record is, for people.
        is_new: Whether it was not there before.
        models: What became of each model to register, one line each; empty where the tracker has no
            registry.
    """

    place: str
    is_new: bool
    models: tuple[str, ...] = ()


class Tracker(Component, ABC):
    """A place where records are kept. Subclasses live in one file each in ``compressor/tracking/``.

    A tracker imports its library when it tracks.
    """

    uri: str | None = None
    """Where records are kept; each tracker says what it is where nothing is given."""

    @abstractmethod
    def track(self, record: Record) -> Tracked:
        """Keep a record, with its files. The same report twice leaves one record.

        Args:
            record: What to keep; the models in it are registered.

        Raises:
            AddressError: There is no address to keep it at, or it is none.
            TrackingError: It cannot be kept; the same call can be made again.
            MissingLibraryError: The library of the tracker is not installed.
        """
