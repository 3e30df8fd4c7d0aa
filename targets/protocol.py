"""What a worker process and its parent say to each other: JSON lines, errors with their types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from targets.base import Source
from targets.errors import ToolkitError, WorkerError
from targets.signature import Signature

__all__ = ["ErrorRecord", "decode", "encode", "source_from_json", "source_to_json"]


class ErrorRecord(BaseModel):
    """An error as a value: it can be stored in a report and raised in another process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    what: str
    where: str | None = None
    given: str | None = None
    fix: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> ErrorRecord:
        """Describe an error; one that is not the toolkit's keeps its type and its text."""
        if isinstance(error, ToolkitError):
            return cls(
                type=type(error).__name__,
                what=error.what,
                where=error.where,
                given=error.given,
                fix=error.fix,
            )
        return cls(
            type=WorkerError.__name__,
            what=f"the target failed with {type(error).__name__}: {error}",
        )

    def to_error(self) -> ToolkitError:
        """Make the error again, of the same class where this process knows it."""
        cls = _error_classes().get(self.type, WorkerError)
        return cls(self.what, where=self.where, given=self.given, fix=self.fix)

    def __str__(self) -> str:
        return str(self.to_error())


def encode(message: dict[str, Any]) -> bytes:
    """One message as a line."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message in a line.

    Raises:
        ValueError: The line holds no message.
    """
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError(f"not a message: {line[:80]!r}")
    return message


def source_to_json(source: Source) -> dict[str, Any]:
    """Describe a source in JSON values."""
    return {
        "path": str(source.path),
        "signature": source.signature.model_dump(mode="json"),
        "precision": source.precision,
        "ranges": {name: list(sizes) for name, sizes in source.ranges.items()},
        "task": source.task,
    }


def source_from_json(value: dict[str, Any]) -> Source:
    """Undo `source_to_json`."""
    return Source(
        path=Path(value["path"]),
        signature=Signature.model_validate(value["signature"]),
        precision=value["precision"],
        ranges={name: (low, usual, high) for name, (low, usual, high) in value["ranges"].items()},
        task=value["task"],
    )


def _error_classes() -> dict[str, type[ToolkitError]]:
    found: dict[str, type[ToolkitError]] = {}
    waiting: list[type[ToolkitError]] = [ToolkitError]
    while waiting:
        cls = waiting.pop()
        found[cls.__name__] = cls
        waiting.extend(cls.__subclasses__())
    return found
