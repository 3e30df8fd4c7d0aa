"""Time series: signals of one length, in one or several channels, kept as they are."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from targets.errors import InputError
from targets.preprocessing.base import FIXED_SIZE, Encoded, Encoder, Preprocessing, Rows
from targets.preprocessing.npy import read_npy
from targets.signature import Arrays, Signature

__all__ = ["VALUES", "SeriesEncoder", "SeriesPreprocessing"]

VALUES = "past_values"


class SeriesPreprocessing(Preprocessing):
    """Signals as floats. A network that scales its input does so inside, on the device too.

    A shorter or longer signal is refused: networks of this kind have one length, and where a part
    of a signal begins is known to who recorded it.
    """

    kind: Literal["series"] = "series"
    length: int = Field(ge=1, le=2**24)
    """Points in time of a signal."""
    channels: int = Field(default=1, ge=1, le=2**16)
    """Values at each of them."""

    noun: ClassVar[str] = "signal"
    needs: ClassVar[str] = VALUES
    unit: ClassVar[str | None] = None
    usual_length: ClassVar[int] = FIXED_SIZE
    libraries: ClassVar[tuple[str, ...]] = ()
    wanted: ClassVar[str] = "a list of numbers, or the path of an .npy file,"
    reads_lists: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)

    @property
    def longest(self) -> int:
        """See the base class."""
        return FIXED_SIZE

    @classmethod
    def content(cls, cell: object, where: str) -> bytes | None:
        """See the base class: lists of numbers, in a table of text as JSON."""
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                cell = json.loads(cell)
            except ValueError as error:
                raise _no_signal(where, f"{cell:.60}: {error}") from error
        if not isinstance(cell, list):
            return None
        stream = io.BytesIO()
        np.save(stream, _floats(cell, where), allow_pickle=False)
        return stream.getvalue()

    def open(self, folder: Path, *, source: Path | None = None) -> SeriesEncoder:
        """See the base class."""
        return SeriesEncoder(self)

    def feeds(self, rows: Rows, signature: Signature) -> Arrays:
        """See the base class.  # (N, length, channels)"""
        for spec in signature.inputs:
            if spec.name != VALUES:
                raise self.unknown_input(spec.name, [VALUES])
        values = np.stack(rows[VALUES])
        return {spec.name: values.astype(spec.dtype, copy=False) for spec in signature.inputs}

    def synthetic(
        self, lengths: Sequence[int], *, num_ids: int, random: np.random.Generator
    ) -> dict[str, list[NDArray[np.generic]]]:
        """See the base class: noise."""
        shape = (len(lengths), self.length, self.channels)
        return {VALUES: list(random.normal(size=shape).astype(np.float32))}


class SeriesEncoder(Encoder):
    """Reads signals: paths or the content of .npy files, arrays, or lists of numbers.

    They are (length, channels), or (length,) where there is one channel.
    """

    def __init__(self, preprocessing: SeriesPreprocessing) -> None:
        self.preprocessing = preprocessing

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """See the base class.  # (length, channels) float32 a row"""
        self.preprocessing.check_inputs(inputs)
        rows = [self._read(each, index) for index, each in enumerate(inputs)]
        return Encoded({VALUES: rows}, (False,) * len(rows))

    def _read(self, value: Any, index: int) -> NDArray[np.generic]:
        where = str(value) if isinstance(value, str | Path) else f"signals[{index}]"
        if isinstance(value, str | Path | bytes):
            value = read_npy(value, where=where)
        values = _floats(value, where)
        wanted = (self.preprocessing.length, self.preprocessing.channels)
        if values.shape != wanted:
            raise InputError(
                "the signal has another length or another number of channels than the model reads",
                where=where,
                given="{} points in time of {} channels".format(*values.shape),
                fix="pass {} points in time of {} channels: cut, pad or resample it as the "
                "training data was".format(*wanted),
            )
        return values


def _floats(value: Any, where: str) -> NDArray[np.float32]:
    """Values as (length, channels), finite.

    Raises:
        InputError: They are no such thing.
    """
    if not isinstance(value, list | tuple | np.ndarray):
        raise _no_signal(where, f"{type(value).__name__} {value!r:.60}")
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise _no_signal(where, "lists of different lengths") from error
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or not array.size:
        raise _no_signal(where, f"{array.dtype} of shape {array.shape}")
    with np.errstate(over="ignore"):  # found below
        values = array.astype(np.float32).reshape(len(array), -1)
    if not np.isfinite(values).all():
        raise InputError(
            "the signal has values that are missing or infinite",
            where=where,
            given=f"{(~np.isfinite(values)).sum()} of {values.size}",
            fix="fill them, such as with the value before, as in the training data",
        )
    return values


def _no_signal(where: str, given: str) -> InputError:
    return InputError(
        "this is not a signal",
        where=where,
        given=given,
        fix="pass numbers of shape (length, channels), or (length,) of one channel: a path or the "
        "content of an .npy file, an array or lists",
    )
