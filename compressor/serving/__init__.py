"""Hand bundles over to servers: one file a format, found by discovery."""

from __future__ import annotations

import functools
import sys

from compressor.serving.base import Format, Packaged
from targets.discovery import discover

__all__ = ["Format", "Packaged", "available_formats"]


@functools.cache
def available_formats() -> dict[str, type[Format]]:
    """Every format, by name: those in this package and those of other distributions.

    Other distributions announce theirs under the entry-point group ``compressor.serving``.
    """
    return discover(sys.modules[__name__], Format, "compressor.serving")  # type: ignore[type-abstract]
