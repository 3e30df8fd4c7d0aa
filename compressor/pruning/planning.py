"""The sizes that ratios lead to, from the sizes alone: planning loads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field

from compressor.architecture import Architecture, LayerShape
from compressor.errors import PassError
from compressor.pruning.widths import (
    head_multiple,
    kept_heads,
    kept_width,
    largest_head_ratio,
    step_ratio,
)

_NORMALIZES_ALL_HEADS = frozenset({"olmo2", "olmo3", "flex_olmo"})
"""Families whose scale of queries and keys is as wide as all heads together."""

__all__ = ["KeptLayer", "Ratios", "check_untapped", "plan_shape", "plan_sizes"]


class KeptLayer(BaseModel):
    """A layer that stays, and the size it is to have."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    layer: int = Field(ge=0)
    """Which layer of the incoming model, from 0."""
    heads: int = Field(ge=1)
    """Attention heads that stay."""
    ffn: int = Field(ge=1)
    """Feed-forward neurons that stay."""


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
    if ratios.heads and architecture.writes:
        raise PassError(
            "the heads of a model with a decoder cannot be pruned: its cross-attention needs the "
            "number of heads that the config gives for all layers",
            where="heads",
            given=f"{ratios.heads:g}, model_type {architecture.family}",
            fix="set ffn alone, or heads to 0",
        )
    if ratios.heads and architecture.family in _NORMALIZES_ALL_HEADS:
        raise PassError(
            "the heads of this model cannot be pruned: it normalizes the queries and keys of all "
            "heads together",
            where="heads",
            given=f"{ratios.heads:g}, model_type {architecture.family}",
            fix="set ffn alone, or heads to 0",
        )
    is_encoder = not (architecture.is_decoder or architecture.writes)
    if ratios.hidden and not (is_encoder and architecture.vocabulary_size):
        raise PassError(
            "the residual stream can be narrowed only in text encoders",
            where="hidden",
            given=f"{ratios.hidden:g}, model_type {architecture.family}",
            fix="leave hidden at 0",
        )
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


def plan_shape(
    architecture: Architecture,
    kept: Sequence[KeptLayer],
    *,
    step: int,
    num_steps: int,
    multiple: int,
) -> Architecture:
    """The layers that stay, with their sizes after a step; the last step is exactly what is asked.

    Each step takes the same share of what is left of a layer. The other layers go with the first.

    Args:
        architecture: Before the first step.
        kept: The layers that stay, in ascending order.
        step: From 1.
        num_steps: Number of steps.
        multiple: On the way, widths are rounded to multiples of this.

    Raises:
        PassError: The model has no such layer, or it is smaller than what is to stay.
    """
    if architecture.writes:
        raise PassError(
            "shape describes a single stack of layers, but the model has an encoder and a decoder",
            where="shape",
            given=architecture.describe(),
            fix="use ffn, and the pass drop_layers before it",
        )
    if len(kept) < len(architecture.layers):
        check_untapped(architecture)
    layers = []
    for each in kept:
        if each.layer >= len(architecture.layers):
            raise PassError(
                f"the model has no layer {each.layer}",
                where="shape",
                given=f"{len(architecture.layers)} layers",
                fix=f"name layers from 0 to {len(architecture.layers) - 1}",
            )
        now = architecture.layers[each.layer]
        if each.heads > now.num_heads or each.ffn > now.ffn_width:
            raise PassError(
                f"shape keeps more of layer {each.layer} than it has",
                where=f"shape, layer {each.layer}",
                given=f"{each.heads} heads x {each.ffn} FFN of {now.num_heads} x {now.ffn_width}",
                fix=f"keep at most {now.num_heads} heads and {now.ffn_width} neurons",
            )
        if step == num_steps:
            layers.append(LayerShape(num_heads=each.heads, ffn_width=each.ffn))
            continue
        heads = kept_heads(now.num_heads, _gone(each.heads, now.num_heads, step, num_steps))
        width = kept_width(
            now.ffn_width, _gone(each.ffn, now.ffn_width, step, num_steps), multiple=multiple
        )
        layers.append(LayerShape(max(heads, each.heads), max(width, each.ffn)))
    return replace(architecture, layers=tuple(layers))


def check_untapped(architecture: Architecture) -> None:
    """Refuse to take layers out of a network another part of which reads some by their numbers.

    Raises:
        PassError: It is such a network.
    """
    if architecture.tapped_layers:
        raise PassError(
            "no layer of the model can be dropped: another part reads some of them by index",
            where="layers",
            given=", ".join(map(str, architecture.tapped_layers)),
            fix="keep all layers, and prune heads and neurons",
        )


def _gone(stays: int, now: int, step: int, num_steps: int) -> float:
    return step_ratio(1 - stays / now, step, num_steps)


def _no_head(number: int, layer: LayerShape, ratio: float, step: int) -> PassError:
    largest = largest_head_ratio(layer.num_heads, step=step)
    return PassError(
        f"layer {number} has {layer.num_heads} heads, and pruning would leave none",
        where=f"layer {number}",
        given=f"heads {ratio:g}",
        fix=f"use at most {largest:g}" if largest > 0 else "leave its heads alone (heads: 0)",
    )
