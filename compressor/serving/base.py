"""What every format offers: say which bundles it takes, and write what its server accepts."""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from pydantic import Field

from compressor.errors import PackageError
from compressor.serving._names import SERVED_NAME, file_name
from targets.bundle import Bundle, Manifest
from targets.discovery import Component
from targets.environment import distributions
from targets.runtimes._openvino_lengths import LENGTHS
from targets.wording import plural

__all__ = ["Format", "Packaged", "copy_model", "length_notes", "tuning_notes", "version_notes"]

_TUNED = (
    "PERFORMANCE_HINT", "NUM_STREAMS", "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING",
    "optimization",
)  # fmt: skip
"""Options of a runtime that `compressor tune` sets, beside the entries of a session."""


@dataclass(frozen=True)
class Packaged:
    """What packaging wrote.

    Attributes:
        name: The name by which the server knows the model.
        files: Paths below the output folder, in order.
        notes: One line each, for people: what the server does otherwise than the measured bundle.
        command: How the server is started on the output folder.
    """

    name: str
    files: tuple[str, ...]
    notes: tuple[str, ...]
    command: str


class Format(Component, ABC):
    """A server's own layout of files. Subclasses live in one file each in ``compressor/serving/``.

    The fields are the options of the server; they never change the model.
    """

    targets: ClassVar[tuple[str, ...]]
    """Targets whose bundles the server can run."""

    keeps_state: ClassVar[bool] = False
    """Whether it runs models that keep a state between runs; see `targets.base.Session.extend`."""
    needs_state: ClassVar[bool] = False
    """Whether it runs those alone."""

    served_name: str | None = Field(default=None, pattern=SERVED_NAME)
    """Name of the model on the server; by default the nearest one to the name of the bundle."""

    def package(self, bundle: Bundle, output: Path) -> Packaged:
        """Write what the server accepts into a new folder; the bundle stays as it is.

        Args:
            bundle: Opened and verified.
            output: Absent or empty. It appears in one step, or not at all.

        Raises:
            PackageError: The server does not run such a bundle, an option does not fit it, or the
                folder cannot be written.
        """
        self.check_target(bundle)
        _check_output(bundle, output)
        name = self.name_for(bundle.manifest)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=output.parent, prefix=".package-") as scratch:
                folder = Path(scratch) / "package"
                folder.mkdir()
                notes = self.write(bundle, folder, name)
                files = tuple(
                    path.relative_to(folder).as_posix()
                    for path in sorted(folder.rglob("*"))
                    if path.is_file()
                )
                os.replace(folder, output)
        except OSError as error:
            raise PackageError(
                "the output folder cannot be written",
                where=output,
                given=error,
                fix="free some space there, or pass another folder with --output",
            ) from error
        if name != bundle.manifest.name and self.served_name is None:
            notes = (f"the server knows the model as {name}", *notes)
        return Packaged(name, files, tuple(notes), self.command(output, name, bundle.manifest))

    @abstractmethod
    def write(self, bundle: Bundle, folder: Path, name: str) -> Sequence[str]:
        """Write the files of a bundle that the format takes into an empty folder.

        Args:
            bundle: Read only.
            folder: Empty.
            name: The model's name on the server.

        Returns:
            One line for each thing in which the server differs from what was measured.

        Raises:
            PackageError: An option does not fit the bundle.
        """

    @abstractmethod
    def command(self, output: Path, name: str, manifest: Manifest) -> str:
        """How the server is started on the folder, for people."""

    def name_for(self, manifest: Manifest) -> str:
        """The model's name on the server."""
        return self.served_name or file_name(manifest.name)

    def check_target(self, bundle: Bundle) -> None:
        """Refuse a bundle that the server cannot run.

        Raises:
            PackageError: Names the target of the bundle, and those that will do; or it keeps a
                state.
        """
        manifest = bundle.manifest
        if manifest.target not in self.targets:
            raise PackageError(
                f"{self.name} does not run bundles of this target",
                where=bundle.source,
                given=manifest.target,
                fix=f"package a bundle for {' or '.join(self.targets)}",
            )
        if manifest.signature.state and not self.keeps_state:
            raise PackageError(
                f"{self.name} does not run models that keep a state between runs",
                where=bundle.source,
                given=f"{len(manifest.signature.state)} tensors of state",
                fix="use --for docker"
                if manifest.signature.context
                else "remove cache: true from the pass export, or use --for docker",
            )
        if self.needs_state and (not manifest.signature.state or manifest.signature.context):
            state = "an encoder" if manifest.signature.context else "a signature without state"
            raise PackageError(
                f"{self.name} runs language models that keep a state between runs",
                where=bundle.source,
                given=f"task {manifest.task}, {state}",
                fix="build the bundle of a language model, with cache: true in the pass export",
            )


def copy_model(bundle: Bundle, folder: Path) -> str:
    """Copy the model with its weights into a folder.

    Weights that lie in a file of their own stand beside the main file and have its stem.

    Returns:
        Name of the main file.
    """
    main = PurePosixPath(bundle.manifest.model)
    folder.mkdir(parents=True)
    for each in map(PurePosixPath, bundle.manifest.files):
        if each == main or (each.parent == main.parent and each.name.startswith(f"{main.stem}.")):
            shutil.copyfile(bundle.path(str(each)), folder / each.name)
    return main.name


def version_notes(manifest: Manifest) -> tuple[str, ...]:
    """Which version of the runtime the server should have, where the bundle records it."""
    recorded = manifest.provenance.get("libraries")
    libraries = distributions(recorded) if isinstance(recorded, dict) else {}
    if not libraries:
        return ()
    named = " and ".join(f"{name} {version}" for name, version in sorted(libraries.items()))
    return (f"the model was made with {named}: a server with an older one may refuse it",)


def length_notes(manifest: Manifest) -> tuple[str, ...]:
    """That servers run OpenVINO models of one shape, where the bundle has others beside it."""
    if not manifest.options.get(LENGTHS):
        return ()
    return (
        "single texts were measured with models of fixed length, but the server runs them with the "
        "model of free length: measure latency on the server",
    )


def tuning_notes(manifest: Manifest) -> tuple[str, ...]:
    """That a server does not take the options of the runtime that `compressor tune` chose."""
    lost = [f"{key}={manifest.options[key]}" for key in _TUNED if key in manifest.options]
    if manifest.max_threads is not None:
        lost.append(f"at most {plural(manifest.max_threads, 'thread')}")
    if not lost:
        return ()
    return (
        f"the bundle was tuned to run with {', '.join(lost)}, which is not passed on: measure "
        "latency on the server",
    )


def _check_output(bundle: Bundle, output: Path) -> None:
    if output.resolve().is_relative_to(bundle.folder.resolve()):
        raise PackageError(
            "the output folder is inside of the bundle",
            where=output,
            given=bundle.folder,
            fix="pass a folder elsewhere with --output: a bundle is never changed",
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise PackageError(
            "the output folder is not empty",
            where=output,
            given="a file" if output.is_file() else sorted(os.listdir(output))[0],
            fix="pass a new folder with --output, or remove this one first",
        )
