"""Frozen values as protobuf text: names and types are those of the message they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Message", "to_text"]

_INDENT = "  "
_ESCAPES = {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    ord('"'): '\\"',
    ord("\\"): "\\\\",
}


class Message(BaseModel):
    """A protobuf message; a field that is None is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def to_text(message: Message) -> str:
    """The text format of a message.

    A tuple is a repeated field, a mapping a map, and a member of an enumeration its bare name.
    """
    return "".join(f"{line}\n" for line in _fields(message))


def _fields(message: Message) -> Iterator[str]:
    for name in type(message).model_fields:
        value = getattr(message, name)
        if isinstance(value, Mapping):
            for key, each in value.items():
                yield from _field(name, {"key": key, "value": each})
        elif isinstance(value, tuple):
            for each in value:
                yield from _field(name, each)
        elif value is not None:
            yield from _field(name, value)


def _field(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Message | dict):
        inside = (
            _fields(value)
            if isinstance(value, Message)
            else (line for key, each in value.items() for line in _field(key, each))
        )
        yield f"{name} {{"
        yield from (_INDENT + line for line in inside)
        yield "}"
    else:
        yield f"{name}: {_scalar(value)}"


def _scalar(value: StrEnum | bool | int | str) -> str:
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    return f'"{"".join(map(_escape, value.encode()))}"'


def _escape(byte: int) -> str:
    """One byte of a string; all but printable ASCII in octal, as the text format has it."""
    plain = chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
    return _ESCAPES.get(byte, plain)
