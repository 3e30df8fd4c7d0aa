"""What a checkpoint is, where its weights and its work are, and what each pass can do with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.architecture import Architecture
from compressor.passes import available_passes
from compressor.tasks import get_task, infer_task
from targets.encoder import SIDES, encoder_layers, layer_stacks

if TYPE_CHECKING:
    from torch import nn

    from compressor.model import TorchModel

__all__ = ["Inspection", "Part", "inspect_checkpoint"]


@dataclass(frozen=True)
class Part:
    """One part of a network.

    Attributes:
        name: Such as ``attention``.
        num_parameters: Its weights, shared ones counted where they come first.
        flops: Of its matrix products and convolutions for one input, a multiplication and an
            addition counted as two.
    """

    name: str
    num_parameters: int
    flops: int


@dataclass(frozen=True)
class Inspection:
    """What is known of a checkpoint.

    Attributes:
        architecture: Its sizes.
        task: What it does, or could do with another head.
        has_head: Whether it has the head of the task.
        input: The input that the work was counted for.
        parts: In the order of the network.
        passes: Pass -> why it cannot be used on this model; None where it can.
    """

    architecture: Architecture
    task: str
    has_head: bool
    input: str
    parts: tuple[Part, ...]
    passes: Mapping[str, str | None]


def inspect_checkpoint(
    folder: Path, *, task: str | None = None, length: int | None = None
) -> Inspection:
    """Load a checkpoint and look at it; runs it once on random input.

    Args:
        folder: A Hugging Face folder, with or without a head.
        task: Name of the task; the default is what the model reads.
        length: Of the input, in the unit of its kind; the default is what is usual.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    name = task or infer_task(folder)
    found = get_task(name)
    model, has_head = _load(folder, name, length)
    architecture = found_layers = Architecture.of(model.module)
    is_known = encoder_layers(model.module) if architecture.layers else _convolves(model.module)
    if not is_known:
        found_layers = replace(architecture, layers=(), has_unknown_layers=True)
    preprocessing = found.preprocessing(folder, model.max_length)
    size = min(length or preprocessing.usual_length, preprocessing.longest)
    article = "an" if preprocessing.noun[0] in "aeiou" else "a"
    unit = f"{article} {preprocessing.noun}" + (f" of {size} {preprocessing.unit}" if size else "")
    return Inspection(
        architecture=architecture,
        task=name,
        has_head=has_head,
        input=unit,
        parts=_parts(model, _feeds(model, preprocessing, size)),
        passes={each: cls.unsuited(found_layers) for each, cls in available_passes().items()},
    )


def _convolves(module: nn.Module) -> bool:
    """Whether a network has convolutions; one with neither them nor attention cannot be cut."""
    from torch import nn

    return any(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in module.modules())


def _load(folder: Path, task: str, length: int | None) -> tuple[TorchModel, bool]:
    from compressor.checkpoint import check_checkpoint
    from compressor.errors import CheckpointError
    from compressor.training.finetuning import new_classifier

    found = get_task(task)
    try:
        check_checkpoint(folder, head=found.heads_in(folder), kind=found.kind)
    except CheckpointError:
        return new_classifier(folder, ("0", "1"), task=task), False
    return found.load_checkpoint(folder, max_length=length), True


def _feeds(model: TorchModel, preprocessing: Any, size: int) -> dict[str, Any]:
    import numpy as np
    import torch

    num_ids = getattr(model.module.config, "vocab_size", 1)
    random = np.random.default_rng(0)
    rows = preprocessing.synthetic((size,), num_ids=num_ids, random=random)
    feeds = preprocessing.feeds(rows, get_task(model.task).signature(model))
    return {name: torch.from_numpy(array) for name, array in feeds.items()}


def _parts(model: TorchModel, feeds: Mapping[str, Any]) -> tuple[Part, ...]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:  # the counter asks parameters for their derivatives
        model.module(**feeds)
    names = _names(model.module)
    parameters: dict[str, int] = defaultdict(int)
    work: dict[str, int] = defaultdict(int)
    for name, each in model.module.named_parameters():
        parameters[_part(name, names)] += each.numel()
    root = type(model.module).__name__
    counted = {
        name.removeprefix(f"{root}."): sum(by_kind.values())
        for name, by_kind in counter.get_flop_counts().items()
        if name not in ("Global", root)
    }
    for name, total in counted.items():
        work[_part(name, names)] += total
        within = _within(name, counted)
        if within is not None:  # what its parts do is theirs
            work[_part(within, names)] -= total
    # A head that shares the table of the embeddings has work, and no weights of its own.
    shown = dict.fromkeys([*parameters, *(name for name, each in work.items() if each)])
    return tuple(Part(name, parameters.get(name, 0), work.get(name, 0)) for name in shown)


def _within(name: str, counted: Collection[str]) -> str | None:
    """The smallest of the counted modules that a module is a part of."""
    while name:
        name = name.rpartition(".")[0]
        if name in counted:
            return name
    return None


@dataclass(frozen=True)
class _Names:
    """Where a stack of layers lies.

    Attributes:
        layers: Beginning of the names of its modules.
        attentions: Beginnings of the names of the attentions, inside of a layer.
        side: What stands before the names of its parts: of which of two stacks they are.
    """

    layers: str
    attentions: tuple[str, ...]
    side: str


def _names(module: nn.Module) -> tuple[_Names, ...]:
    stacks = layer_stacks(module)
    sides = [f"{side} " for side in SIDES] if len(stacks) > 1 else [""]
    found = []
    for side, layers in zip(sides, stacks, strict=False):
        path = next(name for name, each in module.named_modules() if each is layers)
        attention = encoder_layers(module)[0].attention
        inner = (
            name for name, each in layers[0].named_modules() if isinstance(each, type(attention))
        )
        attentions = tuple(name.rpartition(".")[0] or name for name in inner)
        found.append(_Names(path + ".", attentions, side))
    return tuple(found)


def _part(name: str, stacks: tuple[_Names, ...]) -> str:
    """The part that a weight or a module belongs to."""
    for names in stacks:
        if name.startswith(names.layers):
            rest = name.removeprefix(names.layers).partition(".")[2]
            if any(f"{rest}.".startswith(f"{each}.") for each in names.attentions):
                return f"{names.side}attention"
            first = rest.partition(".")[0]
            return names.side + ("norms" if "norm" in first.lower() else "feed-forward")
    pieces = name.split(".")
    return pieces[1] if len(pieces) > 2 else pieces[0]
