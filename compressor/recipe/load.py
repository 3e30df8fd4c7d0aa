"""Read a recipe: YAML to a validated value, with every problem reported at once."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from compressor.errors import CheckpointError, Problem, RecipeError, guess_first, missing_path
from compressor.passes import available_passes
from compressor.recipe.document import apply_overrides, assign, read_document, shown
from compressor.recipe.problems import problem_of, unknown_name
from compressor.recipe.schema import ORIGINAL, VARIANT_NAME, Recipe
from compressor.tasks import TASKS, get_task, infer_task
from targets.discovery import Component
from targets.errors import ToolkitError
from targets.preprocessing import FIXED_SIZE
from targets.registry import available

__all__ = ["builtin_recipes", "load_recipe", "recipe_of", "validate_document"]

COMMAND_LINE = "the command line"


def builtin_recipes() -> dict[str, Path]:
    """The recipes that come with the toolkit: name -> file."""
    folder = Path(str(resources.files("compressor"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(
    source: str | Path,
    *,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    column: str | None = None,
    label: str | None = None,
) -> Recipe:
    """Read and validate a recipe.

    Args:
        source: A file, or the name of a built-in recipe.
        overrides: ``path=value`` pairs such as ``passes.1.ratio=0.3``; values are YAML.
        values: Dotted path -> value, set before the overrides; for command-line options.
        column: Of the data, with the input, whatever the task calls it.
        label: The same of what is right.

    Returns:
        The recipe. Relative paths in it were resolved against the folder of the file, or against
        the working directory for a built-in recipe. Where it names no task, its task is that of the
        checkpoint; of one without a head, classification of what it reads.

    Raises:
        RecipeError: Carries all problems: each with its path, the value given, and the nearest
            known name for a misspelt one.
    """
    path, base = _locate(source)
    document = read_document(path)
    try:
        for dotted, value in (values or {}).items():
            assign(document, dotted, value)
    except Problem as problem:
        raise RecipeError([problem], where=path) from problem
    apply_overrides(document, overrides, path)
    document.setdefault("name", path.stem)
    return _made(document, overrides, path, base, column, label)


def recipe_of(document: Mapping[str, Any], *, overrides: Sequence[str] = ()) -> Recipe:
    """Make a recipe of what a command line says, without a file.

    Args:
        document: Settings as plain values; paths are absolute.
        overrides: As those of :func:`load_recipe`.

    Raises:
        RecipeError: Carries all problems.
    """
    path = Path(COMMAND_LINE)
    changed = copy.deepcopy(dict(document))
    apply_overrides(changed, overrides, path)
    return _made(changed, overrides, path, Path.cwd())


def _made(
    document: dict[str, Any],
    overrides: Sequence[str],
    path: Path,
    base: Path,
    column: str | None = None,
    label: str | None = None,
) -> Recipe:
    """The recipe of a document; where that names no task, with that of the checkpoint."""
    if "task" not in document:
        model = _resolve_paths(Path(str(document.get("model", ""))), base)
        document["task"] = infer_task(model, labelled=True)
    task, data = document["task"], document.get("data") or {}
    # What is no task, or no mapping, is told with all that is wrong.
    if isinstance(task, str) and task in TASKS and isinstance(data, dict):
        named = get_task(task).named_columns(column, label)
        document |= {"data": data | named} if named else {}
    try:
        return validate_document(document, path, base)
    except RecipeError as error:
        problems = [_with_override(each, overrides) for each in error.problems]
        raise RecipeError(problems, where=path) from error


def _with_override(problem: ToolkitError, overrides: Sequence[str]) -> ToolkitError:
    """A problem with what the command line set says so, not to be looked for in the file."""
    for override in reversed(overrides):  # of several of one setting the last holds
        dotted = override.partition("=")[0].strip()
        if problem.where is not None and f"{problem.where}.".startswith(f"{dotted}."):
            where = f"{problem.where}, from --set {override}"
            return Problem(problem.what, where=where, given=problem.given, fix=problem.fix)
    return problem


def _locate(source: str | Path) -> tuple[Path, Path]:
    known = builtin_recipes()
    path = Path(source)
    is_file = os.path.isfile(path)
    if str(source) in known and not is_file:
        return known[str(source)], Path.cwd()
    if not is_file:
        builtin = f"the built-in recipes are {', '.join(known)}"
        if path.suffix or len(path.parts) > 1:
            problem = Problem(
                "the file does not exist" if not os.path.exists(path) else "this is not a file",
                given=source,
                fix=missing_path(path, f"correct the path; {builtin}"),
            )
        else:
            problem = Problem(
                "there is no such recipe",
                given=source,
                fix=guess_first(str(source), known, f"pass a YAML file; {builtin}"),
            )
        raise RecipeError([problem], where=source)
    return path, path.resolve().parent


def validate_document(document: dict[str, Any], path: Path, base: Path) -> Recipe:
    """Make a recipe of its settings as plain values.

    Args:
        document: The settings; the form that a recipe is dumped in is one of them.
        path: Of the file, for messages.
        base: Folder that relative paths start from.

    Raises:
        RecipeError: Carries all problems.
    """
    problems: list[Problem] = []
    document = dict(document)
    if "passes" in document:
        document["passes"] = _chain(document["passes"], "passes", problems)
    if "variants" in document:
        document["variants"] = _variants(document["variants"], problems)
    if "targets" in document:
        document["targets"] = _components(
            document["targets"], "targets", "target", available(), problems
        )
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        lists = {problem.where.partition(".")[0] for problem in problems if problem.where}
        details = error.errors()
        # A list whose entries are wrong is not short of entries as well.
        found = [
            each for each in details if each["type"] != "too_short" or each["loc"][0] not in lists
        ]
        problems = [problem_of(each, Recipe) for each in found] + problems
        raise RecipeError(problems, where=path) from error
    if problems:
        raise RecipeError(problems, where=path)
    timed = document.get("benchmark") or {}
    resolved: Recipe = _resolve_paths(recipe, base)
    return resolved if "sequence_length" in timed else _timed_as_read(resolved)


def _timed_as_read(recipe: Recipe) -> Recipe:
    """The recipe, with timed inputs that are no longer than the model takes."""
    try:
        limit = get_task(recipe.task).read_length(recipe.model, max_length=recipe.data.max_length)
    except CheckpointError:  # that is told by itself
        return recipe
    if limit == FIXED_SIZE or recipe.benchmark.sequence_length <= limit:
        return recipe
    benchmark = recipe.benchmark.model_copy(update={"sequence_length": limit})
    return recipe.model_copy(update={"benchmark": benchmark})


def _chain(entries: Any, where: str, problems: list[Problem]) -> tuple[Component, ...]:
    return _components(entries, where, "pass", available_passes(), problems)


def _variants(entries: Any, problems: list[Problem]) -> dict[str, tuple[Component, ...]]:
    if not isinstance(entries, dict):
        problems.append(
            Problem(
                "variants must be a mapping from names to lists of passes",
                where="variants",
                given=shown(entries),
                fix="write 'NAME: [{pass: NAME}]' for each, such as "
                "'int8: [{pass: quantize, method: static}]'",
            )
        )
        return {}
    for name in entries:
        # YAML reads the bare words no, on and null as other things than text.
        is_word = isinstance(name, str | int) and not isinstance(name, bool)
        if not is_word or not re.fullmatch(VARIANT_NAME, str(name)):
            problems.append(
                Problem(
                    "this cannot be the name of a variant",
                    where="variants",
                    given=repr(name),
                    fix=f"use letters, digits, '.', '_' and '-', and not {ORIGINAL!r}; "
                    "put words such as 'no' in quotes",
                )
            )
    return {
        str(name): _chain([] if tail is None else tail, f"variants.{name}", problems)
        for name, tail in entries.items()
    }


def _components(
    entries: Any,
    where: str,
    key: str,
    known: Mapping[str, type[Component]],
    problems: list[Problem],
) -> tuple[Component, ...]:
    if not isinstance(entries, list):
        problems.append(
            Problem(
                f"{where} must be a list",
                where=where,
                given=shown(entries),
                fix=f"write '- {key}: NAME' for each",
            )
        )
        return ()
    built = []
    for index, entry in enumerate(entries):
        here = f"{where}.{index}"
        if isinstance(entry, str):
            entry = {key: entry}
        if not isinstance(entry, dict) or key not in entry:
            problems.append(
                Problem(
                    f"an entry does not name its {key}",
                    where=here,
                    given=shown(entry),
                    fix=f"write '- {key}: NAME', with its settings below it",
                )
            )
            continue
        settings = {name: value for name, value in entry.items() if name != key}
        cls = known.get(str(entry[key]))
        if cls is None:
            problems.append(unknown_name(f"{here}.{key}", entry[key], known, f"there is no {key}"))
            continue
        try:
            built.append(cls.model_validate(settings))
        except ValidationError as error:
            problems.extend(problem_of(each, cls, here) for each in error.errors())
    return tuple(built)


def _resolve_paths(value: Any, base: Path) -> Any:
    """Make every relative path of a recipe absolute, in nested settings too."""
    if isinstance(value, Path):
        # Links are not followed: the name of what they lead to may have no suffix.
        return Path(os.path.abspath(base / value.expanduser()))
    if isinstance(value, tuple):
        return tuple(_resolve_paths(each, base) for each in value)
    if isinstance(value, dict):
        return {key: _resolve_paths(each, base) for key, each in value.items()}
    if isinstance(value, BaseModel):
        current = {name: getattr(value, name) for name in type(value).model_fields}
        resolved = {name: _resolve_paths(each, base) for name, each in current.items()}
        changed = {name: new for name, new in resolved.items() if new != current[name]}
        return value.model_copy(update=changed) if changed else value
    return value
