"""A bundle: one lowered model with all that it takes to run and check it, folder or archive.

``manifest.json`` describes it and holds the size and sha256 of every other file, but for a
signature, which covers the manifest too.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from targets.answers import AnyAnswers, LabelAnswers
from targets.archive import MANIFEST, SIGNATURE, is_archive, unpack
from targets.base import Precision
from targets.errors import BundleError
from targets.measurement import Speedup
from targets.preprocessing import AnyPreprocessing
from targets.scoring import Accuracy
from targets.scratch import ScratchFolder
from targets.signature import Signature
from targets.wording import listed

__all__ = [
    "SCHEMA_VERSION",
    "Bundle",
    "FileRecord",
    "Latency",
    "Manifest",
    "Measured",
    "Trial",
    "Tuning",
    "check_options",
    "hash_file",
    "merge_options",
    "parse_manifest",
]

SCHEMA_VERSION = 1
CARD = "README.md"
BOM = "bom.cdx.json"
EVALUATION = "evaluation.safetensors"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Frozen):
    """Size and content hash of one file."""

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Measure a file."""
        return cls(size_bytes=path.stat().st_size, sha256=hash_file(path))


class Latency(_Frozen):
    """How long one run of a bundle takes, in milliseconds."""

    batch_size: int
    sequence_length: int
    threads: int
    median_ms: float
    low_ms: float
    high_ms: float
    """95% interval of the median."""
    p90_ms: float
    p99_ms: float
    noisy: bool
    """Whether the machine was too busy for this to be trusted."""


class Measured(_Frozen):
    """What the machine that built a bundle found when it ran it."""

    machine: str
    libraries: dict[str, str]
    accuracy: Accuracy | None = None
    """On the data in the bundle's evaluation pack."""
    latency: Latency | None = None


class Trial(_Frozen):
    """One alternative that a tuning measured."""

    name: str
    options: dict[str, Any]
    """On top of those of the bundle."""
    threads: int | None
    """CPU threads, where not all that may be used."""
    median_ms: float | None
    gain: Speedup | None
    """Against the default options, round by round."""
    rejected: str | None = None
    """Why it cannot be taken, however fast it is."""


class Tuning(_Frozen):
    """Which runtime options were measured on a machine, and what was chosen.

    The default is the first trial. Where anything was faster, the last trial is what was chosen,
    measured once more.
    """

    machine: str
    libraries: dict[str, str]
    threads: int
    batch_size: int
    sequence_length: int
    trials: tuple[Trial, ...]
    options: dict[str, Any]
    """What was chosen, on top of the options that the bundle had; empty where nothing was."""
    max_threads: int | None
    """More threads than this made it slower; None where all help."""


class _Versioned(BaseModel):
    schema_version: int


class Manifest(_Frozen):
    """The description of a bundle."""

    schema_version: int
    name: str
    task: str
    target: str
    target_settings: dict[str, Any]
    precision: Precision
    signature: Signature
    model: str
    encoder: str | None = Field(default=None, exclude_if=lambda name: name is None)
    """The part of the model that reads the context; see `targets.signature.Signature`."""
    options: dict[str, Any] = Field(default_factory=dict)
    cpu_features: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...]
    preprocessing: AnyPreprocessing
    answers: AnyAnswers = LabelAnswers()
    """What the outputs say. Manifests that were written before there were several kinds say
    nothing, and mean one label an input."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    evaluation: str | None = None
    max_threads: int | None = Field(default=None, ge=1)
    """More CPU threads than this are not used, however many are asked for."""
    tuning: Tuning | None = None
    measured: Measured | None = None
    files: dict[str, FileRecord]


class Bundle:
    """A bundle on disk.

    Args:
        folder: Where it lies. One that was opened from an archive lies in a temporary folder, for
            as long as this object lives.
        manifest: Its description.
        source: What it was opened from, for messages: the folder, or the archive.
    """

    def __init__(self, folder: Path, manifest: Manifest, source: Path | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.source = folder if source is None else source
        self._origin: Bundle | None = None

    @classmethod
    def create(cls, folder: Path, manifest: Manifest) -> Bundle:
        """Write the manifest into ``folder``; records every file that lies there.

        ``manifest.files`` is replaced by what is found. A signature is removed: it was one of
        another manifest.
        """
        (folder / SIGNATURE).unlink(missing_ok=True)
        temporary = folder / (MANIFEST + ".tmp")
        files = {
            path.relative_to(folder).as_posix(): FileRecord.of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path not in (folder / MANIFEST, temporary)
        }
        manifest = manifest.model_copy(update={"files": files})
        temporary.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, folder / MANIFEST)
        return cls(folder, manifest)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Open a bundle.

        Args:
            path: The folder that holds ``manifest.json``, or an archive of one.
            verify: Compare every file with its recorded size and sha256.

        Raises:
            BundleError: Names the file that is absent, damaged or not allowed.
        """
        source = Path(path)
        if not is_archive(source) or source.is_dir():
            return cls._open(source, source, verify=verify)
        unpacked = ScratchFolder("bundle")
        try:
            unpack(source, unpacked.path)
            bundle = cls._open(unpacked.path, source, verify=verify)
        except BaseException:
            unpacked.remove()
            raise
        weakref.finalize(bundle, unpacked.remove)
        return bundle

    @classmethod
    def _open(cls, folder: Path, source: Path, *, verify: bool) -> Bundle:
        path = folder / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if not folder.exists():
                raise BundleError(
                    "there is no such bundle",
                    where=folder,
                    fix="pass a folder that `compressor run` wrote, or an archive of one",
                ) from error
            raise BundleError(
                "this is not a bundle: its manifest cannot be read",
                where=path,
                given=error,
                fix=_bundles_below(folder)
                or "pass a folder that `compressor run` wrote, or an archive of one",
            ) from error
        bundle = cls(folder, parse_manifest(text, source / MANIFEST), source)
        if verify:
            bundle.verify()
        return bundle

    def path(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        return self.folder / name

    @property
    def is_signed(self) -> bool:
        """Whether it carries a signature, which :mod:`targets.signing` can check."""
        path = self.folder / SIGNATURE
        return path.is_file() and not path.is_symlink()

    @property
    def names(self) -> list[str]:
        """All of its files: the manifest first, then what that records, and a signature."""
        signature = [SIGNATURE] if self.is_signed else []
        return [MANIFEST, *sorted(self.manifest.files), *signature]

    @property
    def model_path(self) -> Path:
        """The main file of the lowered model."""
        return self.path(self.manifest.model)

    @property
    def encoder_path(self) -> Path | None:
        """The file of the part that reads the context; None where the model is in one file."""
        name = self.manifest.encoder
        return None if name is None else self.path(name)

    @property
    def size_bytes(self) -> int:
        """Size of what the model needs to run: no manifest, card, bill of materials, test data."""
        extra = {CARD, BOM, self.manifest.evaluation}
        files = self.manifest.files
        return sum(record.size_bytes for name, record in files.items() if name not in extra)

    def with_options(self, options: Mapping[str, Any]) -> Bundle:
        """The same files with ``options`` on top of those in the manifest."""
        merged = merge_options(self.manifest.options, options)
        manifest = self.manifest.model_copy(update={"options": merged})
        found = Bundle(self.folder, manifest, self.source)
        found._origin = self  # whose folder it may be that goes with it, of an archive
        return found

    @property
    def identity(self) -> str:
        """The sha256 over all that the same build gives again, in hex.

        That is every file and the whole manifest, without what was measured, the card and the bill
        of materials that tell it, and the hash of the recipe, which may measure otherwise: two runs
        of one recipe give bundles of one identity. What a tuning chose counts.
        """
        left_out: dict[str, Any] = {
            "measured": True,
            "tuning": True,
            "files": True,
            "provenance": {"recipe": {"sha256"}},
        }
        if self.manifest.answers == LabelAnswers():  # as in manifests that have no such field
            left_out["answers"] = True
        described = self.manifest.model_dump(mode="json", exclude=left_out)
        files = {
            name: record.sha256
            for name, record in self.manifest.files.items()
            if name not in (CARD, BOM)
        }
        return hashlib.sha256(json.dumps([described, files], sort_keys=True).encode()).hexdigest()

    def verify(self) -> None:
        """Compare every file with its record.

        Raises:
            BundleError: Names the first file that is absent or differs.
        """
        for name, record in self.manifest.files.items():
            path, where = self.path(name), self.source / name
            inside = path.resolve().is_relative_to(self.folder.resolve())
            if path.is_symlink() or not inside or not path.is_file():
                raise BundleError(
                    "a file of the bundle is missing",
                    where=where,
                    given="a symbolic link" if path.is_symlink() or not inside else None,
                    fix="copy or build the bundle again",
                )
            try:
                found = FileRecord.of(path)
            except OSError as error:
                raise BundleError(
                    "a file of the bundle cannot be read",
                    where=where,
                    given=error,
                    fix="copy or build the bundle again",
                ) from error
            if found != record:
                raise BundleError(
                    "a file of the bundle was changed after it was built",
                    where=where,
                    given=f"{found.size_bytes} bytes, sha256 {found.sha256[:12]}…; "
                    f"recorded {record.size_bytes} bytes, {record.sha256[:12]}…",
                    fix="copy or build the bundle again",
                )

    def refuse_other_files(self) -> None:
        """Check that the folder holds the files of the bundle only, as an archive does.

        Raises:
            BundleError: Names those that are no part of it.
        """
        found = {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_symlink() or not path.is_dir()
        }
        if extra := sorted(found.difference(self.names)):
            raise BundleError(
                "the folder holds files that its manifest does not name",
                where=self.source,
                given=listed(extra),
                fix="remove them, or get the bundle again from where it was built",
            )


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _bundles_below(folder: Path) -> str | None:
    """Where the bundles are, for who passed the output folder of a run, or the folder of them."""
    places = (f"bundles/*/{MANIFEST}", f"*/{MANIFEST}")
    found = sorted({path.parent for place in places for path in folder.glob(place)})
    return f"pass one of {', '.join(map(str, found[:8]))}" if found else None


def parse_manifest(text: str, path: Path) -> Manifest:
    """Read the text of a manifest.

    Args:
        text: JSON.
        path: Where it stands, for messages.

    Raises:
        BundleError: It is not valid, of another version, or names files outside of the bundle.
    """
    try:
        _check_version(text, path)  # first: another version may have other fields
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(
            "the manifest of the bundle is not valid",
            where=f"{path}, field {'.'.join(map(str, first['loc'])) or '(document)'}",
            given=first["msg"],
            fix="copy or build the bundle again",
        ) from error
    _check_names(manifest, path)
    return manifest


def _check_names(manifest: Manifest, path: Path) -> None:
    """Refuse file names that lead out of the folder."""
    needed = [manifest.model, *manifest.preprocessing.files, *manifest.answers.files]
    if manifest.encoder is not None:
        needed.append(manifest.encoder)
    if manifest.evaluation is not None:
        needed.append(manifest.evaluation)
    for name in (*manifest.files, *needed):
        parts = PurePosixPath(name)
        outside = parts.is_absolute() or ".." in parts.parts
        if outside or any(sign in name for sign in "\\\0:"):
            raise BundleError(
                "the manifest names a file outside of the bundle",
                where=path,
                given=repr(name),
                fix="do not use this bundle; get it again from where it was built",
            )
    for name in needed:
        if name not in manifest.files:
            raise BundleError(
                "the manifest does not record a file that it needs",
                where=path,
                given=repr(name),
                fix="build the bundle again",
            )


def _check_version(text: str, path: Path) -> None:
    found = _Versioned.model_validate_json(text).schema_version
    if found != SCHEMA_VERSION:
        raise BundleError(
            "the bundle has another schema version",
            where=path,
            given=found,
            fix=f"this version reads schema {SCHEMA_VERSION}; install the version that built it",
        )


def check_options(bundle: Bundle, given: Iterable[str], known: Collection[str]) -> None:
    """Check that a bundle asks of its runtime nothing but what lowering and tuning write.

    Other properties of a runtime may name files to read or to write, and a bundle may come from
    anywhere.

    Args:
        bundle: The bundle.
        given: Names of the properties that its manifest sets.
        known: Those that are known.

    Raises:
        BundleError: Names those that are not.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise BundleError(
            "the bundle sets unknown properties of its runtime",
            where=bundle.source,
            given=", ".join(unknown),
            fix="build the bundle again: a newer version may have built it, or someone edited it",
        )


def merge_options(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Options with changes on top; what is a mapping on both sides is merged in turn."""
    merged = dict(options)
    for name, value in changes.items():
        before = merged.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[name] = merge_options(before, value)
        else:
            merged[name] = value
    return merged
