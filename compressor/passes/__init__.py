"""One file a pass. Every public module here is found by discovery."""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection

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


def advice_for(used: Collection[str]) -> dict[Goal, tuple[str, ...]]:
    """What to try next for each goal, by what the passes say.

    Args:
        used: Names of the passes that the recipe has. Their advice comes first.
    """
    found: dict[Goal, tuple[str, ...]] = {}
    for name, each in sorted(available_passes().items(), key=lambda item: item[0] not in used):
        for goal, advice in each.advice.items():
            text = advice.used if name in used else advice.absent
            if text is not None:
                found[goal] = (*found.get(goal, ()), text)
    return found
