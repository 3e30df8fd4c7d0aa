"""Bring a transformer to another size of images, or to shorter recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compressor.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["resize_positions", "shorten_positions"]


def resize_positions(network: nn.Module, image_size: int) -> None:
    """Interpolate the table of positions, so that the network is at home with images of a size.

    Networks would do the same in every run. Those without such a table take any size.

    Args:
        network: A Hugging Face model; changed in place, its config too.
        image_size: Side of the images in pixels; a multiple of that of a patch.

    Raises:
        CheckpointError: The size is no multiple.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    config: Any = network.config
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and image_size % patch:
        raise CheckpointError(
            "images are cut into patches, and this size is no multiple of theirs",
            where="image_size",
            given=f"{image_size}, patches of {patch}",
            fix=f"use {max(1, round(image_size / patch)) * patch}",
        )
    if hasattr(config, "image_size"):
        config.image_size = image_size
    for part in network.modules():
        if isinstance(patch, int):
            known = {
                "image_size": (image_size, image_size),
                "num_patches": (image_size // patch) ** 2,
            }
            vars(part).update({name: value for name, value in known.items() if name in vars(part)})
        table = getattr(part, "position_embeddings", None)
        if not isinstance(table, nn.Parameter) or table.ndim != 3 or not isinstance(patch, int):
            continue
        side = int((table.shape[1] - 1) ** 0.5)
        first, grid = table[:, :1], table[:, 1:]
        squares = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        wanted = image_size // patch
        with torch.no_grad():
            moved = functional.interpolate(
                squares, size=(wanted, wanted), mode="bicubic", align_corners=False
            )
            joined = torch.cat([first, moved.flatten(2).transpose(1, 2)], dim=1)
        part.position_embeddings = nn.Parameter(joined)


def shorten_positions(network: nn.Module, share: float) -> None:
    """Keep the first rows of the table of positions, for inputs that are always that long.

    Args:
        network: A Hugging Face model of the kind of Whisper; changed in place, its config too.
        share: Of the rows, in (0, 1].
    """
    from torch import nn

    config: Any = network.config
    count = round(config.max_source_positions * share)
    config.max_source_positions = count
    for part in network.modules():
        table = getattr(part, "embed_positions", None)
        if isinstance(table, nn.Embedding) and hasattr(part, "max_source_positions"):
            kept = table.weight[:count].detach().clone()
            part.embed_positions = nn.Embedding(count, table.embedding_dim, _weight=kept)
            part.max_source_positions = count
