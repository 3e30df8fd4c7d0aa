"""Token merging: behind layers of a vision transformer the patches that are most alike become one.

Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (arXiv 2210.09461). Where we
differ: patches are compared by their states behind a layer instead of by their keys inside it, so
that any attention serves; and one that was merged attends as one, whatever it is made of, which a
training after it makes up for. Only what every runtime has is used: no scattering.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from targets.encoder import layer_stacks
from targets.shapes import MergedTokens

__all__ = ["TokenMerging", "count_tokens", "keep_last", "merge_tokens", "merged_tokens"]

_NAME = "token_merging"
_MASK = frozenset({"attention_mask"})


class TokenMerging(nn.Module):
    """Merge so many patches of each image.

    Args:
        num_first: Tokens before those of the patches, which stay as they are.
        count: Patches that go, at most half of them.
    """

    def __init__(self, num_first: int, count: int) -> None:
        super().__init__()
        self.num_first = num_first
        self.count = count

    def forward(self, states: Tensor) -> Tensor:
        """(N, tokens, width) -> (N, tokens - count, width); the order of patches is not kept.

        Every other patch may go: into the mean with that of the rest which it is most like.
        """
        first, patches = states[:, : self.num_first], states[:, self.num_first :]
        if self.count > patches.shape[1] // 2:
            raise ValueError(f"{self.count} of {patches.shape[1]} patches cannot be merged")
        ours, others = patches[:, ::2], patches[:, 1::2]
        near = functional.normalize(ours, dim=-1) @ functional.normalize(others, dim=-1).mT
        likeness, partners = near.max(dim=-1)  # (N, ours)
        order = likeness.topk(ours.shape[1], dim=-1).indices
        ranked = ours.gather(1, order[..., None].expand(-1, -1, ours.shape[-1]))
        gone, stays = ranked[:, : self.count], ranked[:, self.count :]
        joined = partners.gather(1, order)[:, None, : self.count]  # (N, 1, count)
        places = torch.arange(others.shape[1], device=states.device)[None, :, None]
        shares = (joined == places).to(states.dtype)  # (N, others, count)
        means = (others + shares @ gone) / (1 + shares.sum(dim=-1, keepdim=True))
        return torch.cat([first, stays, means], dim=1)


def count_tokens(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many tokens stand before those of the patches, and how many those are.

    Args:
        module: A transformer for images or videos.
        inputs: An example, by name.

    Raises:
        ValueError: Its tokens are no patches, are merged already, or what it answers depends on
            where each of them stands behind the last layer.
    """
    if merged_tokens(module) is not None:
        raise ValueError("its tokens are already merged")
    stacks = layer_stacks(module)
    embeddings: list[Any] = [part.patch_embeddings for part in module.modules() if _embeds(part)]
    if len(stacks) != 1 or len(embeddings) != 1:
        raise ValueError("its layers, or its patches, are of a kind that is not known")
    lengths: dict[str, int] = {}

    def note(name: str) -> Any:
        return lambda _, given, made: lengths.__setitem__(name, _states(made).shape[1])

    def turn(_: nn.Module, __: Any, made: Any) -> Any:
        states = _states(made)
        first = states.shape[1] - lengths["patches"]
        turned = torch.cat([states[:, :first], states[:, first:].flip(1)], dim=1)
        return (turned, *made[1:]) if isinstance(made, tuple) else turned

    hooks = [
        embeddings[0].register_forward_hook(note("patches")),
        stacks[0][0].register_forward_hook(note("tokens")),
    ]
    try:
        with torch.inference_mode():
            expected = module(**inputs)[0]
            hooks.append(stacks[0][-1].register_forward_hook(turn))
            found = module(**inputs)[0]
    finally:
        for hook in hooks:
            hook.remove()
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        raise ValueError("its outputs depend on the order of the patches after the last layer")
    return lengths["tokens"] - lengths["patches"], lengths["patches"]


def merge_tokens(module: nn.Module, merged: MergedTokens) -> None:
    """Let a transformer merge patches behind its layers, in place."""
    (stack,) = layer_stacks(module)
    fewer = False
    for layer, count in zip(stack, merged.counts, strict=True):
        if fewer:
            layer.register_forward_pre_hook(_unmasked, with_kwargs=True)
        if count:
            layer.add_module(_NAME, TokenMerging(merged.num_first, count))
            layer.register_forward_hook(_behind)
            fewer = True


def merged_tokens(module: nn.Module) -> MergedTokens | None:
    """What a network merges; None where it does not."""
    stacks = layer_stacks(module)
    if len(stacks) != 1:
        return None
    found = [getattr(layer, _NAME, None) for layer in stacks[0]]
    firsts = {each.num_first for each in found if each is not None}
    if not firsts:
        return None
    counts = tuple(0 if each is None else each.count for each in found)
    return MergedTokens(num_first=firsts.pop(), counts=counts)


def keep_last(module: nn.Module) -> None:
    """Let nothing be merged behind the last layer, which no other would read, in place."""
    for stack in layer_stacks(module):
        if hasattr(stack[-1], _NAME):
            delattr(stack[-1], _NAME)


def _embeds(part: nn.Module) -> bool:
    return isinstance(getattr(part, "patch_embeddings", None), nn.Module)


def _states(made: Any) -> Tensor:
    states: Tensor = made[0] if isinstance(made, tuple) else made
    return states


def _unmasked(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Without the mask, which an export makes for all tokens: no image is padded."""
    states, *rest = given
    return (states, *([None] * len(rest))), {**named, **dict.fromkeys(_MASK & named.keys())}


def _behind(layer: nn.Module, _: Any, made: Any) -> Any:
    merging = getattr(layer, _NAME, None)
    if merging is None:  # what was the last of fewer layers since then
        return made
    return (merging(made[0]), *made[1:]) if isinstance(made, tuple) else merging(made)
