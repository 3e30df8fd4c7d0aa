"""Where a bundle comes from, as its manifest tells it, beside the files that one has."""

from __future__ import annotations

from pathlib import Path

from targets.bundle import Bundle, hash_file
from targets.errors import BundleError, CheckpointError

__all__ = ["check_origin", "checkpoint_hashes"]


_READ = (".json", ".safetensors", ".model", ".spm", ".jinja")
_READ_BY_NAME = ("vocab.txt", "merges.txt")


def checkpoint_hashes(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file of a checkpoint that is read; part of the key of its steps."""
    read = sorted(
        path for path in folder.glob("*") if path.suffix in _READ or path.name in _READ_BY_NAME
    )
    read += sorted(folder.glob("*_Pooling/config.json"))  # of sentence-transformers
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in read}


def check_origin(bundle: Bundle, checkpoint: Path) -> None:
    """Check that a bundle was made from a checkpoint.

    Args:
        bundle: Whose manifest has the hashes of its checkpoint.
        checkpoint: A Hugging Face folder.

    Raises:
        CheckpointError: There is no such folder, or its files are not those.
        BundleError: The manifest does not tell.
    """
    origin = bundle.manifest.provenance.get("checkpoint")
    recorded = origin.get("files") if isinstance(origin, dict) else None
    if not isinstance(recorded, dict) or not recorded:
        raise BundleError(
            "the bundle does not record the files of its checkpoint",
            where=bundle.source,
            fix="build it again: compressor run",
        )
    if not checkpoint.is_dir():
        raise CheckpointError(
            "the checkpoint does not exist",
            where=checkpoint,
            fix="pass the folder that the bundle was made from",
        )
    try:
        found = checkpoint_hashes(checkpoint)
    except OSError as error:
        raise CheckpointError(
            "a file of the checkpoint cannot be read",
            where=error.filename,
            given=error.strerror or error,
            fix="make it readable",
        ) from error
    for name in sorted(recorded.keys() | found):
        if recorded.get(name) != found.get(name):
            raise CheckpointError(
                "the bundle was not made from this checkpoint",
                where=checkpoint / name,
                given=_told(found.get(name), recorded.get(name)),
                fix="pass the folder that the bundle was made from, as it was then",
            )


def _told(found: str | None, recorded: object) -> str:
    if found is None:
        return f"no such file; recorded sha256 {str(recorded)[:12]}…"
    if recorded is None:
        return "a file that the checkpoint did not have"
    return f"sha256 {found[:12]}…; recorded {str(recorded)[:12]}…"
