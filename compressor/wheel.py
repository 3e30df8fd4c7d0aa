"""The wheel of this package, made of the files that run here.

A device has to run the code that the workstation runs, be it an edited checkout or an installed
release. So the wheel is written from the modules and the metadata of this installation: without a
build, an index or a network, and always with the same bytes for the same code.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import compressor
import targets
from targets.errors import ToolkitError

__all__ = ["make_wheel"]

DISTRIBUTION = "compressor"
TAG = "py3-none-any"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_OF_THIS_INSTALLATION = ("RECORD", "WHEEL", "INSTALLER", "REQUESTED", "direct_url.json")


def make_wheel(folder: Path) -> Path:
    """Write the wheel (PEP 427) into a folder.

    Returns:
        Its path; the name is that which an index would give it.

    Raises:
        ToolkitError: The package is not installed, so that its metadata are missing.
    """
    # In a checkout, what a build left beside the source is found first, and is not complete.
    installed = importlib.metadata.distributions(name=DISTRIBUTION)
    distribution = next((each for each in installed if each.read_text("METADATA")), None)
    if distribution is None:
        raise ToolkitError(
            "the metadata of this package are missing, so no wheel can be made of it",
            where=Path(compressor.__file__).parent,
            fix="install it: pip install --editable CHECKOUT",
        )
    name = f"{DISTRIBUTION}-{distribution.version}"
    info = f"{name}.dist-info"
    content = dict(_modules())
    for file in distribution.files or ():
        if file.parts[0] == info and file.name not in _OF_THIS_INSTALLATION:
            content[file.as_posix()] = Path(str(file.locate())).read_bytes()
    content[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: {DISTRIBUTION}\nRoot-Is-Purelib: true\nTag: {TAG}\n"
    ).encode()
    lines = [f"{path},{_digest(data)},{len(data)}" for path, data in sorted(content.items())]
    record = f"{info}/RECORD"
    content[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    wheel = folder / f"{name}-{TAG}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in sorted(content.items()):
            member = zipfile.ZipInfo(path, _EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o100644 << 16
            archive.writestr(member, data)
    return wheel


def _modules() -> Iterator[tuple[str, bytes]]:
    """Path in the wheel and content of every file of the packages, in a fixed order."""
    for package in (compressor, targets):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root.parent).as_posix(), path.read_bytes()


def _digest(data: bytes) -> str:
    """As a RECORD has it: the sha256 in URL-safe base64 without padding."""
    encoded = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return "sha256=" + encoded.rstrip(b"=").decode()
