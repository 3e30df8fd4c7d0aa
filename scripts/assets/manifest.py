"""The record `asset.json` beside an asset's files: written last, checked before any work."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from assets.asset import Asset, Source
from assets.download import sha256_of

MANIFEST = "asset.json"


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """The recorded state of one file."""

    path: str
    size_bytes: int
    sha256: str


def write_manifest(
    asset: Asset,
    folder: Path,
    *,
    details: Mapping[str, object],
    stated_licence: Sequence[str],
    licence_files: Sequence[str],
) -> None:
    """Record where the files in `folder` come from, their licence, and what they are.

    The record holds no time and no path outside the folder: the same package gives the same bytes.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    record = {
        "name": asset.name,
        "definition_sha256": asset.definition_sha256,
        "source": _describe(asset.source),
        **({"other_sources": list(map(_describe, asset.others))} if asset.others else {}),
        "licence": {
            "package": asset.licence.package,
            "content": asset.licence.content,
            f"{asset.source.kind}_metadata": list(stated_licence),
            "files": list(licence_files),
        },
        "citation": asset.citation,
        "notes": list(asset.notes),
        **details,
        "files": {
            path.relative_to(folder).as_posix(): {
                "size_bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
            for path in paths
        },
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _describe(source: Source) -> dict[str, str]:
    return {
        "package": source.package,
        "version": source.version,
        source.kind: source.filename,
        "sha256": source.sha256,
    }


def read_files(asset: Asset, folder: Path) -> tuple[FileRecord, ...] | None:
    """The files recorded for this very definition of the asset; None where there is no record."""
    try:
        record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if record["definition_sha256"] != asset.definition_sha256:
            return None
        return tuple(
            FileRecord(path=path, size_bytes=int(file["size_bytes"]), sha256=str(file["sha256"]))
            for path, file in record["files"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # Absent, unreadable and malformed records all mean the same: the asset is not finished.
        return None


def first_fault(files: Sequence[FileRecord], folder: Path, *, verify: bool) -> str | None:
    """Why the first file that is not as recorded is not; None where all are.

    Args:
        files: What was recorded.
        folder: The asset's folder.
        verify: Compare contents by sha256 too, not only sizes.
    """
    for file in files:
        path = folder / file.path
        if not path.is_file():
            return f"{file.path} is missing"
        if path.stat().st_size != file.size_bytes:
            return f"{file.path} has {path.stat().st_size} bytes, not {file.size_bytes}"
        if verify and sha256_of(path) != file.sha256:
            return f"{file.path} has another sha256 than recorded"
    return None
