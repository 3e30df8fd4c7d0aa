"""Downloading a pinned Debian package with apt-get and the mirrors that it is set up for."""

import os
import shutil
import subprocess
from pathlib import Path

from assets.asset import Deb
from assets.errors import DownloadError, StorageError, is_no_space, no_space

# As root, apt would hand over to a user of its own, who cannot write to our folder.
_OPTIONS = ("-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=5")


def apt_download(deb: Deb, folder: Path, *, use_cache: bool) -> None:
    """Let apt-get bring the package into a folder; nothing is installed and no root is needed.

    Args:
        deb: The pin.
        folder: Where to put it.
        use_cache: Try this machine's package lists first. They may be old or, as in a fresh
            container, absent: then, and without this, lists of our own are fetched.

    Raises:
        DownloadError: apt-get is missing or brought nothing.
    """
    apt_get = shutil.which("apt-get")
    if apt_get is None:
        raise DownloadError(
            f"apt-get is needed to download {deb.requirement}, and this system has none",
            where="apt-get download",
            given="no command named apt-get",
            fix="run on Debian or Ubuntu, or put "
            f"{deb.filename} into {folder.parent} yourself and run again",
        )
    command = [apt_get, *_OPTIONS]
    if use_cache and _run([*command, "download", deb.requirement], folder).returncode == 0:
        return
    lists = folder.resolve() / "lists"
    (lists / "partial").mkdir(parents=True)
    command += ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={lists.parent / 'cache'}"]
    updated = _run([*command, "update"], folder)
    done = _run([*command, "download", deb.requirement], folder)
    if done.returncode != 0:
        raise explain_failure(deb, updated.stdout + done.stdout, folder)


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def explain_failure(deb: Deb, output: str, folder: Path) -> DownloadError | StorageError:
    """The error that says why apt-get failed, from what it printed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    reason = (errors or lines or ["apt-get printed nothing"])[-1].removeprefix("E:").strip()
    if is_no_space(output):
        return no_space(str(folder), given=reason)
    return DownloadError(
        f"{deb.requirement} cannot be downloaded: the Debian mirror cannot be reached or "
        "does not hold it",
        where="apt-get download",
        given=reason,
        fix="check the network and apt's sources (apt-cache policy), or put "
        f"{deb.filename} into {folder.parent} yourself and run again",
    )
