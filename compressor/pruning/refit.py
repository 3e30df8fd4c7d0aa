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

from compressor.pruning.moments import LayerMoments, Moments, head_groups
from compressor.pruning.slicing import Kept
from targets.encoder import encoder_layers

__all__ = ["fold", "refit"]


def refit(
    module: nn.Module,
    kept: Kept,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    moments: LayerMoments | None = None,
) -> nn.Module:
    """A copy in which the projections that read units need those that stay only.

    The units that go are still there: cut them afterwards.

    Args:
        module: A transformer whose layers are known; stays untouched.
        kept: What will stay.
        batches: Inputs, and labels, of which a decoder's padding is read.
        moments: What its layers read of them, where that is known.
    """
    fitted = copy.deepcopy(module)
    # Projection -> that of the copy, and what of its columns stays.
    cuts: dict[nn.Linear, tuple[nn.Linear, Tensor]] = {}
    for old, new, heads, neurons in zip(
        encoder_layers(module), encoder_layers(fitted), kept.heads, kept.ffn, strict=True
    ):
        channels = head_groups(old)[list(heads)].flatten()
        cuts[old.attention_output] = new.attention_output, channels
        units = torch.as_tensor(list(neurons), device=channels.device)
        cuts[old.ffn_output] = new.ffn_output, units
    cuts = {old: cut for old, cut in cuts.items() if len(cut[1]) < cut[0].in_features}
    for each in moments or LayerMoments(module, batches, list(cuts)):
        assert isinstance(each.part, nn.Linear)
        if each.part not in cuts:
            continue
        part, stays = cuts[each.part]
        weight, shift = fold(each, stays)
        with torch.no_grad():
            part.weight.zero_()
            part.weight[:, stays] = weight.to(part.weight.dtype)
            if part.bias is not None:
                part.bias.add_(shift.to(part.bias.dtype))
    return fitted


def fold(moments: Moments, stays: Tensor) -> tuple[Tensor, Tensor]:
    """What lets a projection tell what goes from what stays.

    Where the moments are centred the fit is around the means, which then need no units.

    Args:
        moments: Of what it reads.
        stays: (kept,) columns.

    Returns:
        Its weight, (out, kept), and what to add to its bias, (out,).
    """
    weight, mean = moments.weight, moments.mean
    goes = torch.ones(weight.shape[1], dtype=torch.bool, device=stays.device)
    goes[stays] = False
    kept, removed = weight[:, stays], weight[:, goes]
    if not moments.count:
        return kept, torch.zeros_like(kept[:, 0])
    covariance = moments.covariance
    told = torch.linalg.solve(covariance[stays][:, stays], covariance[stays][:, goes]).T
    # told: (gone, kept)
    return kept + removed @ told, removed @ (mean[goes] - told @ mean[stays])
