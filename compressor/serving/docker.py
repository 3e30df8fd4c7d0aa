"""An image that runs a bundle with the base install and one runtime."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from compressor.errors import PackageError
from compressor.serving._dockerfile import Instruction, to_text
from compressor.serving._names import kubernetes_name
from compressor.serving.base import Format
from compressor.wheel import make_wheel
from targets.bundle import Bundle, Manifest
from targets.environment import library_versions
from targets.registry import available

__all__ = ["Docker"]

DISTRIBUTION = "compressor"
REQUIREMENTS = "requirements.txt"
USER = "10001"
"""A number, so that Kubernetes can tell that it is not root."""


class Docker(Format):
    """A container image that answers JSON lines on standard input."""

    name = "docker"
    targets: ClassVar[tuple[str, ...]] = tuple(
        name for name, cls in available().items() if cls.served_devices
    )
    keeps_state: ClassVar[bool] = True

    wheel: Path | None = None
    """The wheel of this toolkit; by default one of the code that packages."""

    python: str = Field(default="3.11", pattern=r"^3\.[0-9]{2}$")
    """Python of the image."""

    threads: int = Field(default=1, ge=1, le=1024)
    """CPU threads of the model."""

    def write(self, bundle: Bundle, folder: Path, name: str) -> Sequence[str]:
        """Write ``Dockerfile`` and all that it copies into the image."""
        self._check_device(bundle)
        if self.wheel is None:
            wheel = make_wheel(folder).name
        else:
            wheel = _checked(self.wheel).name
            shutil.copyfile(self.wheel, folder / wheel)
        for each in bundle.names:
            target = folder / "bundle" / each
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path(each), target)
        lines = (f"{each}=={version}\n" for each, version in _pins(bundle.manifest).items())
        (folder / REQUIREMENTS).write_text("".join(lines), encoding="utf-8")
        needed = (REQUIREMENTS, wheel, "bundle")
        ignore = ["*", *(f"!{each}" for each in needed)]
        (folder / ".dockerignore").write_text("\n".join(ignore) + "\n", encoding="utf-8")
        (folder / "Dockerfile").write_text(to_text(self._instructions(wheel)), encoding="utf-8")
        return tuple(_notes(bundle.manifest))

    def command(self, output: Path, name: str, manifest: Manifest) -> str:
        """How the server is started on the folder, for people."""
        tag = kubernetes_name(name)  # of the letters that an image may have as well
        build = f"docker build --tag {tag} {shlex.quote(str(output))}"
        return f"{build} && docker run --rm --interactive {tag} < inputs.jsonl"

    def _instructions(self, wheel: str) -> tuple[Instruction, ...]:
        install = ("python", "-m", "pip", "install", "--no-cache-dir")
        return (
            Instruction("FROM", f"python:{self.python}-slim"),
            Instruction("WORKDIR", "/app"),
            Instruction("COPY", arguments=(REQUIREMENTS, wheel, "./")),
            Instruction("RUN", arguments=(*install, "--requirement", REQUIREMENTS, f"./{wheel}")),
            Instruction("COPY", arguments=("bundle", "./bundle")),
            Instruction("USER", USER),
            Instruction(
                "HEALTHCHECK",
                "CMD",
                arguments=("compressor", "verify", "bundle"),
                options=("--interval=300s", "--timeout=60s", "--start-period=10s"),
            ),
            Instruction("ENTRYPOINT", arguments=("compressor",)),
            Instruction(
                "CMD", arguments=("predict", "bundle", "--jsonl", "--threads", str(self.threads))
            ),
        )

    def _check_device(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        known = available()[manifest.target].served_devices
        device = manifest.target_settings.get("device", known[0])
        if device not in known:
            raise PackageError(
                "the image has no runtime for this device",
                where=bundle.source,
                given=f"{manifest.target}, device {device}",
                fix=f"package a bundle for the device {known[0]}, or use --for triton",
            )


def _notes(manifest: Manifest) -> Iterator[str]:
    preprocessing = manifest.preprocessing
    reads_files = preprocessing.reads_files()
    if reads_files:
        yield (
            f'it reads lines such as {{"{preprocessing.kind}": "/data/a-file"}}: mount the folder '
            "of the files, with docker run --volume /its/path:/data:ro"
        )
    if manifest.evaluation is not None:
        what = "which can be viewed or played" if reads_files else "which can be decoded to text"
        yield (
            f"the image carries the test data of the bundle ({manifest.evaluation}), {what}; "
            "a recipe with 'bundle: {evaluation_data: false}' leaves it out"
        )


def _checked(wheel: Path) -> Path:
    if not wheel.is_file() or not re.fullmatch(
        rf"{DISTRIBUTION}-[A-Za-z0-9_.+!]+-py3-none-any\.whl", wheel.name
    ):
        raise PackageError(
            f"this is not a wheel of {DISTRIBUTION}",
            where="--set wheel",
            given=wheel,
            fix=f"pass {DISTRIBUTION}-VERSION-py3-none-any.whl, or leave it out",
        )
    return wheel


def _pins(manifest: Manifest) -> dict[str, str]:
    """Distribution -> version, of the base install, the runtime, and what reads the inputs.

    Versions are those that the bundle was built and measured with, where its manifest names them,
    and those of this machine otherwise.

    Raises:
        PackageError: What the manifest records is no version, or nothing tells one.
    """
    recorded: Mapping[str, str] = manifest.provenance.get("libraries") or {}
    measured = {} if manifest.measured is None else manifest.measured.libraries
    known = {**recorded, **measured}
    found = {}
    needed = (*available()[manifest.target].libraries, *manifest.preprocessing.libraries)
    for name in (*_base_requirements(), *needed):
        version = str(known.get(name) or _installed(name))
        if not re.fullmatch(r"[0-9][A-Za-z0-9.!]*(\+[A-Za-z0-9.]+)?", version):
            raise PackageError(
                "the manifest of the bundle records an invalid version of a library",
                where=name,
                given=repr(version),
                fix="do not use this bundle; get it again from where it was built",
            )
        found[name] = version.partition("+")[0]  # an index has no local versions
    return dict(sorted(found.items()))


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise PackageError(
            "neither the bundle nor this machine determines which version the image needs",
            where=name,
            fix=f"install {name} here, or build the bundle again",
        ) from error


def _base_requirements() -> Iterator[str]:
    for line in importlib.metadata.requires(DISTRIBUTION) or ():
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if name is None or "extra ==" in line:
            continue
        if ";" in line and not library_versions((name.group(),)):
            continue  # not for this Python, say; the wheel names it where it is
        yield name.group().lower()
