"""Keep some layers of an encoder, and pair the layers of a student with those of its teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from compressor.architecture import MID_POSITIONS, TAPPED_LAYERS
from compressor.errors import PassError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "check_layers",
    "first_layers",
    "layer_map",
    "pair_layers",
    "require_layers",
    "select_layers",
    "spread_layers",
]


_RELATIVE = "has_relative_attention_bias"
_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types", "layers_block_type")
"""Settings of a config that have an entry for each layer."""


def check_layers(keep: Sequence[int], num_layers: int) -> None:
    """Check that ``keep`` names existing layers, in ascending order, each once, at least one.

    Raises:
        PassError: It does not.
    """
    require_layers(num_layers)
    listed = list(keep)
    unknown = [layer for layer in listed if not 0 <= layer < num_layers]
    if not listed or unknown or listed != sorted(set(listed)):
        raise PassError(
            f"the model has no layers {unknown}" if unknown else "the layers to keep are not valid",
            where=f"an encoder of {num_layers} layers",
            given=f"keep {listed}",
            fix=f"name layers from 0 to {num_layers - 1} in ascending order, each once",
        )


def require_layers(num_layers: int) -> None:
    """Refuse a network without layers of an encoder, such as one of convolutions.

    Raises:
        PassError: It is one.
    """
    if not num_layers:
        raise PassError(
            "the model is not a transformer encoder: it has no layers to choose from",
            given="0 layers",
            fix="leave the settings about layers out, or the pass",
        )


def spread_layers(num_keep: int, num_layers: int) -> tuple[int, ...]:
    """Layers spread evenly, the last among them: 3 of 6 are 1, 3, 5."""
    return tuple((number + 1) * num_layers // num_keep - 1 for number in range(num_keep))


def first_layers(num_keep: int) -> tuple[int, ...]:
    """The lowest layers."""
    return tuple(range(num_keep))


def layer_map(num_student: int, num_teacher: int) -> tuple[tuple[int, int], ...]:
    """Pairs (student layer, teacher layer) for distillation, from 0; the last match each other.

    A student layer learns from the last of the teacher layers that it stands for.
    """
    if num_student <= num_teacher:
        return tuple(enumerate(spread_layers(num_student, num_teacher)))
    spread = spread_layers(num_teacher, num_student)
    return tuple((student, teacher) for teacher, student in enumerate(spread))


def pair_layers(student: nn.Module, teacher: nn.Module) -> tuple[tuple[int, int], ...]:
    """The pairs of :func:`layer_map`, those of an encoder and those of a decoder after it apart."""
    from targets.encoder import layer_stacks

    pairs: list[tuple[int, int]] = []
    ours = theirs = 0
    for own, other in zip(layer_stacks(student), layer_stacks(teacher), strict=False):
        pairs += [(ours + here, theirs + there) for here, there in layer_map(len(own), len(other))]
        ours, theirs = ours + len(own), theirs + len(other)
    return tuple(pairs)


def select_layers(module: nn.Module, keep: Sequence[int]) -> nn.Module:
    """A copy of a transformer with the layers ``keep`` only; nothing is shared with ``module``.

    Args:
        module: Stays as it is.
        keep: Numbers of layers, from 0; those of a decoder follow those of the encoder before it.

    Raises:
        PassError: The module is no encoder, or ``keep`` does not name layers of it.
    """
    from torch import nn

    from targets.checkpoint import update_config
    from targets.encoder import layer_stacks
    from targets.networks.token_merging import keep_last

    selected = copy.deepcopy(module)
    stacks = layer_stacks(selected)
    if not stacks:
        raise PassError(
            "the model is not a BERT-like encoder: its layers were not found",
            where=type(module).__name__,
            fix="leave the pass out",
        )
    num_layers = sum(map(len, stacks))
    check_layers(keep, num_layers)
    tapped = getattr(selected.config, TAPPED_LAYERS, None)
    if tapped and len(keep) < num_layers:
        raise PassError(
            "other parts of the network read layers by index, so none can be dropped",
            where=type(module).__name__,
            given=f"{TAPPED_LAYERS} {', '.join(map(str, tapped))}",
            fix="leave the pass out, or its settings about layers",
        )
    first = 0
    for layers in stacks:
        here = [number - first for number in keep if first <= number < first + len(layers)]
        first += len(layers)
        kept = nn.ModuleList(layers[number] for number in here)
        for number, layer in enumerate(kept):
            _renumber(layer, number)
        _move_positions(layers[0], kept[0])
        for parent in list(selected.modules()):
            for name, child in parent.named_children():
                if child is layers:
                    setattr(parent, name, kept)
    for part in selected.modules():
        table = getattr(part, MID_POSITIONS, None)
        if table is not None:
            setattr(part, MID_POSITIONS, nn.Parameter(table.detach()[list(keep[:-1])]))
    config = cast("Any", selected.config)
    for name in _LISTS:
        of_layers = getattr(config, name, None)
        if of_layers:
            setattr(config, name, [of_layers[layer] for layer in keep])
    keep_last(selected)
    update_config(selected)
    return selected


def _move_positions(first: nn.Module, now_first: nn.Module) -> None:
    """Give a layer the relative positions that the first of a stack reads for all of them (T5)."""
    ours, theirs = (
        next((part for part in layer.modules() if hasattr(part, _RELATIVE)), None)
        for layer in (now_first, first)
    )
    if ours is None or theirs is None or not getattr(theirs, _RELATIVE):
        return
    if not getattr(ours, _RELATIVE):
        setattr(ours, _RELATIVE, True)
        ours.relative_attention_bias = theirs.relative_attention_bias


def _renumber(layer: nn.Module, number: int) -> None:
    for part in layer.modules():
        if getattr(part, "layer_idx", None) is not None:
            part.layer_idx = number  # type: ignore[assignment]
