"""Cut channels out of a network of convolutions, along the graph of what hangs together."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.pruning.importance import Importance, labelled_loss
from compressor.pruning.moments import Moments
from compressor.pruning.reading import (
    SecondOrderImportance,
    Widths,
    channel_moments,
    recalibrate,
    refit_channels,
)
from compressor.pruning.tracing import all_trainable, quiet_tracing
from compressor.pruning.widths import kept_width
from compressor.tasks import Task, get_task
from compressor.tasks.base import inputs_of
from targets.checkpoint import update_config

__all__ = ["count_channels", "prune_channels"]

MAX_RATIO = 0.9
"""No layer loses more than this, however little its channels matter."""


def prune_channels(
    model: TorchModel,
    ratio: float,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    importance: Importance,
    across_layers: bool,
    multiple: int,
    refits: bool,
    seed: int,
) -> TorchModel:
    """A copy of ``model`` without its least important channels; ``model`` stays untouched.

    Channels that are added or joined anywhere in the network go together (Fang et al., DepGraph:
    Towards Any Structural Pruning, CVPR 2023). The outputs keep their size.

    Args:
        model: Any network that torch-pruning can trace.
        ratio: Share of the channels to remove, in (0, 1).
        batches: Inputs with labels, one at least: for tracing, for Taylor and second-order
            importance, and to fit on.
        importance: How channels are scored: Taylor (Molchanov et al., 2019), second-order (see
            :mod:`compressor.pruning.reading`), by the size of their weights, or at random.
        across_layers: Whether the channels of all layers compete, or each layer loses its share.
        multiple: Widths become multiples of this, but for layers that are narrower, and of networks
            with convolutions in groups, such as RegNet.
        refits: Whether what stays is fitted to say what goes, see
            :mod:`compressor.pruning.reading`.
        seed: Of random scores.

    Raises:
        PassError: The network has no convolutions or cannot be traced, or nothing was removed.
    """
    before = count_channels(model.module)
    if not before:
        raise PassError(
            "the network has neither the layers of a known transformer encoder nor convolutions",
            where=type(model.module).__name__,
            fix="leave the pass out",
        )
    module = copy.deepcopy(model.module)
    moments = channel_moments(model.module, batches) if refits else {}
    scorer = _scorer(importance, module, moments)
    with all_trainable(module):
        if importance == "taylor":
            _accumulate_gradients(module, batches, get_task(model.task))
        left = _cut(
            module,
            {name: each[:2] for name, each in inputs_of(batches[0]).items()},
            seed=seed,
            importance=scorer,
            pruning_ratio=ratio,
            max_pruning_ratio=max(ratio, MAX_RATIO),
            global_pruning=across_layers,
            # torch-pruning rounds the share of a group, and takes the same of each.
            round_to=None if _reads_in_groups(module) else multiple,
            ignored_layers=_heads(module, len(model.labels)),
        )
    module.zero_grad(set_to_none=True)
    if across_layers and importance == "second-order" and not scorer.is_comparable:
        raise PassError(
            "the channels of all layers cannot be ranked together: grouped convolutions read some "
            "of them, and the errors of removing those are unknown",
            where=type(module).__name__,
            given="scope global, importance second-order",
            fix="set scope to layer, or importance to taylor",
        )
    if refits:
        refit_channels(module, moments, left)
        recalibrate(module, batches)
    if count_channels(module) >= before:
        raise PassError(
            "pruning removed no channel",
            where=type(module).__name__,
            given=f"ratio {ratio:g}, multiples of {multiple}",
            fix="raise the ratio, or leave the pass out",
        )
    update_config(module)
    return replace(model, module=module)


def _reads_in_groups(module: nn.Module) -> bool:
    """Whether there are convolutions in groups of several channels."""
    return any(
        1 < part.groups < part.out_channels
        for part in module.modules()
        if isinstance(part, nn.modules.conv._ConvNd)
    )


def _cut(module: nn.Module, example: Mapping[str, Tensor], *, seed: int, **settings: Any) -> Widths:
    """Cut channels in place; what of each part is left.

    Args:
        module: To be cut.
        example: Inputs to trace it with.
        seed: Of random scores.
        **settings: Of torch-pruning's pruner.

    Raises:
        PassError: It cannot be traced, or does not run afterwards.
    """
    with torch.no_grad():
        shape = module(**example).logits.shape
    left = Widths(module)
    with torch.random.fork_rng(), quiet_tracing():
        torch.manual_seed(seed)
        try:
            pruner = _Pruner(
                module, example, output_transform=lambda output: output.logits.sum(), **settings
            )
            for group in pruner.step(interactive=True):
                left.note(group)
                group.prune()
            with torch.no_grad():
                found = module(**example).logits.shape
            if found != shape:
                raise ValueError(f"logits of shape {tuple(found)} instead of {tuple(shape)}")
        except Exception as error:  # the tracing runs the network: anything may come out of it
            raise PassError(
                "the network cannot be pruned: the dependencies between its layers were not found",
                where=type(module).__name__,
                given=f"{type(error).__name__}: {error}",
                fix="leave the pass out",
            ) from error
    return left


def count_channels(module: nn.Module) -> int:
    """Output channels of all convolutions."""
    return sum(
        part.out_channels for part in module.modules() if isinstance(part, nn.modules.conv._ConvNd)
    )


class _Pruner(torch_pruning.pruner.BasePruner):  # type: ignore[misc]  # it has no types
    """Rounds to the nearest multiple, where the base class takes the next lower one."""

    def _round_to(self, num_pruned: int, num_channels: int, multiple: int) -> int:
        share = min(num_pruned / num_channels, self.max_pruning_ratio)
        return num_channels - kept_width(num_channels, share, multiple=multiple)


def _scorer(importance: Importance, module: nn.Module, moments: Mapping[str, Moments]) -> Any:
    if importance == "second-order":
        parts = {module.get_submodule(name): each for name, each in moments.items()}
        return SecondOrderImportance(parts)
    return _IMPORTANCE[importance]()


_IMPORTANCE = {
    "taylor": torch_pruning.importance.GroupTaylorImportance,
    "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
    "random": torch_pruning.importance.RandomImportance,
}


def _accumulate_gradients(
    module: nn.Module, batches: Sequence[Mapping[str, Tensor]], task: Task
) -> None:
    module.zero_grad(set_to_none=True)
    for batch in batches:
        torch.autograd.backward(labelled_loss(module, batch, task))


def _heads(module: nn.Module, num_labels: int) -> list[nn.Module]:
    """The layers that give the classes: the last with as many outputs as there are."""
    found: list[nn.Module] = [
        part
        for part in module.modules()
        if (isinstance(part, nn.Linear) and part.out_features == num_labels)
        or (isinstance(part, nn.Conv2d) and part.out_channels == num_labels)
    ]
    return found[-1:]
