"""Read a budget for the gate: from a file of limits, or from the command line."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.errors import BudgetFileError, DocumentError, Problem
from compressor.gate.budget import Budget
from compressor.recipe.document import apply_overrides, parse_yaml
from compressor.recipe.problems import problem_of

__all__ = ["load_budget"]

COMMAND_LINE = Path("command line")


def load_budget(
    file: Path | None,
    *,
    base: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> Budget:
    """Read and validate a budget.

    Args:
        file: A YAML file of limits, or a recipe, whose budget is taken.
        base: Limits to start from where there is no file.
        overrides: ``limit=value`` pairs; values are YAML.

    Raises:
        BudgetFileError: Carries every problem.
    """
    where = file or COMMAND_LINE
    try:
        document = copy.deepcopy(dict(base or {})) if file is None else _read(file)
        apply_overrides(document, overrides, where)
        return Budget.model_validate(document)
    except Problem as problem:
        raise BudgetFileError([problem], where=where) from problem
    except ValidationError as error:
        problems = [problem_of(each, Budget) for each in error.errors()]
        raise BudgetFileError(problems, where=where) from error
    except DocumentError as error:
        raise BudgetFileError(error.problems, where=where) from error


def _read(file: Path) -> dict[str, Any]:
    document = parse_yaml(file, fix="write one limit a line, such as 'max_accuracy_drop: 1.0'")
    if isinstance(document, dict) and "budget" in document:
        document = document["budget"]
    if not isinstance(document, dict):
        raise Problem(
            "a budget is a mapping of limits",
            given=type(document).__name__,
            fix="write one limit a line, such as 'max_accuracy_drop: 1.0'",
        )
    return document
