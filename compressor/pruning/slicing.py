"""Cut heads, feed-forward neurons and hidden units out of an encoder.

torch-pruning traces which tensors hang together; what was cut is then checked against what was
asked, because its head pruning can skip layers without a word.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compressor.errors import PassError
from targets.checkpoint import update_config
from targets.encoder import EncoderLayer, encoder_layers, set_head_counts

__all__ = ["Kept", "check_hidden", "keep_units", "quiet_tracing"]


class Kept:
    """Units that stay.

    Args:
        heads: Kept head indices, one sequence a layer.
        ffn: Kept neuron indices, one sequence a layer.
        hidden: Kept hidden units, or None to keep all.
    """

    def __init__(
        self,
        heads: Sequence[Sequence[int]],
        ffn: Sequence[Sequence[int]],
        hidden: Sequence[int] | None = None,
    ) -> None:
        self.heads = tuple(tuple(layer) for layer in heads)
        self.ffn = tuple(tuple(layer) for layer in ffn)
        self.hidden = None if hidden is None else tuple(hidden)


def check_hidden(module: nn.Module) -> None:
    """Check that the hidden units of a model can be cut.

    Raises:
        PassError: They cannot.
    """
    computed = [name for name, part in module.named_modules() if parametrize.is_parametrized(part)]
    if computed:
        raise PassError(
            "the hidden units of this model cannot be pruned: weights that read them are computed "
            "from others",
            where=f"{type(module).__name__}, {computed[0]}",
            fix="leave hidden out; heads and ffn can be pruned",
        )


def keep_units(module: nn.Module, kept: Kept, example: Mapping[str, Tensor]) -> nn.Module:
    """A copy of an encoder that has the kept units only; nothing is shared with ``module``.

    Args:
        module: A BERT-like encoder.
        kept: What stays.
        example: Inputs for tracing, without labels.

    Raises:
        PassError: The copy does not have the sizes that were asked for.
    """
    pruned = copy.deepcopy(module)
    layers = encoder_layers(pruned)
    head_size = layers[0].head_size
    flags = {name: each.requires_grad for name, each in pruned.named_parameters()}
    training = pruned.training
    pruned.requires_grad_(True)  # a frozen parameter is invisible to the tracing
    graph = torch_pruning.DependencyGraph()
    with torch.enable_grad(), quiet_tracing():
        graph.build_dependency(
            pruned,
            dict(example),
            output_transform=lambda output: output[0].sum(),
        )
    for layer, heads, neurons in zip(layers, kept.heads, kept.ffn, strict=True):
        gone = [
            channel
            for head in _others(heads, layer.num_heads)
            for channel in range(head * head_size, (head + 1) * head_size)
        ]
        _cut(graph, layer.query, gone)
        _cut(graph, layer.ffn_input, _others(neurons, layer.ffn_width))
    if kept.hidden is not None:
        root = layers[0].ffn_output
        _cut(graph, root, _others(kept.hidden, root.out_features))
    for name, parameter in pruned.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(flags[name])
    pruned.train(training)
    set_head_counts(pruned, head_size)
    pruned.tie_weights()  # type: ignore[operator]
    update_config(pruned)
    _check_sizes(layers, kept, head_size)
    return pruned


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Keep torch-pruning from warning of parameters in no layer: no cut touches them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        yield


def _others(kept: Sequence[int], count: int) -> list[int]:
    staying = set(kept)
    return [unit for unit in range(count) if unit not in staying]


def _cut(graph: torch_pruning.DependencyGraph, root: nn.Linear, channels: list[int]) -> None:
    if channels:
        graph.get_pruning_group(root, torch_pruning.prune_linear_out_channels, channels).prune()


def _check_sizes(layers: tuple[EncoderLayer, ...], kept: Kept, head_size: int) -> None:
    hidden = layers[0].query.in_features if kept.hidden is None else len(kept.hidden)
    for number, (layer, heads, neurons) in enumerate(
        zip(layers, kept.heads, kept.ffn, strict=True)
    ):
        width = len(heads) * head_size
        expected = {
            "query": (width, hidden),
            "key": (width, hidden),
            "value": (width, hidden),
            "attention_output": (hidden, width),
            "ffn_input": (len(neurons), hidden),
            "ffn_output": (hidden, len(neurons)),
        }
        for name, shape in expected.items():
            found = tuple(getattr(layer, name).weight.shape)
            if found != shape:
                raise PassError(
                    "pruning left a layer with other sizes than asked for",
                    where=f"layer {number}, {name}",
                    given=f"{list(found)} instead of {list(shape)}",
                    fix="pruning does not know this kind of model; leave the pass out",
                )
