"""Downloading a pinned npm package with the user's own npm, and opening it."""

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assets.archive import TarArchive, damaged, read_member
from assets.asset import Archive, Npm
from assets.errors import DownloadError, StorageError, is_no_space, no_space

_LICENCE_MEMBER = re.compile(r"(LICEN[SC]E|COPYING|NOTICE|AUTHORS)[^/]*", re.IGNORECASE)
_FOLDER = "package/"
"""Where npm puts the files of a package."""


def npm_download(package: Npm, folder: Path, *, use_cache: bool) -> None:
    """Let npm bring the package into a folder; nothing is installed, and no script of it runs.

    Args:
        package: The pin.
        folder: Where to put it.
        use_cache: Take what npm keeps on this machine, if it has the package.

    Raises:
        DownloadError: npm is missing or brought nothing.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DownloadError(
            f"npm is needed to download {package.requirement}, and this system has none",
            where="npm pack",
            given="no command named npm",
            fix=f"install npm, or put {package.filename} into {folder.parent} yourself and run "
            "again",
        )
    command = [npm, "pack", package.requirement, "--ignore-scripts", "--no-update-notifier"]
    if not use_cache:
        command += ["--cache", str(folder / "cache")]
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        raise explain_failure(package, done.stdout, folder)


def explain_failure(package: Npm, output: str, folder: Path) -> DownloadError | StorageError:
    """The error that says why npm failed, from what it printed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [
        reason
        for line in lines
        if (reason := re.sub(r"^npm (error|ERR!)", "", line).strip()) not in (line, "")
        if not reason.startswith(("code ", "A complete log"))
    ]
    reason = (errors or lines or ["npm printed nothing"])[0]
    if is_no_space(output) or "ENOSPC" in output:
        return no_space(str(folder), given=reason)
    return DownloadError(
        f"{package.requirement} cannot be downloaded: the registry cannot be reached or "
        "does not hold it",
        where="npm pack",
        given=reason,
        fix="check the network and npm's settings (npm config list), or put "
        f"{package.filename} into {folder.parent} yourself and run again",
    )


@contextmanager
def open_npm(path: Path) -> Iterator[Archive]:
    """Open an npm package after checking that its members are safe.

    Raises:
        PackageError: A member is unsafe, or the file is not a whole npm package.
    """
    try:
        with tarfile.open(path, "r:gz") as tar:
            yield TarArchive.of(tar, path, folder=_FOLDER)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of what the file holds
        raise damaged(path, error) from error


def licence_members(archive: Archive) -> list[str]:
    """The package's licence files."""
    return [name for name in archive.namelist() if _LICENCE_MEMBER.fullmatch(name)]


def stated_licence(archive: Archive) -> list[str]:
    """The licence that `package.json` states."""
    if "package.json" not in archive.namelist():
        return []
    licence = json.loads(read_member(archive, "package.json")).get("license")
    return [f"license: {licence}"] if licence else []
