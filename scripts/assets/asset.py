"""The values that describe an asset: the package it comes from, its licence and its conversion."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar, Protocol


class Archive(Protocol):
    """An open package, as `ZipFile` has it. Opening checked that its members are safe."""

    @property
    def filename(self) -> str | None:
        """The package."""

    def namelist(self) -> list[str]:
        """The names of its members."""

    def open(self, name: str, /) -> IO[bytes]:
        """One member; KeyError where there is none of this name."""


Conversion = Callable[[Archive, Path], Mapping[str, object]]
"""Writes an asset's files from a package into an empty folder; returns what to record of them."""

Report = Callable[[str], None]
"""Takes one line of progress."""


@dataclass(frozen=True, kw_only=True)
class _Package:
    package: str
    version: str
    filename: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Wheel(_Package):
    """A wheel pinned by version and content, which pip downloads."""

    kind: ClassVar[str] = "wheel"

    @property
    def requirement(self) -> str:
        """The pin as pip writes it."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, kw_only=True)
class Deb(_Package):
    """A Debian package pinned by version and content, which apt-get downloads."""

    kind: ClassVar[str] = "deb"

    @property
    def requirement(self) -> str:
        """The pin as apt-get writes it."""
        return f"{self.package}={self.version}"


@dataclass(frozen=True, kw_only=True)
class Npm(_Package):
    """An npm package pinned by version and content, which npm downloads."""

    kind: ClassVar[str] = "npm"

    @property
    def requirement(self) -> str:
        """The pin as npm writes it."""
        return f"{self.package}@{self.version}"


Source = Wheel | Deb | Npm


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What is known about the licence, of the package and of what it carries.

    Args:
        package: The licence that the package states for itself.
        content: The licence of the model or data inside, or that none is stated.
    """

    package: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A folder of files converted from a package, or from several.

    Args:
        name: Name of the folder and of the command line argument.
        summary: One line for `--list`.
        source: The package it comes from.
        licence: What is known about the licence.
        citation: Who made it.
        convert: Writes the files.
        revision: Counts changes to `convert`'s output, so that finished folders are rebuilt.
        notes: Facts that a user of the asset should know.
        libraries: Modules that `convert` imports beyond Python's own.
        others: Further packages of the same kind, whose members `convert` finds beside those of
            the first.
    """

    name: str
    summary: str
    source: Source
    licence: Licence
    citation: str
    convert: Conversion
    revision: int
    notes: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    others: tuple[Source, ...] = ()

    @property
    def definition_sha256(self) -> str:
        """Changes whenever the finished folder would: by the package, the revision or the texts."""
        parts = (
            self.name,
            self.source.requirement,
            self.source.sha256,
            self.licence.package,
            self.licence.content,
            self.citation,
            self.revision,
            self.notes,
            *((each.requirement, each.sha256) for each in self.others),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
