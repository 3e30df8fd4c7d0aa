"""Least-squares reconstruction: let the units that stay say what those that go would have said.

Attention heads say alike things, and so do neurons: what one gives can be told, in part, from what
the others give, by linear least squares on some data (He et al., "Channel Pruning for Accelerating
Very Deep Neural Networks", ICCV 2017). It costs one pass over the data, and no training. Errors are
relative to what is written of a token, where the paper counts all alike; see
:class:`compressor.pruning.moments.Moments`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compressor.pruning.moments import Moments, gather_moments, head_groups
from compressor.pruning.slicing import Kept
from targets.encoder import encoder_layers

__all__ = ["refit"]


def refit(module: nn.Module, kept: Kept, batches: Sequence[Mapping[str, Tensor]]) -> nn.Module:
    """A copy in which the projections that read units need those that stay only.

    The units that go are still there: cut them afterwards.

    Args:
        module: A transformer whose layers are known; stays untouched.
        kept: What will stay.
        batches: Inputs, and labels, of which a decoder's padding is read.
    """
    fitted = copy.deepcopy(module)
    cuts: list[tuple[nn.Linear, nn.Linear, Tensor]] = []  # of the original, of the copy; what stays
    for old, new, heads, neurons in zip(
        encoder_layers(module), encoder_layers(fitted), kept.heads, kept.ffn, strict=True
    ):
        channels = head_groups(old)[list(heads)].flatten()
        cuts.append((old.attention_output, new.attention_output, channels))
        units = torch.as_tensor(list(neurons), device=channels.device)
        cuts.append((old.ffn_output, new.ffn_output, units))
    cuts = [each for each in cuts if len(each[2]) < each[0].in_features]
    parts = [old for old, _, _ in cuts]
    for moments, (_, part, stays) in zip(gather_moments(module, batches, parts), cuts, strict=True):
        _fold(moments, part, stays)
    return fitted


def _fold(moments: Moments, part: nn.Linear, stays: Tensor) -> None:
    """Let a projection tell what goes from what stays, in place.

    Where it has a bias the fit is around the means, which then need no units.

    Args:
        moments: Of what it reads.
        part: As it is in the copy.
        stays: (kept,) columns.
    """
    goes = torch.ones(part.in_features, dtype=torch.bool, device=stays.device)
    goes[stays] = False
    if not moments.count:
        return
    covariance, mean = moments.covariance, moments.mean
    told = torch.linalg.solve(covariance[stays][:, stays], covariance[stays][:, goes]).T
    removed = part.weight.detach()[:, goes].double()  # told: (gone, kept)
    with torch.no_grad():
        part.weight[:, stays] += (removed @ told).to(part.weight.dtype)
        if part.bias is not None:
            rest = removed @ (mean[goes] - told @ mean[stays])
            part.bias.add_(rest.to(part.bias.dtype))
        part.weight[:, goes] = 0.0
