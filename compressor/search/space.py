"""What `compressor search` may choose: paths of a recipe, each with a range or a list of values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from compressor.errors import Problem, RecipeError, SpaceError
from compressor.planning import make_plan
from compressor.recipe.document import assign, parse_yaml, shown
from compressor.recipe.load import validate_document
from compressor.recipe.problems import problem_of
from compressor.recipe.schema import Recipe
from targets.errors import ToolkitError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Choices", "Range", "Space", "read_space", "with_settings"]

_BETWEEN = 0.381966
"""Of a range, as a share: no round number lies there."""
SEARCHED = ("passes", "variants")
"""Parts of a recipe that a search may change: what it does, not what it is judged by."""


def _number(value: Any) -> Any:
    """Refuse true and false, and read 1e-4, which YAML takes for text."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("input should be a number") from None
    return value


def _scalar(value: Any) -> Any:
    """Read 1e-4, which YAML takes for text."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value, re.IGNORECASE):
        return float(value)
    return value


Scalar = Annotated[bool | int | float | str | None, BeforeValidator(_scalar)]
Number = Annotated[int | float, BeforeValidator(_number)]


class _Dimension(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class Range(_Dimension):
    """The numbers between two; whole ones where all that is given is whole."""

    low: Number
    """Smallest value."""
    high: Number
    """Largest value."""
    log: bool = False
    """Whether the logarithm is uniform, as for a learning rate."""
    step: Annotated[Number, Field(gt=0)] | None = None
    """Distance of the values; null takes all."""

    @model_validator(mode="after")
    def _holds(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low has to be less than high")
        if self.log and self.low <= 0:
            raise ValueError("low has to be more than 0 where log is true")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other; give one of them")
        if self.step is not None:
            count = (self.high - self.low) / self.step
            if not math.isclose(count, round(count), abs_tol=1e-6) or round(count) < 1:
                raise ValueError("high has to be low plus a multiple of step")
        return self

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values that are checked before a search begins.

        One between the ends as well, where these may be whole by chance, such as 1e2: a setting
        that takes whole numbers alone refuses it.
        """
        if self._is_whole:
            return (self.low, self.high)
        return (self.low, self.low + (self.step or _BETWEEN * (self.high - self.low)), self.high)

    @property
    def _is_whole(self) -> bool:
        return not any(isinstance(each, float) for each in (self.low, self.high, self.step))

    def distribution(self) -> BaseDistribution:
        """The same for optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self._is_whole:
            step = int(self.step or 1)
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


class Choices(_Dimension):
    """One of some values, in no order."""

    choices: tuple[Scalar, ...] = Field(min_length=2)
    """The values."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len({repr(each) for each in self.choices}) < len(self.choices):
            raise ValueError("a value appears twice")
        return self

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values that are checked before a search begins."""
        return self.choices

    def distribution(self) -> BaseDistribution:
        """The same for optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)


Space = Mapping[str, Range | Choices]
"""Dotted path in a recipe -> the values it may have."""


def read_space(path: Path, recipe: Recipe) -> Space:
    """Read a search space, and check the ends of every range and every choice in the recipe.

    Args:
        path: A YAML file: dotted path -> ``{low, high, log, step}`` or ``{choices}``.
        recipe: What the settings are for.

    Raises:
        SpaceError: Carries all problems.
    """
    try:
        document = parse_yaml(path, fix="correct it there: passes.1.ratio: {low: 0.2, high: 0.6}")
    except Problem as invalid:
        raise SpaceError([invalid], where=path) from invalid
    if not isinstance(document, dict) or not document:
        problem = Problem(
            "a search space is a mapping from paths of the recipe to their values",
            given=shown(document),
            fix="write passes.1.ratio: {low: 0.2, high: 0.6}, or {choices: [0.2, 0.5]}",
        )
        raise SpaceError([problem], where=path)
    problems: list[ToolkitError] = []
    space: dict[str, Range | Choices] = {}
    for name, values in document.items():
        dotted = str(name)
        try:
            space[dotted] = _dimension(dotted, values)
        except ValidationError as error:
            cls = _kind(values)
            problems.extend(problem_of(each, cls, dotted) for each in error.errors())
        except Problem as problem:
            problems.append(problem)
    for dotted, dimension in space.items():
        problems.extend(_misfits(recipe, dotted, dimension))
    if problems:
        raise SpaceError(problems, where=path)
    return space


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other values at some of its paths.

    Raises:
        RecipeError: It does not hold with them.
    """
    document = recipe.model_dump(mode="json")
    try:
        for dotted, value in settings.items():
            assign(document, dotted, value)
    except Problem as problem:
        raise RecipeError([problem], where=recipe.name) from problem
    return validate_document(document, Path(recipe.name), Path.cwd())


def _kind(values: Any) -> type[Range | Choices]:
    return Choices if isinstance(values, dict) and "choices" in values else Range


def _dimension(dotted: str, values: Any) -> Range | Choices:
    if dotted.partition(".")[0] not in SEARCHED:
        raise Problem(
            "a search changes passes and variants only",
            where=dotted,
            given=dotted,
            fix="name a setting of a pass, such as passes.1.ratio; --set changes the others",
        )
    if not isinstance(values, dict):
        raise Problem(
            "a setting has neither a range nor choices",
            where=dotted,
            given=shown(values),
            fix="write {low: 0.2, high: 0.6} or {choices: [0.2, 0.5]}",
        )
    return _kind(values).model_validate(values)


def _misfits(recipe: Recipe, dotted: str, dimension: Range | Choices) -> list[ToolkitError]:
    """What is wrong with the recipe at the ends of a range, or with a choice; each thing once."""
    found: dict[tuple[object, ...], ToolkitError] = {}
    for value in dimension.extremes:
        try:
            make_plan(with_settings(recipe, {dotted: value}))
        except RecipeError as error:
            for each in error.problems:
                found.setdefault((each.what, each.where, each.given), each)
    return list(found.values())
