"""What a trial is worth: its recipe run up to the choice by validation data, and judged there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from compressor.errors import Problem, RecipeError
from compressor.gate.budget import Budget
from compressor.gate.limits import GOALS, target_label, targets_of
from compressor.gate.verdict import shortfall
from compressor.recipe.schema import Recipe
from compressor.report.schema import Row
from compressor.rows import shape_key
from compressor.training.settings import TrainingSettings
from targets.errors import TargetError

__all__ = [
    "Objective",
    "Value",
    "check_budget",
    "judge_trial",
    "least_drop_allowed",
    "num_evaluations",
    "objective_of",
]

Objective = Literal["speedup", "accuracy"]
"""What a search maximizes, within the limits of the budget."""


class Value(BaseModel):
    """What a trial reached; where the budget wants every target, the worst of each."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    speedup: float
    """Latency of the fastest untouched model on the same target over that of the bundle; of
    language models that write, the time of a token."""
    accuracy: float
    """On the validation data, in [0, 1]."""
    drop_points: float
    """Of that accuracy against the untouched model."""
    shortfall: float
    """How far the budget is missed, as shares of its limits; 0 where it is met."""
    bundles: tuple[str, ...]
    """Which bundles would ship."""

    def of(self, objective: Objective) -> float:
        """What the search maximizes."""
        return self.speedup if objective == "speedup" else self.accuracy


def objective_of(budget: Budget) -> Objective:
    """The most accurate bundle where there is a limit on its speed, otherwise the fastest.

    A limit on the size alone asks for the most accurate one as well.
    """
    goals = {
        GOALS[name] for each in (budget, *budget.targets.values()) for name in each.given
        if name in GOALS
    }  # fmt: skip
    return "accuracy" if "speed" in goals or "accuracy" not in goals else "speedup"


def least_drop_allowed(budget: Budget, before: float) -> float | None:
    """The accuracy that a bundle may lose on every target, in points; None where it is no limit.

    Args:
        budget: Its limits for all targets and for single ones.
        before: Accuracy of the untouched model, in [0, 1].
    """
    found = [
        points
        for each in (budget, *budget.targets.values())
        for points in (
            each.max_accuracy_drop,
            None if each.max_relative_drop is None else each.max_relative_drop * before,
        )
        if points is not None
    ]
    return min(found, default=None)


def check_budget(recipe: Recipe) -> None:
    """Refuse a budget that says nothing that a trial can be judged by.

    Raises:
        RecipeError: It has no limit but those on devices.
    """
    if recipe.budget.here.is_empty:
        problem = Problem(
            "the budget has no limit for a search to meet",
            where="budget",
            given="limits on devices only" if recipe.budget.devices else "an empty budget",
            fix="set max_accuracy_drop for the fastest bundle within it, or min_speedup or "
            "max_latency_ms for the most accurate",
        )
        raise RecipeError([problem], where=f"recipe {recipe.name}")


def judge_trial(rows: Sequence[Row], recipe: Recipe) -> Value:
    """What the bundles that would ship are worth, by the validation data.

    Raises:
        TargetError: A target that counts has none that was measured.
    """
    values = {}
    primary = shape_key(recipe.benchmark.shapes[0])
    for row in rows:
        compared = row.validation_comparison
        faster = row.writing_speedup or row.speedup  # as what ships is chosen
        if row.chosen and faster and row.validation and compared is not None:
            values[target_label(row)] = Value(
                speedup=faster.ratio,
                accuracy=row.validation.value,
                drop_points=compared.drop_points,
                shortfall=shortfall(row, recipe.budget.here, primary),
                bundles=(row.key,),
            )
    missing = [label for label in targets_of(rows) if label not in values]
    every = recipe.budget.require == "every"
    if not values or (every and missing):
        reasons = [row.reason for row in rows if row.reason and target_label(row) in missing]
        raise TargetError(
            "no bundle could be measured against the untouched model",
            where=", ".join(missing),
            given=reasons[0] if reasons else None,
            fix="see the reason; `compressor run` with the settings of this trial shows more",
        )
    objective = objective_of(recipe.budget)
    if not every:
        return min(values.values(), key=lambda each: (each.shortfall, -each.of(objective)))
    return Value(
        speedup=min(each.speedup for each in values.values()),
        accuracy=min(each.accuracy for each in values.values()),
        drop_points=max(each.drop_points for each in values.values()),
        shortfall=sum(each.shortfall for each in values.values()),
        bundles=tuple(name for each in values.values() for name in each.bundles),
    )


def num_evaluations(recipe: Recipe) -> int:
    """How often the trainings of a recipe tell their accuracy."""
    passes: Iterable[object] = itertools.chain(recipe.passes, *recipe.variants.values())
    return sum(
        math.ceil(each.epochs / each.evaluate_every)
        for each in passes
        if isinstance(each, TrainingSettings)
    )
