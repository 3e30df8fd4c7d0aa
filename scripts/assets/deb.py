"""Opening a Debian package, and what it says about its licence."""

import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from assets.archive import TarArchive, damaged, read_member
from assets.asset import Archive
from assets.errors import PackageError

_LICENCE_MEMBER = re.compile(r"usr/share/doc/[^/]+/copyright")


@contextmanager
def open_deb(path: Path) -> Iterator[Archive]:
    """Open a Debian package after checking that its members are safe.

    Raises:
        PackageError: A member is unsafe, or the file is not a whole Debian package.
    """
    with tempfile.TemporaryFile(dir=path.parent) as file:
        _unpack(path, file)
        try:
            with tarfile.open(fileobj=file) as tar:
                yield TarArchive.of(tar, path, folder="./")
        except tarfile.TarError as error:
            raise damaged(path, error) from error


def _unpack(path: Path, file: IO[bytes]) -> None:
    """Write the package's files as one tar archive."""
    dpkg_deb = shutil.which("dpkg-deb")
    if dpkg_deb is None:
        raise PackageError(
            "dpkg-deb is needed to unpack a Debian package, and this system has none",
            where=str(path),
            given="no command named dpkg-deb",
            fix="install dpkg, or run on Debian or Ubuntu",
        )
    command = [dpkg_deb, "--fsys-tarfile", str(path)]
    done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE)
    if done.returncode != 0:
        raise damaged(path, done.stderr.decode(errors="replace").strip())
    file.seek(0)


def licence_members(archive: Archive) -> list[str]:
    """The package's copyright file."""
    return [name for name in archive.namelist() if _LICENCE_MEMBER.fullmatch(name)]


def stated_licence(archive: Archive) -> list[str]:
    """The fields of the package's copyright file that name a licence, each once, in their order."""
    lines = [
        " ".join(line.split())
        for name in licence_members(archive)
        for line in read_member(archive, name).decode(errors="replace").splitlines()
        if line.startswith("License:")
    ]
    return list(dict.fromkeys(lines))
