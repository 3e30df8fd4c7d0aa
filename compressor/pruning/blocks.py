"""Residual blocks of a network of convolutions: which there are, and the network without some."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["drop_blocks", "residual_blocks"]


def residual_blocks(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the innermost parts that add something to what they read, in the order they run.

    The network holds without them: what such a part reads goes on as it is. It is told by what it
    does: it gives its input back where all of its weights are zero.

    Args:
        module: Runs on ``inputs``; stays untouched.
        inputs: An example, by name.
    """
    tried = copy.deepcopy(module).eval()
    shapes = _shapes_that_stay(tried, inputs)
    found = [name for name in shapes if _adds(tried.get_submodule(name), shapes[name])]
    return tuple(name for name in found if not any(each.startswith(f"{name}.") for each in found))


def drop_blocks(module: nn.Module, names: Collection[str]) -> nn.Module:
    """A copy of ``module`` in which some of its parts hand on what they read."""
    left = copy.deepcopy(module)
    for name in names:
        left.set_submodule(name, nn.Identity())
    return left


def _shapes_that_stay(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Part with weights -> shape of the one tensor that it reads and of the one that it gives."""
    found: dict[str, torch.Size] = {}

    def watch(name: str, part: nn.Module) -> Any:
        def note(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
            if named or len(given) != 1 or not isinstance(made, Tensor):
                return
            if isinstance(given[0], Tensor) and given[0].shape == made.shape:
                found[name] = made.shape

        return part.register_forward_hook(note, with_kwargs=True)

    hooks = [
        watch(name, part)
        for name, part in module.named_modules()
        if name and any(True for _ in part.parameters())
    ]
    with torch.no_grad():
        module(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def _adds(part: nn.Module, shape: torch.Size) -> bool:
    """Whether a part gives its input back where its weights are zero."""
    given = torch.linspace(0, 1, shape.numel()).reshape(shape)  # what no activation changes
    with torch.no_grad():
        # Frozen normalizations keep their scales and shifts as buffers.
        floats = [each for each in part.state_dict().values() if each.is_floating_point()]
        kept = [each.clone() for each in floats]
        for each in floats:
            each.zero_()
        made = part(given)
        for each, before in zip(floats, kept, strict=True):
            each.copy_(before)
    return torch.equal(made, given)
