"""What validation finds wrong with a document, in the words of the one who wrote it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from compressor.errors import Problem, choices, nearest
from compressor.recipe.document import shown

__all__ = ["problem_of", "unknown_name"]


def problem_of(details: ErrorDetails, model: type[BaseModel], prefix: str = "") -> Problem:
    """What pydantic found wrong, as a problem with its path, its value and its fix.

    Args:
        details: One of the errors of a failed validation.
        model: What was validated.
        prefix: Dotted path at which it stands in the document.
    """
    location = [str(part) for part in details["loc"]]
    where = ".".join(([prefix] if prefix else []) + location) or prefix or "(document)"
    if details["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        return unknown_name(where, location[-1], known, "there is no setting")
    if details["type"] == "missing":
        return Problem("a required setting is missing", where=where, fix=f"add {location[-1]}")
    message = details["msg"].removeprefix("Value error, ")
    return Problem(
        message[0].lower() + message[1:],
        where=where,
        given=shown(details["input"]),
        fix=_fix(details),
    )


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list"}
_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _fix(details: ErrorDetails) -> str | None:
    """What to write instead, where pydantic knows it."""
    context = details.get("ctx", {})
    if "fix" in context:  # a validator of ours that raised a PydanticCustomError
        return str(context["fix"])
    for limit, words in _LIMITS.items():
        if limit in context:
            return f"use {words} {context[limit]:g}"
    if details["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        guess = nearest(str(details["input"]), choices)
        return f"did you mean {guess!r}?" if guess else "use one of these"
    kind = details["type"].partition("_")[0]
    return f"write {_KINDS[kind]}" if kind in _KINDS else None


def unknown_name(where: str, name: object, known: Any, what: str) -> Problem:
    """The problem of a name that is none of the known ones; suggests the nearest."""
    return Problem(
        f"{what} {name!r}", where=where, given=shown(name), fix=choices(str(name), known)
    )


def _fields_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Names of the settings of the (nested) model at a location."""
    current: Any = model
    for part in location:
        if _is_model(current):
            field = current.model_fields.get(part)
            parts = () if field is None else (field.annotation, *get_args(field.annotation))
        else:  # a mapping, whose keys are free
            parts = get_args(current)[1:]
        inner = (each for each in parts if _is_model(each) or get_origin(each) is dict)
        current = next(inner, None)
    return list(current.model_fields) if _is_model(current) else []


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
