"""Find the passes and targets: one module each, in a package of their own."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

from targets.environment import SOURCE
from targets.errors import PluginError

__all__ = ["Component", "announcer", "discover", "foreign_source", "package_source"]

_OWN = ("compressor", "targets")


class Component(BaseModel):
    """A frozen, validated value that a recipe names: a pass or a target.

    Subclasses set ``name``, the word that stands for them in a recipe, and add their settings as
    fields, the most used first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str]

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values, without the name."""
        return self.model_dump(mode="json")

    def portable_settings(self) -> dict[str, Any]:
        """The same, with files by their names alone: where they lie changes nothing."""
        found: dict[str, Any] = _with_names(self.model_dump(), self.settings())
        return found

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]


def _with_names(plain: Any, dumped: Any) -> Any:
    """What was dumped as JSON, with the names of paths in the place of them."""
    if isinstance(plain, Path):
        return plain.name
    if isinstance(plain, dict) and isinstance(dumped, dict):
        return {key: _with_names(plain.get(key), value) for key, value in dumped.items()}
    if isinstance(plain, (list, tuple)) and isinstance(dumped, list):
        return [_with_names(*pair) for pair in zip(plain, dumped, strict=True)]
    return dumped


ComponentT = TypeVar("ComponentT", bound=Component)


def discover(
    package: ModuleType, base: type[ComponentT], entry_points: str | None
) -> dict[str, type[ComponentT]]:
    """Collect the subclasses of ``base``.

    Looks at every public module of ``package``, and at what other installed distributions announce
    under the entry-point group ``entry_points``, if one is given.

    Returns:
        name -> class, sorted by name.

    Raises:
        PluginError: A file cannot be imported, a class in it lacks what ``base`` needs, or two have
            one name; or what another distribution announces cannot be imported, is no such subclass
            of ``base``, or takes a name that is in use.
    """
    found: dict[str, type[ComponentT]] = {}
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name.rpartition(".")[2].startswith("_"):
            continue
        loaded = _import(module.name)
        for value in vars(loaded).values():
            if getattr(value, "__module__", None) == module.name and _is_component(value, base):
                _check_own(value, base)
                known = found.setdefault(value.name, value)
                if known is not value:
                    raise PluginError(
                        "two passes or targets have the same name",
                        where=_file(module.name),
                        given=f"{value.name!r}, which is the name of {known.__name__} in "
                        f"{_file(known.__module__)} too",
                        fix=f"change name of {value.__name__}",
                    )
    others = importlib.metadata.entry_points(group=entry_points) if entry_points else ()
    for entry in others:
        cls = _load_entry(entry, base)
        known = found.setdefault(cls.name, cls)
        if known is not cls:
            raise _unusable(entry, f"its name {cls.name!r} is taken by {known.__module__}")
    return dict(sorted(found.items()))


def announcer(cls: type[Component]) -> str | None:
    """The distribution that a pass or target of somebody else comes with; None for our own."""
    package = cls.__module__.partition(".")[0]
    if package in _OWN:
        return None
    return next(iter(importlib.metadata.packages_distributions().get(package, ())), package)


def foreign_source(cls: type[Component]) -> dict[str, str]:
    """What tells one state of the code of somebody else's pass or target from another.

    Returns:
        See `package_source`; empty for our own, which have versions that go up when results change.
    """
    package = cls.__module__.partition(".")[0]
    return {} if package in _OWN else package_source(package)


@functools.cache
def package_source(module: str) -> dict[str, str]:
    """What tells one state of a package of somebody else from another: it may be under work.

    Args:
        module: One of the package, or the package.

    Returns:
        Package -> sha256 of all its Python files; empty where there are none.
    """
    package = module.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin)
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    digest = hashlib.sha256()
    for each in files:
        digest.update(each.relative_to(path.parent).as_posix().encode() + b"\0")
        digest.update(each.read_bytes())
    return {f"{SOURCE}{package}": digest.hexdigest()}


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a file raises on import
        raise PluginError(
            "a pass or target cannot be imported",
            where=_file(name),
            given=f"{type(error).__name__}: {error}",
            fix="correct the file, or take it out of the folder; imports of heavy or optional "
            "libraries belong inside the methods",
        ) from error


def _file(module: str) -> str:
    return module.replace(".", "/") + ".py"


def _check_own(cls: type[Component], base: type[Component]) -> None:
    """Tell whoever writes a class what it does not have yet."""
    if missing := _missing(cls, base):
        raise PluginError(
            "a pass or target is not complete",
            where=_file(cls.__module__),
            given=f"{cls.__name__} lacks {', '.join(missing)}",
            fix=f"add what {base.__name__} needs: it says what each is",
        )


def _is_component(value: object, base: type[Component]) -> bool:
    return isinstance(value, type) and issubclass(value, base) and "name" in vars(value)


def _load_entry(entry: importlib.metadata.EntryPoint, base: type[ComponentT]) -> type[ComponentT]:
    try:
        cls = entry.load()
    except Exception as error:  # whatever the module of a stranger raises on import
        raise _unusable(entry, f"{type(error).__name__}: {error}") from error
    if not _is_component(cls, base):
        what = "a module" if isinstance(cls, ModuleType) else "it"
        reason = f"{what} is not a subclass of {base.__name__} with a name of its own"
        raise _unusable(entry, reason, "; its author must name the class: package.module:Class")
    missing = _missing(cls, base)
    if missing:
        reason = f"{cls.__name__} lacks {', '.join(missing)}"
        raise _unusable(entry, reason, f"; its author must add what {base.__name__} needs")
    return cls  # type: ignore[no-any-return]


def _missing(cls: type[Component], base: type[Component]) -> list[str]:
    """What a class does not have that all of its kind need."""
    wanted = {
        name
        for parent in base.__mro__
        for name, kind in vars(parent).get("__annotations__", {}).items()
        if str(kind).startswith("ClassVar") and not name.startswith(("_", "model_"))
    }
    absent = sorted(name for name in wanted if not hasattr(cls, name))
    methods = sorted(getattr(cls, "__abstractmethods__", ()))
    return [*absent, *(f"{name}()" for name in methods), *([] if cls.__doc__ else ["a docstring"])]


def _unusable(entry: importlib.metadata.EntryPoint, reason: str, more: str = "") -> PluginError:
    owner = "another distribution" if entry.dist is None else entry.dist.name
    return PluginError(
        f"{owner} announces {entry.name!r}, which cannot be used",
        where=f"entry point {entry.group}: {entry.value}",
        given=reason,
        fix=f"update or uninstall {owner}{more}",
    )
