"""Which channels the convolutions that read them can do without, and how they make up for them.

What :mod:`compressor.pruning.refit` does to transformers, along the graph of what hangs together: a
channel is judged by all convolutions and projections that read it. All places of an image count
alike (He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017), and not
in proportion to what is written there: much of an image may be empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional

from compressor.pruning.importance import Reader, errors_when_gone
from compressor.pruning.moments import Moments, watching
from compressor.pruning.refit import fold
from compressor.tasks.base import inputs_of

__all__ = ["SecondOrderImportance", "Widths", "channel_moments", "recalibrate", "refit_channels"]

_PLACES = 16
"""Of a side of an image, how many places are looked at."""
_WIDEST = 8192
"""What reads more columns is left alone: their products would take gigabytes."""
_ROWS = 64
"""Of a batch from which normalizations take their statistics."""
_OUT = (torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels)
_IN = (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
_PLAIN = {kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
"""Of parts that write the product of their weights with what they read, and nothing else."""


def channel_moments(
    module: nn.Module, batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, Moments]:
    """What all convolutions that read every channel, and all projections, read; by their names.

    They take 8 bytes for the square of the channels times the places of a kernel, all at once.

    Args:
        module: A network of convolutions; stays as it was.
        batches: Inputs, with labels or without.
    """
    parts: dict[str, Any] = {
        name: part for name, part in module.named_modules() if _reads_all(part)
    }
    normalized = _normalized(module, parts.values(), batches[0])
    found = {
        name: Moments(part, relative=False, centred=part.bias is not None or part in normalized)
        for name, part in parts.items()
        if part.weight[0].numel() <= _WIDEST
    }

    def adder(moments: Moments) -> Any:
        return lambda part, given: moments.add(_read(part, given[0]))

    with watching(module, {each.part: adder(each) for each in found.values()}):
        for batch in batches:
            module(**inputs_of(batch))
    return {name: each for name, each in found.items() if each.count}


class SecondOrderImportance(torch_pruning.importance.Importance):  # type: ignore[misc]  # no types
    """See :func:`compressor.pruning.importance.second_order_scores`; here for torch-pruning.

    The error of a reader is a share of the variance of what it writes; those of all readers of a
    channel are added up. Channels that none reads, or only convolutions in groups, are judged by
    the size of their weights.

    Args:
        moments: Of what the parts of the network read.
    """

    def __init__(self, moments: Mapping[nn.Module, Moments]) -> None:
        self._moments = moments
        self._otherwise = torch_pruning.importance.GroupMagnitudeImportance()
        self.is_comparable = True
        """Whether the scores of all channels so far are errors."""

    def __call__(self, group: Any) -> Tensor:
        """(channels,) of those that hang together."""
        num_channels = len(group[0].idxs)
        columns: dict[nn.Module, list[list[int]]] = {}
        for item in group:
            part = item.dep.target.module
            if item.dep.handler not in _IN or part not in self._moments or None in item.root_idxs:
                continue
            places = columns.setdefault(part, [[] for _ in range(num_channels)])
            size = math.prod(part.weight.shape[2:])
            for root, channel in zip(item.root_idxs, item.idxs, strict=True):
                places[root].extend(range(channel * size, (channel + 1) * size))
        readers = [
            _reader(self._moments[part], places)
            for part, places in columns.items()
            if len({len(each) for each in places if each}) == 1
        ]
        if not readers:
            self.is_comparable = False
            scores: Tensor = self._otherwise(group)
            return scores
        return torch.from_numpy(errors_when_gone(readers))


def _reader(moments: Moments, places: Sequence[Sequence[int]]) -> Reader:
    """A reader of the channels whose columns are given, of some none."""
    device = moments.part.weight.device
    read = [number for number, each in enumerate(places) if each]
    rows = torch.full((len(places),), -1, device=device)
    rows[read] = torch.arange(len(read), device=device)
    groups = torch.tensor([places[number] for number in read], device=device)
    return Reader.of(moments, groups, rows=rows)


class Widths:
    """Which of its inputs and outputs each part still has, while a network is pruned.

    Args:
        module: As it is before.
    """

    def __init__(self, module: nn.Module) -> None:
        parts: list[Any] = [part for part in module.modules() if _reads_all(part)]
        self.inputs = {part: torch.arange(part.weight.shape[1]) for part in parts}
        self.outputs = {part: torch.arange(part.weight.shape[0]) for part in parts}

    def note(self, group: Any) -> None:
        """Note what goes with channels that hang together, before they do."""
        for item in group:
            part, handler = item.dep.target.module, item.dep.handler
            for handlers, left in ((_IN, self.inputs), (_OUT, self.outputs)):
                if part in left and handler in handlers:
                    stays = torch.ones(len(left[part]), dtype=torch.bool)
                    stays[list(item.idxs)] = False
                    left[part] = left[part][stays]


def refit_channels(module: nn.Module, moments: Mapping[str, Moments], left: Widths) -> None:
    """Let what reads channels make up for those that have gone, in place.

    Args:
        module: Pruned.
        moments: Of what the parts of the network read before.
        left: What is left of it.
    """
    for name, each in moments.items():
        part: Any = module.get_submodule(name)
        inputs, outputs = left.inputs[part], left.outputs[part]
        before: Any = each.part
        if len(inputs) == before.weight.shape[1]:
            continue
        size = math.prod(before.weight.shape[2:])
        columns = (inputs[:, None] * size + torch.arange(size)).flatten()
        weight, shift = fold(each, columns.to(before.weight.device))
        with torch.no_grad():
            part.weight.copy_(weight[outputs].reshape(part.weight.shape))
            if part.bias is not None:
                part.bias.add_(shift[outputs].to(part.bias.dtype))


def recalibrate(module: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Take means and variances of batch normalizations anew, in place.

    Source: Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning",
    ECCV 2020.

    Args:
        module: Whose other parts stay as they are.
        batches: Inputs, with labels or without, all of one size.
    """
    norms = _normalizations(module)
    if not norms:
        return
    inputs = [inputs_of(batch) for batch in batches]
    rows = {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}
    num_rows = len(next(iter(rows.values())))
    parts = {name: each.chunk(max(1, num_rows // _ROWS)) for name, each in rows.items()}
    momenta = [each.momentum for each in norms]
    with watching(module, {}):
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # of all batches, each counting as much
        for place in range(len(next(iter(parts.values())))):
            module(**{name: each[place] for name, each in parts.items()})
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _normalizations(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats
    ]


def _normalized(
    module: nn.Module, parts: Iterable[nn.Module], batch: Mapping[str, Tensor]
) -> set[nn.Module]:
    """The parts whose outputs go straight into a batch normalization, which removes their means."""
    writers: dict[int, tuple[nn.Module, Tensor]] = {}  # what is kept alive keeps its identity
    found: set[nn.Module] = set()

    def written(part: nn.Module, _: Any, made: Tensor) -> None:
        writers[id(made)] = (part, made)

    def read(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if id(given[0]) in writers:
            found.add(writers[id(given[0])][0])

    norms: dict[nn.Module, Any] = dict.fromkeys(_normalizations(module), read)
    hooks = [part.register_forward_hook(written) for part in parts]
    try:
        with watching(module, norms):
            module(**{name: each[:2] for name, each in inputs_of(batch).items()})
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _reads_all(part: nn.Module) -> bool:
    """Whether each of its outputs is told from all of its inputs, by its weights alone."""
    return type(part).forward in _PLAIN and getattr(part, "groups", 1) == 1


def _read(part: Any, given: Tensor) -> Tensor:
    """(N, units): what a part reads at some places of some images."""
    if isinstance(part, nn.Linear):
        for axis in range(1, given.ndim - 1):
            given = _some(given, axis)
        return given.reshape(-1, given.shape[-1])
    mode = "constant" if part.padding_mode == "zeros" else part.padding_mode
    given = functional.pad(given, part._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, step, gap) in enumerate(
        zip(part.kernel_size, part.stride, part.dilation, strict=True), start=2
    ):
        given = given.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
        given = _some(given, axis)
    num_axes = len(part.kernel_size)
    places = range(2, 2 + num_axes)
    given = given.permute(0, *places, 1, *range(2 + num_axes, given.ndim))
    return given.reshape(math.prod(given.shape[: 1 + num_axes]), -1)


def _some(given: Tensor, axis: int) -> Tensor:
    """Some places along an axis, at even distances."""
    every = math.ceil(given.shape[axis] / _PLACES)
    return given[(slice(None),) * axis + (slice(every // 2, None, every),)]
