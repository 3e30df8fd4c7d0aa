"""The build half's part of the error tree.

    ToolkitError (targets.errors)
    ├── DocumentError       a file of settings that does not hold; carries all of its problems
    │   ├── RecipeError         a recipe
    │   ├── SpaceError          the settings that a search may choose
    │   ├── BudgetFileError     the limits of a gate
    │   ├── SettingsError       the settings that a command gives to one component
    │   └── InventoryError      a devices file
    ├── DataError           data that cannot be used as it is
    ├── CheckpointError     (targets.errors) a checkpoint that cannot be used as it is
    ├── PassError           a pass cannot start, failed, or broke its promise
    │   └── DivergenceError     a training whose loss became NaN or infinite
    ├── PackageError        a bundle that cannot be handed over to a server
    ├── StoreError          the run store cannot be read or written
    ├── ComparisonError     two reports that must not be compared
    ├── ReportError         a report that cannot be read or written, or is of another schema
    │   └── DamagedReportError  one whose figures cannot be used
    ├── BudgetError         nothing that was built meets the budget
    ├── TrackingError       what was found cannot be handed to a tracking server
    ├── AddressError        the address of a tracking server is absent, or is none
    └── DeviceError         a remote device that cannot be reached, or cannot do what was asked

Exit codes: 0 bundles exist and meet the budget, 1 a bug, 2 command line, 3 recipe, data or
checkpoint, 4 a pass, 5 the budget, 6 a target, bundle or remote device, 7 a missing library,
8 the store, 9 a gate on a noisy machine, 10 a tracking server, 130 or 143 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from targets.errors import CheckpointError, ToolkitError
from targets.wording import plural

__all__ = [
    "AddressError",
    "BudgetError",
    "BudgetFileError",
    "CheckpointError",
    "ComparisonError",
    "DamagedReportError",
    "DataError",
    "DeviceError",
    "DivergenceError",
    "DocumentError",
    "InventoryError",
    "PackageError",
    "PassError",
    "Problem",
    "RecipeError",
    "ReportError",
    "SettingsError",
    "SpaceError",
    "StoreError",
    "TrackingError",
    "choices",
    "guess_first",
    "missing_path",
    "nearest",
]


class Problem(ToolkitError):  # noqa: N818  (it is part of an error, and raised seldom)
    """One thing that is wrong with a document; collected by :class:`DocumentError`."""


class DocumentError(ToolkitError):
    """A file of settings does not hold.

    Args:
        problems: Everything that is wrong, not only the first.
        where: The file.
    """

    exit_code = 3
    kind: ClassVar[str] = "file of settings"
    """What the file is, for the message."""

    def __init__(self, problems: Sequence[ToolkitError], *, where: object) -> None:
        self.problems = tuple(problems)
        super().__init__(
            f"the {self.kind} has {plural(len(self.problems), 'problem')}", where=where
        )

    def __str__(self) -> str:
        parts = [super().__str__()]
        for number, problem in enumerate(self.problems, 1):
            bullet = f"{number}. " if len(self.problems) > 1 else "- "
            text = str(problem).replace("\n", "\n" + " " * len(bullet))
            parts.append(f"  {bullet}{text}".replace("\n", "\n  "))
        return "\n\n".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_document_error, (type(self), self.problems, self.where))


def _rebuild_document_error(
    cls: type[DocumentError], problems: Sequence[ToolkitError], where: str
) -> DocumentError:
    return cls(problems, where=where)


class RecipeError(DocumentError):
    """A recipe does not hold."""

    kind = "recipe"


class SettingsError(DocumentError):
    """The settings that the command line gives to one component do not hold."""

    kind = "command line"


class SpaceError(DocumentError):
    """What a search may choose does not hold."""

    kind = "search space"


class BudgetFileError(DocumentError):
    """The limits that a gate is given do not hold."""

    kind = "budget"


class InventoryError(DocumentError):
    """A devices file does not hold."""

    kind = "devices file"


class DataError(ToolkitError):
    """Data cannot be used as it is."""

    exit_code = 3


class PassError(ToolkitError):
    """A pass cannot start, failed, or did not keep its promise."""

    exit_code = 4


class DivergenceError(PassError):
    """The loss of a training became NaN or infinite, in all processes at once."""


class PackageError(ToolkitError):
    """A bundle cannot be handed over to a server."""

    exit_code = 6


class StoreError(ToolkitError):
    """The run store cannot be read or written."""

    exit_code = 8


class ComparisonError(ToolkitError):
    """Two reports differ in what has to be equal for their figures to be compared."""

    exit_code = 3


class ReportError(ToolkitError):
    """A report cannot be read or written, or is of a schema this version does not read."""

    exit_code = 8


class DamagedReportError(ReportError):
    """A report has fields that cannot be used, such as a time that is no number."""

    exit_code = 3


class BudgetError(ToolkitError):
    """Nothing that was built meets the budget."""

    exit_code = 5


class DeviceError(ToolkitError):
    """A remote device cannot be reached, refuses, or cannot do what was asked of it."""

    exit_code = 6


class TrackingError(ToolkitError):
    """What was found cannot be handed to a tracking server; the work itself is done and kept."""

    exit_code = 10


class AddressError(ToolkitError):
    """The address of a tracking server is absent, or is none: the command line is wrong."""

    exit_code = 2


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like a misspelt one, or None when nothing is close; case is ignored."""
    words = {each.lower(): each for each in known}
    matches = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    if not matches and len(word) > 2:
        matches = [each for each in words if each.startswith(word.lower())][:1]
    return words[matches[0]] if matches else None


def choices(word: str, known: Collection[str]) -> str:
    """What to do about a word that is none of the known ones: the nearest of them, then all."""
    return guess_first(word, known, f"known: {', '.join(known)}")


def guess_first(word: str, known: Iterable[str], fix: str) -> str:
    """What to do about a word that is none of the known ones: the nearest of them, then ``fix``."""
    guess = nearest(word, known)
    return (f"did you mean {guess!r}? " if guess else "") + fix


def missing_path(path: Path, fix: str) -> str:
    """What to do about a path that does not exist: the nearest name beside it, then ``fix``."""
    parent = path.absolute().parent
    siblings = sorted(each.name for each in parent.glob("*")) if parent.is_dir() else []
    return guess_first(path.name, siblings, fix)
