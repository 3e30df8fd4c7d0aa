"""Second moments of what the projections read that units end in: what one unit tells of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.tasks.base import LABELS, inputs_of
from compressor.training.losses import token_mask
from targets.answers import IGNORED
from targets.encoder import EncoderLayer, encoder_layers, layer_stacks

__all__ = ["LayerMoments", "Moments", "head_groups", "watching"]

_LEAST = 1e-6
_AT_ONCE = 2**30
"""Bytes of moments that are gathered in one pass over the batches; at least those of one part."""
_DAMPING = 0.01
"""Added to the variance of each unit, as a share of their mean: what few rows do not tell stays as
it is."""


class Moments:
    """Weighted sums over tokens of what a projection reads, and how it weighs that.

    Args:
        part: A projection, or a convolution that reads every channel: its units are then the
            channels, each as often as its kernel has places.
        relative: A token counts in inverse proportion to the square of what is written of it. Else
            a few tokens, such as separators, whose states are a hundred times those of others,
            would decide alone, although the normalization after it makes all of them equal.
        centred: Whether something makes up for the mean of what is written: by default a bias.
    """

    def __init__(
        self,
        part: nn.Linear | nn.modules.conv._ConvNd,
        *,
        relative: bool = True,
        centred: bool | None = None,
    ) -> None:
        width, device = part.weight.flatten(1).shape[1], part.weight.device
        self.part = part
        self.relative = relative
        self.centred = part.bias is not None if centred is None else centred
        self.num_tokens = 0
        self.count = 0.0
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros((width, width), dtype=torch.float64, device=device)

    def add(self, given: Tensor) -> None:
        """Add tokens.  # (N, units)"""
        given = given.float()
        weighted = given
        self.num_tokens += len(given)
        if self.relative:
            written = functional.linear(given, self.part.weight.float(), self.part.bias)
            weights = 1 / written.square().mean(dim=-1).clamp(min=_LEAST)
            weighted = given * weights[:, None]
            self.count += float(weights.sum())
        else:
            self.count += len(given)
        self.sum += weighted.sum(dim=0)
        self.products += (given.T @ weighted).double()

    @property
    def weight(self) -> Tensor:
        """(out, units), of the part."""
        return self.part.weight.detach().flatten(1).double()

    @property
    def mean(self) -> Tensor:
        """(units,); zeros where nothing could make up for it."""
        if not self.centred or not self.count:
            return torch.zeros_like(self.sum)
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(units, units), around the mean, and with a little more variance."""
        products = self.products / max(self.count, _LEAST) - torch.outer(self.mean, self.mean)
        damping = _DAMPING * products.diagonal().mean()
        products.diagonal().add_(damping.clamp(min=torch.finfo(torch.float64).tiny))
        return products


def head_groups(layer: EncoderLayer) -> Tensor:
    """(heads, channels): the columns of the output projection that each head gives."""
    device = layer.attention_output.weight.device
    return torch.arange(layer.attention_output.in_features, device=device).reshape(
        layer.num_heads, -1
    )


class LayerMoments:
    """What the output projections of the layers read of all tokens that are no padding.

    Large ones are read a few at a time, in several passes over the batches, and anew whenever they
    are gone through; those that fit into one pass are kept.

    Args:
        module: A transformer whose layers are known; not to be changed while this is in use.
        batches: Inputs, and labels, of which a decoder's padding is read.
        parts: Of its layers, of attention or feed-forward; by default all, both of one layer after
            those of the one before it.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        parts: Sequence[nn.Linear] | None = None,
    ) -> None:
        self.module = module
        self.batches = batches
        if parts is None:
            parts = [
                part
                for layer in encoder_layers(module)
                for part in (layer.attention_output, layer.ffn_output)
            ]
        self.parts = parts
        self._kept: list[Moments] | None = None

    def __iter__(self) -> Iterator[Moments]:
        """One for each part, in their order."""
        if self._kept is not None:
            yield from self._kept
            return
        rest = list(self.parts)
        while rest:
            size, count = 0, 0
            while count < len(rest) and (not count or size < _AT_ONCE):
                size += 8 * rest[count].in_features ** 2
                count += 1
            found = _gather(self.module, self.batches, rest[:count])
            if count == len(self.parts):
                self._kept = found
            yield from found
            rest = rest[count:]
            del found  # before the next ones


def _gather(
    module: nn.Module, batches: Sequence[Mapping[str, Tensor]], parts: Sequence[nn.Linear]
) -> list[Moments]:
    layers = encoder_layers(module)
    first, *_ = map(len, layer_stacks(module))
    stacks = {
        id(part): int(number >= first)
        for number, layer in enumerate(layers)
        for part in (layer.attention_output, layer.ffn_output)
    }
    masks: list[Tensor | None] = [None, None]  # of the first stack; of a decoder that follows it
    found = [Moments(part) for part in parts]
    adders: dict[nn.Module, Any] = {
        each.part: _adder(each, masks, stacks[id(each.part)]) for each in found
    }
    with watching(module, adders):
        for batch in batches:
            masks[0] = batch.get("attention_mask")
            if first < len(layers):
                masks[1] = _up_to_the_last(batch[LABELS] != IGNORED)
            module(**inputs_of(batch))
    return found


@contextmanager
def watching(module: nn.Module, watched: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Have parts of a network tell what they read while it runs, without dropout and gradients.

    Args:
        module: Is left as it was.
        watched: Part -> what is called with it and its inputs.
    """
    modes = {part: part.training for part in module.modules()}
    hooks = [part.register_forward_pre_hook(call) for part, call in watched.items()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in modes.items():
            part.training = mode


def _up_to_the_last(judged: Tensor) -> Tensor:
    """(N, L): 1 up to the last token that is judged; those after it are padding."""
    return judged.long().flip(-1).cummax(dim=-1).values.flip(-1)


def _adder(moments: Moments, masks: Sequence[Tensor | None], stack: int) -> Any:
    def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        states = given[0] if given[0].ndim == 3 else given[0][None]  # some lay all tokens in a row
        moments.add(states[token_mask(masks[stack], states) != 0])

    return add
