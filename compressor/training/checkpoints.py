"""Training checkpoints that survive a kill: a checkpoint counts only once it has been sealed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

__all__ = ["claim", "identity", "last_checkpoint", "seal", "step_of"]

_SEAL = "sealed.json"  # file sizes of the checkpoint, written last
_IDENTITY = "training.json"
_PATTERN = "checkpoint-*"


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as whole. Its files reach the disk before the mark does."""
    sizes = {}
    for path in sorted(checkpoint.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sizes[path.name] = path.stat().st_size
    partial = checkpoint / (_SEAL + ".partial")
    partial.write_text(json.dumps(sizes) + "\n")
    partial.replace(checkpoint / _SEAL)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest sealed checkpoint whose files all have the sizes they were sealed with."""
    whole = [path for path in folder.glob(_PATTERN) if _is_whole(path)]
    return max(whole, key=step_of, default=None)


def claim(folder: Path, identity: str) -> None:
    """Prepare a folder for one training: remove partial checkpoints and those of another training.

    Args:
        folder: Made if absent.
        identity: Equal for equal trainings; see :func:`identity`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _IDENTITY
    known = path.read_text() if path.is_file() else None
    for checkpoint in folder.glob(_PATTERN):
        if known != identity or not _is_whole(checkpoint):
            shutil.rmtree(checkpoint)
    path.write_text(identity)


def identity(parts: Iterable[object], modules: Iterable[nn.Module]) -> str:
    """A digest of everything a training depends on.

    Args:
        parts: Settings, seed and data: arrays by their bytes, all else by its ``repr``.
        modules: Networks, by their weights.

    Returns:
        A sha256 in hex.
    """
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            digest.update(piece)
    for module in modules:
        for name, tensor in module.state_dict().items():
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(flat.numpy().data)
    return digest.hexdigest()


def _pieces(part: object) -> Iterator[bytes]:
    """What to digest of a value; containers of arrays are taken apart."""
    if isinstance(part, np.ndarray):
        yield f"{part.dtype} {part.shape}".encode()
        yield np.ascontiguousarray(part).tobytes()
    elif isinstance(part, Mapping):
        for name, value in part.items():
            yield repr(name).encode()
            yield from _pieces(value)
    elif isinstance(part, list | tuple) and part and isinstance(part[0], Mapping | np.ndarray):
        for each in part:
            yield from _pieces(each)
    else:
        yield repr(part).encode()


def _is_whole(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / _SEAL).read_text())
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def step_of(checkpoint: Path) -> int:
    """How many steps of training a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])
