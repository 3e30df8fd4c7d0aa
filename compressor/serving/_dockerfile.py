"""The instructions of a Dockerfile as values; arguments are lists, so that no shell reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass

__all__ = ["Instruction", "to_text"]


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        word: Such as ``COPY``.
        options: What stands before the arguments: ``--interval=60s``.
        argument: A single word, for instructions that take no list.
        arguments: Everything else, in the list form.
    """

    word: str
    argument: str | None = None
    arguments: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def to_text(instructions: tuple[Instruction, ...]) -> str:
    """The file, one instruction a line."""
    return "".join(f"{_line(each)}\n" for each in instructions)


def _line(instruction: Instruction) -> str:
    words = [instruction.word, *instruction.options]
    if instruction.argument is not None:
        words.append(instruction.argument)
    if instruction.arguments:
        words.append(json.dumps(list(instruction.arguments)))
    return " ".join(words)
