"""The sizes that ratios lead to, from the sizes alone: planning loads no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compressor.architecture import Architecture, LayerShape
from compressor.errors import PassError
from compressor.pruning.widths import (
    head_multiple,
    kept_heads,
    kept_width,
    largest_head_ratio,
    step_ratio,
)

__all__ = ["Ratios", "plan_sizes"]


@dataclass(frozen=True)
class Ratios:
    """Shares to remove, each in [0, 1).

    Attributes:
        heads: Of the attention heads.
        ffn: Of the feed-forward neurons.
        hidden: Of the residual stream.
    """

    heads: float
    ffn: float
    hidden: float

    def after(self, step: int, num_steps: int) -> Ratios:
        """Shares that are gone after step ``step`` (from 1) of ``num_steps``."""
        return Ratios(
            *(step_ratio(ratio, step, num_steps) for ratio in (self.heads, self.ffn, self.hidden))
        )


def plan_sizes(
    architecture: Architecture, ratios: Ratios, *, multiple: int, at_least_one_head: bool = False
) -> Architecture:
    """The architecture after pruning every layer by the same ratios.

    Args:
        architecture: Before.
        ratios: Shares to remove.
        multiple: Widths are rounded to multiples of this.
        at_least_one_head: Leave one head where the ratio would leave none, instead of refusing.

    Raises:
        PassError: A layer would be left without a head, or the sizes cannot be built.
    """
    layers = []
    for number, layer in enumerate(architecture.layers):
        step = head_multiple(layer.num_heads, architecture.head_size, multiple)
        heads = kept_heads(layer.num_heads, ratios.heads, step=step)
        if heads == 0 and not at_least_one_head:
            raise _no_head(number, layer, ratios.heads, step)
        width = kept_width(layer.ffn_width, ratios.ffn, multiple=multiple)
        layers.append(LayerShape(num_heads=max(heads, step), ffn_width=width))
    hidden = kept_width(architecture.hidden_size, ratios.hidden, multiple=multiple)
    if architecture.embedding_size == hidden != architecture.hidden_size:
        raise PassError(
            f"the residual stream would become as wide as the embeddings ({hidden}), "
            f"and {architecture.family} then leaves out the projection between them",
            given=f"hidden {ratios.hidden:g}",
            fix="choose a slightly different ratio for hidden",
        )
    return replace(architecture, layers=tuple(layers), hidden_size=hidden)


def _no_head(number: int, layer: LayerShape, ratio: float, step: int) -> PassError:
    largest = largest_head_ratio(layer.num_heads, step=step)
    return PassError(
        f"layer {number} has {layer.num_heads} heads, and pruning would leave none",
        where=f"layer {number}",
        given=f"heads {ratio:g}",
        fix=f"use at most {largest:g}" if largest > 0 else "leave its heads alone (heads: 0)",
    )
