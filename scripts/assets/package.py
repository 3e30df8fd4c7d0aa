"""The kinds of packages, and how each is opened and asked for its licence."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from assets import deb, npm, wheel
from assets.asset import Archive, Deb, Npm, Source, Wheel


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How one kind of package is read.

    Args:
        open: Opens it after checking that its members are safe.
        licence_members: Its licence files.
        stated_licence: The lines of its metadata that state a licence.
    """

    open: Callable[[Path], AbstractContextManager[Archive]]
    licence_members: Callable[[Archive], list[str]]
    stated_licence: Callable[[Archive], list[str]]


_READERS = {
    Wheel.kind: Reader(
        open=wheel.open_wheel,
        licence_members=wheel.licence_members,
        stated_licence=wheel.stated_licence,
    ),
    Deb.kind: Reader(
        open=deb.open_deb,
        licence_members=deb.licence_members,
        stated_licence=deb.stated_licence,
    ),
    Npm.kind: Reader(
        open=npm.open_npm,
        licence_members=npm.licence_members,
        stated_licence=npm.stated_licence,
    ),
}


def reader_of(source: Source) -> Reader:
    """How this package is read."""
    return _READERS[source.kind]
