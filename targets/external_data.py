"""Where an ONNX file keeps weights outside of itself, read without the onnx library.

A bundle comes from somewhere else: a location such as ``../../secret`` must not be followed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from targets.errors import BundleError

__all__ = ["check_external_data", "external_locations"]

# Field numbers of onnx.proto through which a tensor can be reached: message -> field -> message.
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
_KEY, _VALUE = 1, 2  # fields of an entry
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MAX_DEPTH = 200


class _Span(NamedTuple):
    """A message inside of the file."""

    kind: str
    begin: int
    end: int
    depth: int


def check_external_data(model: Path, listed: Mapping[str, object]) -> None:
    """Check that all weights lie in the file itself or in listed files beside it.

    Args:
        model: An ONNX file.
        listed: Names of the files that belong to it, relative to its folder.

    Raises:
        BundleError: Names the location that is not among them, or the file is not ONNX.
    """
    for location in sorted(external_locations(model)):
        if location not in listed:
            raise BundleError(
                "the model keeps weights in a file that does not belong to the bundle",
                where=model,
                given=location,
                fix="do not use this bundle, or build it again",
            )


def external_locations(model: Path) -> set[str]:
    """Every file that tensors of an ONNX model point to, as written there.

    Raises:
        BundleError: The file is not ONNX.
    """
    if not model.stat().st_size:
        return set()
    try:
        with (
            model.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return set(_locations(data))
    except (IndexError, ValueError) as error:
        raise BundleError(
            "the model file is not ONNX",
            where=model,
            given=error,
            fix="build the bundle again",
        ) from error


def _locations(data: mmap.mmap) -> Iterator[str]:
    waiting = [_Span("Model", 0, len(data), 0)]
    while waiting:
        span = waiting.pop()
        if span.depth > _MAX_DEPTH:
            raise ValueError("graphs are nested too deep")
        texts: dict[int, bytes] = {}
        for number, begin, end in _fields(data, span):
            kind = _FIELDS[span.kind].get(number)
            if kind is not None:
                waiting.append(_Span(kind, begin, end, span.depth + 1))
            elif span.kind == "Entry" and number in (_KEY, _VALUE):
                texts[number] = data[begin:end]
        if texts.get(_KEY) == b"location":
            yield texts.get(_VALUE, b"").decode("utf-8", errors="replace")


def _fields(data: mmap.mmap, span: _Span) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that hold bytes: (number, begin, end)."""
    place = span.begin
    while place < span.end:
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            length, place = _varint(data, place)
            end = place + length
            if end > span.end:
                raise ValueError("a field is longer than its message")
            yield number, place, end
            place = end
        elif wire == _VARINT:
            _, place = _varint(data, place)
        elif wire in (_FIXED64, _FIXED32):
            place += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {place}")
    if place != span.end:
        raise ValueError("a message ends within a field")


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
