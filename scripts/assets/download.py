"""Downloading a pinned wheel with the user's own pip and its configuration."""

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

from assets.asset import Report, Wheel
from assets.errors import DownloadError, HashMismatchError, StorageError, no_space

# The first pip that can go on with a transfer that broke off.
_RESUME_SINCE = (25, 1)
_NUM_RESUME_RETRIES = 5
_NUM_ATTEMPTS = 2


def fetch_wheel(wheel: Wheel, downloads: Path, *, report: Report) -> Path:
    """Bring a wheel into `downloads`, unless it already lies there with the right content.

    A wheel with another content is deleted and fetched again once.

    Args:
        wheel: The pin.
        downloads: Folder of finished wheels; other files in it are left alone.
        report: Takes progress lines.

    Returns:
        The path of the wheel.

    Raises:
        HashMismatchError: Both attempts brought another content.
        DownloadError: pip is missing or brought nothing.
    """
    path = downloads / wheel.filename
    if path.exists():
        if sha256_of(path) == wheel.sha256:
            return path
        report(f"{wheel.filename} has another sha256 than the pinned one, deleting it")
        path.unlink()
    downloads.mkdir(parents=True, exist_ok=True)
    partial = downloads / f".{wheel.filename}.partial"
    for attempt in range(1, _NUM_ATTEMPTS + 1):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        report(f"downloading {wheel.requirement}, {wheel.size_bytes / 1e6:.1f} MB")
        try:
            # The second attempt goes past pip's cache, which may hold the wrong file.
            _download(wheel, partial, use_cache=attempt == 1)
            (partial / wheel.filename).replace(path)
        except HashMismatchError:
            if attempt == _NUM_ATTEMPTS:
                raise
        else:
            break
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _download(wheel: Wheel, folder: Path, *, use_cache: bool) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = pip_command(wheel, requirements, use_cache=use_cache)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode != 0:
        raise explain_failure(wheel, done.stdout, folder)
    path = folder / wheel.filename
    if not path.exists():
        found = ", ".join(sorted(item.name for item in folder.glob("*.whl"))) or "no wheel"
        raise DownloadError(
            f"pip brought another file than the pinned wheel of {wheel.requirement}",
            where=str(folder),
            given=f"{found}, not {wheel.filename}",
            fix="check the index that pip uses (python -m pip config list)",
        )
    found = sha256_of(path)
    if found != wheel.sha256:
        raise _mismatch(wheel, found)


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
        return _mismatch(wheel, found.group(1) if found else "unknown")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["pip printed nothing"])[-1].removeprefix("ERROR:").strip()
    broken = re.search(r"connection broken by '(.+)'", output)
    if broken:
        reason += f" ({broken.group(1)})"
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return no_space(str(folder), given=reason)
    return DownloadError(
        f"{wheel.requirement} cannot be downloaded: the package index cannot be reached or "
        "does not hold it",
        where="python -m pip download",
        given=reason,
        fix="check the network and pip's settings (python -m pip config list), or put "
        f"{wheel.filename} into {folder.parent} yourself and run again",
    )


def _mismatch(wheel: Wheel, found: str) -> HashMismatchError:
    return HashMismatchError(
        f"the downloaded wheel of {wheel.requirement} is not the pinned one",
        where=wheel.filename,
        given=f"sha256 {found}, expected {wheel.sha256}",
        fix="check the mirror or proxy that pip uses (python -m pip config list); "
        "the file was not kept",
    )


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
