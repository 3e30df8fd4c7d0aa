"""The folder of finished assets: builds what is missing, whole or not at all."""

import fcntl
import importlib.util
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from assets.archive import JoinedArchive, copy_licence_files
from assets.asset import Asset, Report
from assets.download import fetch_package
from assets.errors import MissingLibraryError, storage_errors
from assets.manifest import MANIFEST, first_fault, read_files, write_manifest
from assets.package import reader_of


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What `Store.ensure` did for one asset."""

    action: Literal["unchanged", "built"]
    folder: Path
    size_bytes: int
    duration_s: float


@dataclass(frozen=True)
class Store:
    """A folder with one subfolder an asset, and the downloaded packages in `downloads`.

    Args:
        root: The folder; made when the first asset is built.
        clock: Gives seconds, for durations.
    """

    root: Path
    clock: Callable[[], float] = time.perf_counter

    def is_finished(self, asset: Asset) -> bool:
        """Whether the asset is there, by its record and the sizes of its files."""
        return self._fault(asset, verify=False) is None

    def ensure(self, asset: Asset, *, report: Report, verify: bool = False) -> Outcome:
        """Build the asset unless it is finished.

        Args:
            asset: What to build.
            report: Takes progress lines.
            verify: Compare the contents of a finished asset by sha256, and rebuild it if they
                differ.

        Raises:
            AssetError: The asset cannot be built; its folder is as it was before.
        """
        start_s = self.clock()
        action: Literal["unchanged", "built"] = "unchanged"
        with storage_errors(self.root):
            if self._fault(asset, verify=verify) is not None:
                with self._lock(report):
                    # Another process may have built it while this one waited.
                    fault = self._fault(asset, verify=verify)
                    if fault is not None:
                        if (self.root / asset.name).exists():
                            report(f"{asset.name}: rebuilding, {fault}")
                        self._build(asset, report=report)
                        action = "built"
            folder = self.root / asset.name
            size_bytes = sum(file.size_bytes for file in read_files(asset, folder) or ())
        return Outcome(
            action=action,
            folder=folder,
            size_bytes=size_bytes,
            duration_s=self.clock() - start_s,
        )

    def _fault(self, asset: Asset, *, verify: bool) -> str | None:
        folder = self.root / asset.name
        files = read_files(asset, folder)
        if files is None:
            return f"no {MANIFEST} for this version"
        return first_fault(files, folder, verify=verify)

    @contextmanager
    def _lock(self, report: Report) -> Iterator[None]:
        """Let one process at a time build below the root; the system frees it if one dies."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report(f"waiting for another fetch_assets at work in {self.root}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _build(self, asset: Asset, *, report: Report) -> None:
        """Build beside the destination, then rename, so that a failure leaves nothing half done.

        Fixed names, as only the holder of the lock comes here: what a killed process left behind
        is removed by the next one.
        """
        destination = self.root / asset.name
        partial = self.root / f".{asset.name}.partial"
        previous = self.root / f".{asset.name}.previous"
        downloads = self.root / "downloads"
        if previous.exists() and not destination.exists():  # one was killed between two renames
            previous.rename(destination)
        _require_libraries(asset)
        paths = [
            fetch_package(source, downloads, report=lambda line: report(f"{asset.name}: {line}"))
            for source in (asset.source, *asset.others)
        ]
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)
        partial.mkdir()
        try:
            reader = reader_of(asset.source)
            with ExitStack() as stack:
                archive, *others = [stack.enter_context(reader.open(path)) for path in paths]
                members = reader.licence_members(archive)
                licence_files = copy_licence_files(archive, members, partial)
                write_manifest(
                    asset,
                    partial,
                    details=asset.convert(JoinedArchive((archive, *others)), partial),
                    stated_licence=reader.stated_licence(archive),
                    licence_files=licence_files,
                )
            if destination.exists():
                destination.rename(previous)
            partial.rename(destination)
        finally:
            if previous.exists() and not destination.exists():
                previous.rename(destination)
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(previous, ignore_errors=True)


def _require_libraries(asset: Asset) -> None:
    missing = [name for name in asset.libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingLibraryError(
            f"the conversion of {asset.name} needs libraries that this Python lacks",
            where=sys.executable,
            given="no module named " + ", ".join(missing),
            fix=f"scripts/setup, then .venv/bin/python scripts/fetch_assets {asset.name}",
        )
