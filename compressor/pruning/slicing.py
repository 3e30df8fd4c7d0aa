"""Cut heads, feed-forward neurons and hidden units out of a transformer.

Heads and neurons hang on the projections of their layer alone. Hidden units hang on tensors all
over the network: torch-pruning traces which; it couples queries and keys one to one, which is wrong
where several queries share a key. What was cut is then checked against what was asked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compressor.errors import PassError
from compressor.pruning.tracing import all_trainable, quiet_tracing
from targets.checkpoint import update_config
from targets.encoder import EncoderLayer, encoder_layers, set_head_counts

__all__ = ["Kept", "check_hidden", "keep_units"]


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
    """A copy of a transformer that has the kept units only; nothing is shared with ``module``.

    Args:
        module: A transformer whose layers are known.
        kept: What stays.
        example: Inputs for tracing, without labels.

    Raises:
        PassError: The copy does not have the sizes that were asked for.
    """
    pruned = copy.deepcopy(module)
    layers = encoder_layers(pruned)
    head_size = layers[0].head_size
    with all_trainable(pruned):
        for layer, heads, neurons in zip(layers, kept.heads, kept.ffn, strict=True):
            _keep_heads(layer, heads)
            _keep_neurons(layer, neurons)
        set_head_counts(pruned, head_size)
        if kept.hidden is not None:
            _keep_hidden(pruned, layers[0].ffn_output, kept.hidden, example)
    pruned.zero_grad(set_to_none=True)
    pruned.tie_weights(recompute_mapping=False)  # type: ignore[operator]
    update_config(pruned)
    _check_sizes(layers, kept, head_size)
    return pruned


def _keep_heads(layer: EncoderLayer, heads: Sequence[int]) -> None:
    keys = _channels(heads, layer.head_size)
    queries = _channels(heads, layer.head_size * layer.queries_per_head)
    _keep_rows(layer.query, queries)
    _keep_rows(layer.key, keys)
    _keep_rows(layer.value, keys)
    _keep_columns(layer.attention_output, queries)


def _keep_neurons(layer: EncoderLayer, neurons: Sequence[int]) -> None:
    for part in layer.ffn_inputs:
        _keep_rows(part, neurons)
    _keep_columns(layer.ffn_output, neurons)


def _channels(heads: Sequence[int], width: int) -> list[int]:
    return [channel for head in heads for channel in range(head * width, (head + 1) * width)]


def _keep_rows(part: nn.Linear, rows: Sequence[int]) -> None:
    part.weight = nn.Parameter(part.weight.detach()[list(rows)])
    if part.bias is not None:
        part.bias = nn.Parameter(part.bias.detach()[list(rows)])
    part.out_features = len(rows)


def _keep_columns(part: nn.Linear, columns: Sequence[int]) -> None:
    part.weight = nn.Parameter(part.weight.detach()[:, list(columns)])
    part.in_features = len(columns)


def _keep_hidden(
    module: nn.Module, root: nn.Linear, kept: Sequence[int], example: Mapping[str, Tensor]
) -> None:
    """Cut the residual stream, which ``root`` writes, in place."""
    staying = set(kept)
    gone = [unit for unit in range(root.out_features) if unit not in staying]
    graph = torch_pruning.DependencyGraph()
    with torch.enable_grad(), quiet_tracing():
        graph.build_dependency(
            module, dict(example), output_transform=lambda output: output.logits.sum()
        )
    if gone:
        graph.get_pruning_group(root, torch_pruning.prune_linear_out_channels, gone).prune()


def _check_sizes(layers: tuple[EncoderLayer, ...], kept: Kept, head_size: int) -> None:
    hidden = layers[0].query.in_features if kept.hidden is None else len(kept.hidden)
    for number, (layer, heads, neurons) in enumerate(
        zip(layers, kept.heads, kept.ffn, strict=True)
    ):
        width = len(heads) * head_size
        queries = width * layer.queries_per_head
        expected = {
            "query": (queries, hidden),
            "key": (width, hidden),
            "value": (width, hidden),
            "attention_output": (hidden, queries),
            "ffn_input": (len(neurons), hidden),
            "ffn_output": (hidden, len(neurons)),
        }
        for name, shape in expected.items():
            found = tuple(getattr(layer, name).weight.shape)
            if found != shape:
                raise PassError(
                    "pruning left a layer with the wrong sizes",
                    where=f"layer {number}, {name}",
                    given=f"{list(found)} instead of {list(shape)}",
                    fix="leave the pass out: this kind of model is not supported",
                )
