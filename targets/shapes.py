"""``shapes.json``: the real sizes of a checkpoint whose layers were resized.

A Hugging Face config holds one number of heads and one feed-forward width for all layers, and
derives the head size from them. A pruned network needs more words; they stand in this manifest,
beside ``config.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from targets.errors import CheckpointError

__all__ = [
    "SHAPES_FILE",
    "LayerShape",
    "MergedTokens",
    "ShapeManifest",
    "tensor_shapes",
    "weight_files",
]

SHAPES_FILE = "shapes.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerShape:
    """One transformer layer: its number of attention heads and the width of its feed-forward."""

    num_heads: int
    ffn_width: int


@dataclass(frozen=True)
class MergedTokens:
    """The patches that a vision transformer merges.

    Attributes:
        num_first: Tokens before those of the patches, which stay.
        counts: How many patches go behind each layer.
    """

    num_first: Annotated[int, Field(ge=0)]
    counts: tuple[Annotated[int, Field(ge=0)], ...]


class ShapeManifest(BaseModel):
    """Sizes of a resized encoder.

    Attributes:
        schema_version: Of this file.
        architecture: Class of the model, such as ``BertForSequenceClassification``.
        hidden_size: Width of the residual stream.
        head_size: Width of one attention head, the same in all layers.
        layers: One shape a layer, the first first.
        tensors: Name -> shape of every tensor that differs from what the config alone would build.
        dropped: Names of parts that are gone: what they would read goes on as it is.
        merged: What it merges; None where every layer reads all tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    architecture: str
    hidden_size: int = Field(ge=0)
    head_size: int = Field(ge=0)
    layers: tuple[LayerShape, ...]
    tensors: dict[str, tuple[int, ...]]
    dropped: tuple[str, ...] = Field(default=(), exclude_if=lambda names: not names)
    merged: MergedTokens | None = Field(default=None, exclude_if=lambda merged: merged is None)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the manifest of a checkpoint folder; None where there is none.

        Raises:
            CheckpointError: It is damaged or of another schema version.
        """
        path = folder / SHAPES_FILE
        if not path.exists():
            return None
        fix = "copy shapes.json again from where the checkpoint was written, or write it anew"
        try:
            manifest = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            given = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise CheckpointError(
                "the shape manifest of the checkpoint is damaged", where=path, given=given, fix=fix
            ) from error
        if manifest.schema_version != SCHEMA_VERSION:
            raise CheckpointError(
                "the shape manifest of the checkpoint has another schema version",
                where=path,
                given=manifest.schema_version,
                fix=f"this version reads schema {SCHEMA_VERSION}; install the one that wrote it",
            )
        return manifest

    def write(self, folder: Path) -> None:
        """Write the manifest into a checkpoint folder."""
        (folder / SHAPES_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the stored tensors; reads the headers only.

    Raises:
        CheckpointError: There are no safetensors, or a file is truncated or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as stream:
                for name in stream.keys():  # noqa: SIM118  (it is no dict: it has no iterator)
                    shapes[name] = tuple(stream.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                "the weights cannot be read: the file is truncated or not in safetensors format",
                where=path,
                given=error,
                fix="copy the checkpoint again, or save it anew",
            ) from error
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        CheckpointError: There are none, or a shard that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise CheckpointError(
            "the checkpoint has no weights",
            where=whole,
            fix="save it with save_pretrained(folder, safe_serialization=True)",
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            "the index of the weights cannot be read",
            where=index,
            given=error,
            fix="copy the checkpoint again, or save it anew",
        ) from error
    paths = [folder / Path(name).name for name in names]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise CheckpointError(
            "the checkpoint lacks some of its weight files",
            where=folder,
            given=", ".join(absent),
            fix="copy the checkpoint again: its index names these files",
        )
    return paths
