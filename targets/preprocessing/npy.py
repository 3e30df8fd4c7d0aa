"""Arrays in the format of numpy, of which no code is run."""

from __future__ import annotations

import io
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.errors import InputError

__all__ = ["read_npy"]


_DAMAGED = (
    OSError, ValueError, EOFError, TypeError, MemoryError, SyntaxError, TokenError,
)  # fmt: skip
"""What numpy raises: a header is a literal of Python, which it parses."""


def read_npy(file: str | Path | bytes, *, where: str) -> NDArray[Any]:
    """Read an array.

    Args:
        file: Path or content.
        where: What to call it in messages.

    Raises:
        InputError: It is no whole .npy file, or one that holds Python objects.
    """
    try:
        content = file if isinstance(file, bytes) else Path(file).read_bytes()
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except _DAMAGED as error:
        lines = str(error).splitlines()
        raise InputError(
            "the array cannot be read",
            where=where,
            given=lines[0] if lines else type(error).__name__,
            fix="write an array of numbers with numpy.save(path, array)",
        ) from error
    return np.asarray(array)
