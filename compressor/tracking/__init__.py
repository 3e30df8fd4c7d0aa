"""Hand what a run found to a tracking server: one file a tracker, found by discovery."""

from __future__ import annotations

import functools
import sys

from compressor.tracking.base import Tracked, Tracker
from targets.discovery import discover

__all__ = ["Tracked", "Tracker", "available_trackers"]


@functools.cache
def available_trackers() -> dict[str, type[Tracker]]:
    """Every tracker, by name: those in this package and those of other distributions.

    Other distributions announce theirs under the entry-point group ``compressor.tracking``.
    """
    return discover(sys.modules[__name__], Tracker, "compressor.tracking")  # type: ignore[type-abstract]
