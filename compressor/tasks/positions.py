"""Bring a transformer to another size of images, or to shorter recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compressor.architecture import MID_POSITIONS
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
    from torch import nn

    grid: tuple[int, int] | None = None
    wanted = 0
    num_last = getattr(network.config, "num_detection_tokens", 0)
    for part in network.modules():
        table = getattr(part, "position_embeddings", None)
        patches: Any = getattr(part, "patch_embeddings", None)
        if not isinstance(table, nn.Parameter) or patches is None:
            continue
        patch = patches.patch_size[0]
        if image_size % patch:
            raise CheckpointError(
                "the image size is not a multiple of the size of the patches",
                where="image_size",
                given=f"{image_size}, patches of {patch}",
                fix=f"use {max(1, round(image_size / patch)) * patch}",
            )
        wanted = image_size // patch
        height, width = (side // patch for side in patches.image_size)
        grid = height, width
        part.position_embeddings = _resized(table, grid, wanted, num_last)
        for each in (part, patches):  # networks compare them with what they are given
            if hasattr(each, "image_size"):
                each.image_size = (image_size, image_size)
        patches.num_patches = wanted**2
    for part in network.modules():
        table = getattr(part, MID_POSITIONS, None)
        if table is not None and grid is not None:
            setattr(part, MID_POSITIONS, _resized(table, grid, wanted, num_last))
    before = getattr(network.config, "image_size", None)
    if before is not None:
        is_one = isinstance(before, int)
        network.config.image_size = image_size if is_one else [image_size, image_size]  # type: ignore[union-attr]


def _resized(
    table: nn.Parameter, grid: tuple[int, int], wanted: int, num_last: int
) -> nn.Parameter:
    """A table of positions, (..., tokens, hidden), for a square of so many patches.

    The tokens before those of the patches and the last ones have positions too, and keep them.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    *_, tokens, hidden = table.shape
    count = grid[0] * grid[1]
    rows = table.reshape(-1, tokens, hidden)
    begin, end = tokens - num_last - count, tokens - num_last
    squares = rows[:, begin:end].reshape(-1, *grid, hidden).permute(0, 3, 1, 2)
    with torch.no_grad():
        moved = functional.interpolate(
            squares, size=(wanted, wanted), mode="bicubic", align_corners=False
        )
        joined = torch.cat(
            [rows[:, :begin], moved.flatten(2).transpose(1, 2), rows[:, end:]], dim=1
        )
    return nn.Parameter(joined.reshape(*table.shape[:-2], -1, hidden))


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
