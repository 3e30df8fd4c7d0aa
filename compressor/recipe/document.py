"""Settings as plain mappings and lists: parse the YAML, set values at dotted paths."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from compressor.errors import Problem, RecipeError

__all__ = ["apply_overrides", "assign", "parse_yaml", "read_document", "shown"]

_MAX_VALUES = 20_000
"""Values of a document, aliases written out; a few aliases of aliases can stand for billions."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, made to refuse a key that stands twice."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check a mapping before what it merges is written into it, which happens in place."""
        if id(node) not in self._checked:
            self._checked.add(id(node))
            self._refuse_doubles(node)
        super().flatten_mapping(node)

    def _refuse_doubles(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} appears twice", key_node.start_mark
                )
            if isinstance(key, Hashable):  # else the base class refuses it
                seen.add(key)


def parse_yaml(path: Path, *, fix: str) -> Any:
    """Read a YAML file with care; no two places of the result share a list or a mapping.

    Args:
        path: The file.
        fix: What to do about a file that is not valid.

    Raises:
        Problem: It does not exist or cannot be read, is not valid YAML, or is too large.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            return _unshared(yaml.load(stream, _UniqueKeyLoader))  # noqa: S506  (a SafeLoader)
    except FileNotFoundError as error:
        raise Problem("the file does not exist", fix="pass a file that exists") from error
    except OSError as error:
        raise Problem(
            "the file cannot be read", given=error.strerror, fix="pass a file that can be read"
        ) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise Problem(
            "the file is not valid YAML", given=" ".join(str(error).split()), fix=fix
        ) from error


def read_document(path: Path) -> dict[str, Any]:
    """Read a recipe file; no two places of the result share a list or a mapping.

    Raises:
        RecipeError: It is not valid YAML, no mapping, or too large.
    """
    try:
        document = parse_yaml(
            path, fix="correct it there; `compressor schema` helps editors to check as you type"
        )
    except Problem as invalid:
        raise RecipeError([invalid], where=path) from invalid
    if not isinstance(document, dict):
        problem = Problem(
            "a recipe must be a mapping of settings",
            given=type(document).__name__,
            fix="start from a built-in recipe: `compressor recipes` lists them",
        )
        raise RecipeError([problem], where=path)
    return document


def apply_overrides(
    document: dict[str, Any], overrides: Sequence[str], path: Path, *, nullable: bool = True
) -> None:
    """Set ``path=value`` pairs; values are YAML.

    Args:
        document: Changed in place.
        overrides: The pairs.
        path: Of the document, for messages.
        nullable: Whether a value may be null, as that of an unset variable of a shell is.

    Raises:
        RecipeError: Carries a problem for each one that cannot be set.
    """
    problems: list[Problem] = []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        try:
            if not equals:
                raise Problem(
                    "an override has no value",
                    given=override,
                    fix="write it as --set passes.1.ratio=0.3",
                )
            value = _parse_value(text, override)
            if value is None and not nullable:
                raise Problem(
                    "an override is empty",
                    where=dotted.strip(),
                    given=f"--set {override}",
                    fix="give it a value; is a variable of the shell unset?",
                )
            assign(document, dotted.strip(), value)
        except Problem as problem:
            problems.append(problem)
    if problems:
        raise RecipeError(problems, where=path)


def assign(document: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one value at a dotted path; steps through lists take an index.

    Raises:
        Problem: The path leads nowhere.
    """
    node: Any = document
    parts = dotted.split(".")
    for position, part in enumerate(parts[:-1]):
        here = ".".join(parts[: position + 1])
        index = _index(node, part, here, dotted)
        if isinstance(node, list) and isinstance(node[index], str):
            # A pass or target written as its name alone: `- export` for `- pass: export`.
            node[index] = {"target" if parts[0] == "targets" else "pass": node[index]}
        elif isinstance(node, dict) and node.get(index) is None:
            node[index] = {}
        node = node[index]
    node[_index(node, parts[-1], dotted, dotted)] = value


def shown(value: object) -> str:
    """A value for a message, cut to a readable length."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxdict = _SHORT.maxlist = 8
_SHORT.maxlevel = 4


def _index(node: Any, part: str, here: str, dotted: str) -> Any:
    """The key or index of a step into ``node``."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise Problem(
            "an override reaches into a value that has no parts",
            where=here,
            given=dotted,
            fix=f"set the value as a whole; the value there is {shown(node)}",
        )
    if not part.isdecimal() or int(part) >= len(node):
        raise Problem(
            "an override names an element that is not there",
            where=here,
            given=dotted,
            fix=f"use an index: {', '.join(_numbered(node))}" if node else "the list is empty",
        )
    return int(part)


def _numbered(entries: list[Any]) -> list[str]:
    """Each entry of a list with its index: by its name, where it is a pass or a target."""
    names = [
        each.get("pass") or each.get("target") if isinstance(each, dict) else each
        for each in entries
    ]
    return [f"{index} ({shown(name)})" for index, name in enumerate(names)]


def _parse_value(text: str, override: str) -> Any:
    try:
        return _unshared(yaml.safe_load(text))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise Problem(
            "the value of an override is not valid YAML",
            given=override,
            fix="put it in quotes for YAML as well as for the shell: --set 'name=\"a: b\"'",
        ) from error


def _unshared(value: Any) -> Any:
    """Copy a value so that no list or mapping stands in two places, as YAML aliases make it.

    Raises:
        ValueError: It has more than ``_MAX_VALUES`` values.
    """
    count = 0

    def copy(each: Any) -> Any:
        nonlocal count
        count += 1
        if count > _MAX_VALUES:
            raise ValueError(f"more than {_MAX_VALUES} values, with aliases written out")
        if isinstance(each, Mapping):
            return {key: copy(part) for key, part in each.items()}
        if isinstance(each, list):
            return [copy(part) for part in each]
        return each

    return copy(value)
