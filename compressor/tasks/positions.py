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

    for part in network.modules():
        table = getattr(part, "position_embeddings", None)
        patches: Any = getattr(part, "patch_embeddings", None)
        if not isinstance(table, nn.Parameter) or patches is None:
            continue
        patch = patches.patch_size[0]
        if image_size % patch:
            raise CheckpointError(
                "images are cut into patches, and this size is no multiple of theirs",
                where="image_size",
                given=f"{image_size}, patches of {patch}",
                fix=f"use {max(1, round(image_size / patch)) * patch}",
            )
        wanted = image_size // patch
        height, width = (side // patch for side in patches.image_size)
        # The tokens before those of the patches have positions too.
        num_first = table.shape[1] - height * width
        squares = table[:, num_first:].reshape(1, height, width, -1).permute(0, 3, 1, 2)
        with torch.no_grad():
            moved = functional.interpolate(
                squares, size=(wanted, wanted), mode="bicubic", align_corners=False
            )
            joined = torch.cat([table[:, :num_first], moved.flatten(2).transpose(1, 2)], dim=1)
        part.position_embeddings = nn.Parameter(joined)
        for each in (part, patches):  # networks compare them with what they are given
            if hasattr(each, "image_size"):
                each.image_size = (image_size, image_size)
        patches.num_patches = wanted**2
    if hasattr(network.config, "image_size"):
        network.config.image_size = image_size


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
        reads = hasattr(part, "max_source_positions") and not hasattr(part, "max_target_positions")
        if isinstance(table, nn.Embedding) and reads:  # a decoder has a table of its own
            kept = table.weight[:count].detach().clone()
            part.embed_positions = nn.Embedding(count, table.embedding_dim, _weight=kept)
            part.max_source_positions = count
