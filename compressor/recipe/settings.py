"""Settings of one component, given as ``name=value`` on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from compressor.errors import Problem, RecipeError, SettingsError, choices
from compressor.recipe.document import apply_overrides, shown
from targets.discovery import Component

__all__ = ["read_settings"]

ComponentT = TypeVar("ComponentT", bound=Component)


def read_settings(cls: type[ComponentT], overrides: Sequence[str], where: str) -> ComponentT:
    """Make a component from its settings; values are YAML.

    Args:
        cls: What to make.
        overrides: ``name=value``, with dots between the parts of a nested name.
        where: What messages call the settings.

    Raises:
        SettingsError: Carries a problem for each setting that is unknown, missing or out of range.
    """
    values: dict[str, Any] = {}
    try:
        apply_overrides(values, overrides, Path(where))
    except RecipeError as error:
        raise SettingsError(error.problems, where=where) from error
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problems = []
        for each in error.errors():
            name = ".".join(map(str, each["loc"]))
            message = each["msg"].removeprefix("Value error, ")
            what, fix = message[0].lower() + message[1:], None
            given: str | None = shown(each["input"])
            if each["type"] == "extra_forbidden":
                what = f"there is no setting {name!r}"
                fix = choices(name, cls.model_fields)
            elif each["type"] == "missing":
                what, given = f"the setting {name!r} is missing", None
                about = cls.model_fields[name].description if name in cls.model_fields else None
                fix = f"give it with --set {name}=..." + (f"  ({about})" if about else "")
            problems.append(Problem(what, where=f"--set {name}".rstrip(), given=given, fix=fix))
        raise SettingsError(problems, where=where) from error
