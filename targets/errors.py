"""Every error of the toolkit under one base class.

    ToolkitError
    ├── MissingLibraryError     a library that an extra would have brought
    ├── BundleError             a bundle that is absent, damaged or of another schema
    │   └── SignatureError          a bundle whose signature is absent or does not hold
    ├── KeyFileError            a key that cannot sign, or check a signature
    ├── CheckpointError         a checkpoint that is absent, damaged, unsafe or of another kind
    ├── InputError              what was passed to a session does not match its signature
    ├── PluginError             another distribution announces a pass or target that does not load
    ├── TargetError             a target cannot do what was asked
    │   ├── UnsupportedModelError   the model holds something the target does not run
    │   └── WorkerError             the process that runs a target died or gave up
    └── (compressor.errors continues the tree for the build half)

A message says what went wrong, where, what was given, and what to do about it.
"""

from __future__ import annotations

import errno
from typing import ClassVar

__all__ = [
    "BundleError",
    "CheckpointError",
    "InputError",
    "KeyFileError",
    "MissingLibraryError",
    "PluginError",
    "SignatureError",
    "TargetError",
    "ToolkitError",
    "UnsupportedModelError",
    "WorkerError",
    "is_disk_full",
    "is_of_the_machine",
]


class ToolkitError(Exception):
    """Base of every error a user can cause.

    Args:
        what: One sentence on what went wrong.
        where: The file, field, node or step concerned.
        given: The value that was found there.
        fix: What to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: object | None = None,
        given: object | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.given = None if given is None else str(given)
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        for label, value in (("where", self.where), ("given", self.given), ("fix", self.fix)):
            if value is not None:
                lines.append(f"  {label + ':':<6} {value}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.given, self.fix))


def _rebuild(
    cls: type[ToolkitError], what: str, where: str | None, given: str | None, fix: str | None
) -> ToolkitError:
    return cls(what, where=where, given=given, fix=fix)


class MissingLibraryError(ToolkitError):
    """A library is not installed; names it, who needs it, and the extra that brings it."""

    exit_code = 7

    @classmethod
    def for_extra(cls, library: str, extra: str, needed_by: str) -> MissingLibraryError:
        """Build the error for ``library``, which ``pip install 'compressor[extra]'`` brings."""
        return cls(
            f"{needed_by} needs the library {library}, which is not installed",
            fix=f"pip install 'compressor[{extra}]'",
        )


class BundleError(ToolkitError):
    """A bundle is absent, damaged, or of a schema this version does not read."""

    exit_code = 6


class SignatureError(BundleError):
    """A bundle is not signed, or is not what was signed; names the file where it is known."""


class KeyFileError(ToolkitError):
    """A key cannot be read, or is none that can sign or check a signature."""

    exit_code = 3


class CheckpointError(ToolkitError):
    """A checkpoint is absent, damaged, unsafe to load, or of another kind."""

    exit_code = 3


class InputError(ToolkitError):
    """What was passed to a session does not match its signature."""

    exit_code = 3


class PluginError(ToolkitError):
    """A pass or target cannot be used; names its file, or the distribution that announces it."""

    exit_code = 7


class TargetError(ToolkitError):
    """A target cannot do what was asked of it."""

    exit_code = 6


class UnsupportedModelError(TargetError):
    """The model holds nodes or types that the target does not run; names each of them."""


class WorkerError(TargetError):
    """The process that runs a target died, or gave up for a reason it could not name."""


_OF_THE_MACHINE = (
    "bad_alloc", "bad allocation", "failed to allocate", "out of memory", "cannot allocate memory",
    "cuda failure", "cuda error", "cudnn", "libcu", "cannot open shared object",
)  # fmt: skip


def is_of_the_machine(error: object) -> bool:
    """Whether a runtime failed for want of memory or of a device, and not because of a model."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(each in text for each in _OF_THE_MACHINE)


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error was caused by a full disk or an exhausted quota."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
