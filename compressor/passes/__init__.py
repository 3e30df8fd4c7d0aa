"""One file a pass. Every public module here is found by discovery."""

from __future__ import annotations

import functools
import sys

from compressor.passes.base import Pass, PassContext, PassResult
from targets.discovery import discover

__all__ = ["Pass", "PassContext", "PassResult", "available_passes"]


@functools.cache
def available_passes() -> dict[str, type[Pass]]:
    """Every pass, by name: those in this package and those of other distributions.

    Other distributions announce theirs under the entry-point group ``compressor.passes``.
    """
    return discover(sys.modules[__name__], Pass, "compressor.passes")  # type: ignore[type-abstract]
