"""Ctrl-C and SIGTERM, remembered: a library that swallows the exception does not undo them.

Native code that is asked for a length or a shape while the exception is raised may turn it into an
error of its own, or go on. What asks here learns that the user wants to leave all the same.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["INTERRUPTED", "TERMINATED", "asked", "forget", "leave_if_asked", "remembered"]

INTERRUPTED = 130
TERMINATED = 143

_CODES: dict[int, int] = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
_DEFAULTS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}

_asked: int | None = None


def asked() -> int | None:
    """The exit code of the interruption that came, if one did since it was last forgotten."""
    return _asked


def forget() -> None:
    """Go on: the interruption was answered."""
    global _asked
    _asked = None


def leave_if_asked() -> None:
    """Raise again what a library has swallowed.

    Raises:
        KeyboardInterrupt: Ctrl-C came earlier.
        SystemExit: SIGTERM came earlier.
    """
    if _asked == INTERRUPTED:
        raise KeyboardInterrupt
    if _asked is not None:
        raise SystemExit(_asked)


@contextmanager
def remembered() -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt, and SIGTERM, which schedulers send, SystemExit.

    A signal for which the process has an answer of its own, or which it ignores, stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in _CODES if signal.getsignal(number) == _DEFAULTS[number]]
    for number in ours:
        signal.signal(number, _remember)
    forget()
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _DEFAULTS[number])


def _remember(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = _CODES[number]
    leave_if_asked()
