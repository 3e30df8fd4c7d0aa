"""One file a pass. Every public module here is found by discovery."""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection

from compressor.architecture import Architecture
from compressor.passes.base import Advice, Goal, Pass, PassContext, PassResult
from targets.discovery import discover

__all__ = [
    "Advice",
    "Goal",
    "Pass",
    "PassContext",
    "PassResult",
    "advice_for",
    "available_passes",
]


@functools.cache
def available_passes() -> dict[str, type[Pass]]:
    """Every pass, by name: those in this package and those of other distributions.

    Other distributions announce theirs under the entry-point group ``compressor.passes``.
    """
    return discover(sys.modules[__name__], Pass, "compressor.passes")  # type: ignore[type-abstract]


def advice_for(
    used: Collection[str], architecture: Architecture | None = None
) -> dict[Goal, tuple[str, ...]]:
    """What to try next for each goal, by what the passes say.

    Args:
        used: Names of the passes that the recipe has. Their advice comes first.
        architecture: Of the model, where it is known: what does not suit it is no advice.
    """
    found: dict[Goal, tuple[str, ...]] = {}
    for name, each in sorted(available_passes().items(), key=lambda item: item[0] not in used):
        if architecture is not None and each.unsuited(architecture) is not None:
            continue
        for goal, advice in each.advice.items():
            text = advice.used if name in used else advice.absent
            if text is not None:
                found[goal] = (*found.get(goal, ()), text)
    return found
