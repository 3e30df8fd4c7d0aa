"""How much each head, feed-forward neuron and hidden unit of an encoder matters.

All scores are non-negative, larger is more important. Scores of one kind of unit are comparable
between layers: magnitudes after division by their layer's mean, the others as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.errors import PassError
from compressor.pruning.moments import LayerMoments, Moments, head_groups
from compressor.pruning.tracing import all_trainable
from compressor.tasks.base import inputs_of
from targets.encoder import EncoderLayer, encoder_layers

if TYPE_CHECKING:
    from compressor.tasks import Task

__all__ = [
    "Importance",
    "Reader",
    "Scores",
    "errors_when_gone",
    "labelled_loss",
    "magnitude_scores",
    "random_scores",
    "second_order_scores",
    "taylor_scores",
]

Importance = Literal["taylor", "second-order", "magnitude", "random"]
Array = NDArray[np.float64]
_REMOVALS = 64
"""Of the units of a layer, how often the costs of all are worked out anew."""


@dataclass(frozen=True)
class Scores:
    """One score a unit.

    Attributes:
        heads: One (num_heads,) array a layer.
        ffn: One (ffn_width,) array a layer.
        hidden: (hidden_size,)
    """

    heads: tuple[Array, ...]
    ffn: tuple[Array, ...]
    hidden: Array

    def of_layers(self, layers: Sequence[int]) -> Scores:
        """The scores of some layers."""
        return Scores(
            heads=tuple(self.heads[layer] for layer in layers),
            ffn=tuple(self.ffn[layer] for layer in layers),
            hidden=self.hidden,
        )


def magnitude_scores(module: nn.Module) -> Scores:
    """Mean L2 norm of the weights that write and read a unit (Li et al. 2017, arXiv 1608.08710)."""
    layers = encoder_layers(module)
    heads, ffn = [], []
    for layer in layers:
        parts = [layer.query.weight, layer.key.weight, layer.value.weight]
        parts.append(layer.attention_output.weight.T)
        norms = [_by_head(_row_norms(part), layer).mean(axis=1) for part in parts]
        heads.append(np.mean(norms, axis=0))
        neurons = [*(part.weight for part in layer.ffn_inputs), layer.ffn_output.weight.T]
        ffn.append(np.sum([_row_norms(part) for part in neurons], axis=0))
    readers = [
        part.weight.T
        for layer in layers
        for part in (layer.query, layer.key, layer.value, *layer.ffn_inputs)
    ]
    writers = [
        part.weight for layer in layers for part in (layer.attention_output, layer.ffn_output)
    ]
    hidden = sum((_row_norms(weight) for weight in (*readers, *writers)), start=np.zeros(1))
    return Scores(
        heads=tuple(score / score.mean() for score in heads),
        ffn=tuple(score / score.mean() for score in ffn),
        hidden=hidden / hidden.mean(),
    )


def taylor_scores(
    module: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    task: Task,
    progress: Callable[[int], None] = lambda count: None,
) -> Scores:
    """First-order Taylor importance of gates (Molchanov et al. 2019, arXiv 1906.10771).

    A unit gets a gate of value 1 behind it; its score is the squared derivative of the loss by the
    gate, summed over batches. Closing the gate changes the loss by that derivative to first order.
    The derivatives need no gates: for a head or neuron it is the sum of weight times gradient over
    the columns of the projection that reads it; for a hidden unit, the same over scale and shift of
    the LayerNorms that write the residual stream. Squaring a batch, not a sum of batches, keeps
    batches of opposite sign from cancelling, which on a converged model they would.

    Args:
        module: Stays as it was: its gradients are not touched.
        batches: Inputs of the model, with ``labels``. Small batches give sharper scores.
        task: Says what of the outputs the labels judge.
        progress: Called with the number of batches done.

    Raises:
        PassError: A score is not finite.
    """
    layers = encoder_layers(module)
    hidden = np.zeros(layers[0].query.in_features)
    norms = [(each.weight, each.bias) for each in _stream_norms(module, len(hidden))]
    outputs = [part.weight for each in layers for part in (each.attention_output, each.ffn_output)]
    watched = [*outputs, *(tensor for pair in norms for tensor in pair)]
    heads = [np.zeros(layer.num_heads) for layer in layers]
    ffn = [np.zeros(layer.ffn_width) for layer in layers]
    with all_trainable(module):
        for count, batch in enumerate(batches, start=1):
            answers = module(**inputs_of(batch))[0]
            gradients = torch.autograd.grad(task.sensitivity(answers, batch), watched)
            products = [
                (tensor.detach() * gradient).double().numpy()
                for tensor, gradient in zip(watched, gradients, strict=True)
            ]
            for index, layer in enumerate(layers):
                channels = products[2 * index].sum(axis=0)  # (heads * queries * head_size,)
                heads[index] += np.square(_by_head(channels, layer).sum(axis=1))
                ffn[index] += np.square(products[2 * index + 1].sum(axis=0))
            for scale, shift in zip(
                products[len(outputs) :: 2], products[len(outputs) + 1 :: 2], strict=True
            ):
                hidden += np.square(scale + shift)
            progress(count)
    if not all(np.isfinite(each).all() for each in (*heads, *ffn, hidden)):
        raise PassError(
            "what the heads and neurons are worth cannot be told: a derivative of the loss is NaN "
            "or infinite",
            where="importance taylor",
            fix="check that the checkpoint gives finite answers, or use importance: magnitude",
        )
    return Scores(heads=tuple(heads), ffn=tuple(ffn), hidden=hidden)


def second_order_scores(
    module: nn.Module,
    moments: LayerMoments,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> Scores:
    """What of the output of its projection is lost for good when a unit goes, one after another.

    Those that stay are fitted to say what it has said, so that of two units that say the same one
    costs nothing (Hassibi and Stork, "Optimal Brain Surgeon", 1993; for whole structures Kurtic et
    al., "ZipLM", 2023). The unit that costs least goes, and the costs of the rest are worked out
    anew: a score is the error at which a unit goes, as a share of what is written of a token.
    Prune with :func:`compressor.pruning.refit.refit`, which is what the scores count on.

    Args:
        module: A transformer.
        moments: Of all of its layers.
        progress: Called with the number of projections done, two a layer.
    """
    layers = encoder_layers(module)
    heads: list[Array] = []
    ffn: list[Array] = []
    for count, each in enumerate(moments, start=1):
        layer = layers[(count - 1) // 2]
        if len(heads) == len(ffn):
            heads.append(_relative_errors(each, head_groups(layer)))
        else:
            neurons = torch.arange(layer.ffn_width, device=each.part.weight.device)
            ffn.append(_relative_errors(each, neurons[:, None]))
        progress(count)
    hidden = np.zeros(layers[0].query.in_features)  # no projection alone reads these
    return Scores(heads=tuple(heads), ffn=tuple(ffn), hidden=hidden)


def _relative_errors(moments: Moments, groups: Tensor) -> Array:
    """Where what is written of each token has a mean square of 1."""
    scale = moments.count / max(1, moments.num_tokens) / len(moments.weight)
    return errors_when_gone([Reader.of(moments, groups, scale=scale)])


class Reader:
    """A projection that reads units, and what it would write if some of them were gone."""

    def __init__(
        self, inverse: Tensor, weight: Tensor, groups: Tensor, rows: Tensor, scale: float
    ) -> None:
        """See :meth:`of`.

        Args:
            inverse: Of the covariance of the columns that may go, (all, all).
            weight: (out, all)
            groups: (read, size) the columns of each unit that it reads.
            rows: (units,) where in ``groups`` each unit is; -1 where it is not read.
            scale: What an error counts.
        """
        self.inverse = inverse
        self.weight = weight
        self.groups = groups
        self.rows = rows
        self.scale = scale

    @classmethod
    def of(
        cls,
        moments: Moments,
        groups: Tensor,
        *,
        rows: Tensor | None = None,
        scale: float | None = None,
    ) -> Reader:
        """The reader whose inputs these moments are of.

        Columns that are in no group are no help: what reads them may lose them as well.

        Args:
            moments: Of what it reads.
            groups: As above, of all of its columns.
            rows: As above; by default every unit is read.
            scale: As above; by default errors are shares of the variance of what it writes.
        """
        if rows is None:
            rows = torch.arange(len(groups), device=groups.device)
        covariance, weight = moments.covariance, moments.weight
        if scale is None:
            variance = float(((weight @ covariance) * weight).sum())
            scale = 1 / max(variance, torch.finfo(torch.float64).tiny)
        columns = groups.flatten()
        inverse = torch.linalg.inv(covariance[columns][:, columns])
        return cls(inverse, weight[:, columns], _in_a_row(groups), rows, scale)

    def costs(self, units: Tensor) -> Tensor:
        """The error that is added if a unit goes alone, and the rest make up for it.  # (units,)"""
        rows = self.rows[units]
        read = rows >= 0
        groups = self.groups[rows[read]]
        among = torch.linalg.inv(self.inverse[groups[:, :, None], groups[:, None, :]])
        weight = self.weight[:, groups]  # (out, read, size)
        costs = torch.zeros(len(units), dtype=weight.dtype, device=weight.device)
        costs[read] = self.scale * torch.einsum("ous,ust,out->u", weight, among, weight)
        return costs

    def among(self, units: Tensor) -> Reader:
        """Of some units alone, which are numbered anew."""
        rows = self.rows[units]
        read = rows >= 0
        groups = self.groups[rows[read]]
        columns = groups.flatten()
        near = self.inverse[columns][:, columns]
        anew = torch.where(read, read.cumsum(dim=0) - 1, -1)
        return Reader(near, self.weight[:, columns], _in_a_row(groups), anew, self.scale)

    def remove(self, units: Tensor) -> None:
        """Let units go: the rest make up for them."""
        rows = self.rows[units]
        gone = self.groups[rows[rows >= 0]].flatten()
        told = torch.linalg.solve(self.inverse[gone][:, gone], self.inverse[gone])  # (gone, all)
        self.inverse = self.inverse - self.inverse[:, gone] @ told
        self.weight = self.weight - self.weight[:, gone] @ told


def _in_a_row(groups: Tensor) -> Tensor:
    """The same numbers of groups and of their columns, which lie one after another."""
    return torch.arange(groups.numel(), device=groups.device).reshape(groups.shape)


def errors_when_gone(readers: Sequence[Reader]) -> Array:
    """The error when each unit has gone, with all that went before it.

    Args:
        readers: All that read some of the same units; they are used up.

    Returns:
        (units,) in the order of the units, not of their going.
    """
    num_units, device = len(readers[0].rows), readers[0].rows.device
    errors = np.zeros(num_units)
    left = torch.arange(num_units, device=device)
    at_once = max(1, num_units // _REMOVALS)
    lost = 0.0
    while len(left):
        costs = _costs(readers, left)
        cheapest = costs.argsort()
        limit = float(costs[cheapest[at_once]]) if at_once < len(left) else math.inf
        candidates = left[cheapest[:at_once]]
        # Among the cheapest the first that goes makes those dearer that it could be told from.
        near = [each.among(candidates) for each in readers]
        staying = torch.arange(len(candidates), device=device)
        going: list[int] = []
        while len(staying):
            costs = _costs(near, staying)
            least = int(costs.argmin())
            if going and float(costs[least]) > limit:
                break
            place = staying[least]
            staying = staying[staying != place]
            going.append(int(place))
            lost += float(costs[least])
            errors[int(candidates[place])] = lost
            for each in near:
                each.remove(place[None])
        gone = candidates[going]
        for each in readers:
            each.remove(gone)
        left = left[~torch.isin(left, gone)]
    return errors


def _costs(readers: Sequence[Reader], units: Tensor) -> Tensor:
    return torch.stack([each.costs(units) for each in readers]).sum(dim=0)


def random_scores(module: nn.Module, seed: int) -> Scores:
    """Scores drawn uniformly: the control that any other importance has to beat."""
    generator = np.random.default_rng(seed)
    layers = encoder_layers(module)
    return Scores(
        heads=tuple(generator.random(layer.num_heads) for layer in layers),
        ffn=tuple(generator.random(layer.ffn_width) for layer in layers),
        hidden=generator.random(layers[0].query.in_features),
    )


def labelled_loss(
    module: nn.Module,
    batch: Mapping[str, Tensor],
    task: Task,
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """The loss of what the labels judge, such as cross-entropy in nats, a scalar.

    Given labels, transformers would compute it too, but write into the config.

    Args:
        module: A Hugging Face model.
        batch: Its inputs, with ``labels``.
        task: Says what of the outputs the labels judge.
        reduction: Over all that is judged.
    """
    total, count = task.loss(module(**inputs_of(batch))[0], batch)
    return total if reduction == "sum" else total / (count or 1)


def _stream_norms(module: nn.Module, hidden_size: int) -> list[nn.LayerNorm]:
    """The LayerNorms that write the residual stream: those as wide as it."""
    parts = (part for part in module.modules() if isinstance(part, nn.LayerNorm))
    return [part for part in parts if part.normalized_shape == (hidden_size,)]


def _row_norms(weight: Tensor) -> Array:
    norms: Array = weight.detach().double().norm(dim=1).numpy()
    return norms


def _by_head(channels: Array, layer: EncoderLayer) -> Array:
    return channels.reshape(layer.num_heads, -1)  # (heads, channels of a head)
