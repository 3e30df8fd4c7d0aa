"""Read the budget of a gate: from a report, a file of limits, or the command line."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.errors import BudgetFileError, DocumentError, Problem, nearest
from compressor.gate.budget import Budget
from compressor.recipe.document import apply_overrides, parse_yaml
from compressor.recipe.problems import problem_of
from compressor.recipe.schema import Recipe

__all__ = ["load_budget", "unknown_targets"]


def load_budget(
    file: Path | None,
    *,
    where: Path,
    base: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> Budget:
    """Read and validate the budget of a gate.

    Args:
        file: A YAML file of limits, or a recipe, whose budget is taken.
        where: What the limits come from, for messages.
        base: Limits to start from where there is no file.
        overrides: ``limit=value`` pairs; values are YAML.

    Raises:
        BudgetFileError: Carries every problem.
    """
    try:
        document = copy.deepcopy(dict(base or {})) if file is None else _read(file)
        apply_overrides(document, overrides, where, nullable=False)
        budget = Budget.model_validate(document)
        if budget.is_empty:
            raise Problem(
                "the budget has no limit: it would let everything through",
                fix="give one, such as --set max_accuracy_drop=1, or a file of them with --budget",
            )
    except Problem as problem:
        raise BudgetFileError([problem], where=where) from problem
    except ValidationError as error:
        problems = [problem_of(each, Budget) for each in error.errors()]
        raise BudgetFileError(problems, where=where) from error
    except DocumentError as error:
        raise BudgetFileError(error.problems, where=where) from error
    return budget


def unknown_targets(
    budget: Budget, targets: Collection[str], owner: str, prefix: str = ""
) -> Iterator[Problem]:
    """Limits that would never be looked at, as their target is none of those that there are.

    Args:
        budget: The limits.
        targets: Labels of the targets that there are.
        owner: Of these targets, such as ``recipe``.
        prefix: Dotted path at which the budget stands in its document.
    """
    for name in budget.targets:
        if name not in targets:
            guess = nearest(name, targets)
            yield Problem(
                f"the budget has limits for a target that the {owner} does not have",
                where=f"{prefix}targets.{name}",
                given=", ".join(targets),
                fix=f"did you mean {guess!r}?" if guess else "add the target, or remove the limits",
            )


def _read(file: Path) -> dict[str, Any]:
    fix = "write one limit a line, such as 'max_accuracy_drop: 1.0'"
    document = parse_yaml(file, fix=fix)
    if isinstance(document, dict) and "budget" in document:
        stray = [name for name, value in document.items() if not _is_recipes(name, value)]
        if stray:
            raise Problem(
                "there are limits beside 'budget:', where they are ignored",
                given=", ".join(map(str, stray)),
                fix="indent them to put them under 'budget:', or remove that line",
            )
        document = document["budget"]
    if not isinstance(document, dict):
        raise Problem(
            "a budget must be a mapping of limits", given=type(document).__name__, fix=fix
        )
    return document


def _is_recipes(name: object, value: object) -> bool:
    """Whether what stands beside ``budget`` is a setting of a recipe, and no limit.

    Both have ``targets`` and ``devices``; those of a budget are mappings.
    """
    is_limit = name in Budget.model_fields and isinstance(value, dict)
    return name in Recipe.model_fields and not is_limit
