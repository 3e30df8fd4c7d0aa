"""The losses of knowledge distillation, as functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from compressor import distributed

__all__ = ["global_mean", "hidden_mse", "logits_kl", "relation_kl", "token_mask"]

_CHUNK = 2**23
"""Logits whose probabilities are computed at once, and again for their gradients."""
_MASKED = -1e9  # finite: a row of -inf alone would give NaN


def global_mean(total: Tensor, count: Tensor | int) -> Tensor:
    """The mean over the batch of all processes, of which each sees its part.

    Args:
        total: Sum over the part of this process, a scalar.
        count: How many it is a sum of; 0 where this process has no part.

    Returns:
        A scalar whose mean over the processes is the sum of all totals over the sum of all counts;
        they average the gradients, too. In one process ``total / count``.
    """
    counts = torch.as_tensor(count, dtype=total.dtype, device=total.device)
    processes = distributed.size()
    if processes > 1:
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
        total = total * processes
    return total / counts.clamp(min=1)


def logits_kl(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the student's classes from the teacher's.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015. Multiplied by
    the squared temperature, so that the gradients do not fade as it grows.

    Args:
        student: (N, classes) logits.
        teacher: (N, classes) logits.
        temperature: Above 1 softens both distributions.

    Returns:
        Mean over the rows, a scalar in nats.
    """
    rows = max(1, _CHUNK // student.shape[-1])
    if len(student) <= rows:
        divergence = _kl_sum(student, teacher, temperature)
    else:  # with a class a token of a vocabulary, the probabilities of all rows would be too many
        parts = zip(torch.split(student, rows), torch.split(teacher, rows), strict=True)
        sums = [
            checkpoint(_kl_sum, ours, theirs, temperature, use_reentrant=False)
            for ours, theirs in parts
        ]
        divergence = torch.stack(sums).sum()
    return global_mean(divergence, len(student)) * temperature**2


def _kl_sum(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )


def token_mask(mask: Tensor | None, states: Tensor) -> Tensor:
    """Which of the states are no padding.

    Args:
        mask: (N, L) of the inputs, or None where they have no padding.
        states: (N, L', d) of a layer.

    Returns:
        (N, L'): the mask where the layer has a state for each input, else all 1.
    """
    if mask is not None and mask.shape == states.shape[:2]:
        return mask
    return torch.ones(states.shape[:2], dtype=torch.long, device=states.device)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of hidden states over the tokens that are not padding.

    Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020, section 3.1.
    Where the widths differ the caller projects the student's states first.

    Args:
        student: (N, L, d) hidden states.
        teacher: (N, L, d) hidden states.
        mask: (N, L), 1 for a token and 0 for padding.

    Returns:
        A scalar.
    """
    weights = mask.to(student.dtype)
    squares = (student - teacher).square().mean(dim=-1)  # (N, L)
    return global_mean((squares * weights).sum(), weights.sum())


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, *, num_heads: int) -> Tensor:
    """Kullback-Leibler divergence between the token-to-token relations of two projections.

    Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
    Pretrained Transformers", 2021. Queries, keys or values are cut anew into relation heads, so
    the two models need neither the same width nor the same number of attention heads.

    Args:
        student: (N, L, d) queries, keys or values; ``num_heads`` divides d.
        teacher: (N, L, D) of the same kind; ``num_heads`` divides D.
        mask: (N, L), 1 for a token and 0 for padding.
        num_heads: Number of relation heads.

    Returns:
        Mean over heads and tokens that are not padding, a scalar in nats.
    """
    target = _log_relations(teacher, mask, num_heads)
    divergence = functional.kl_div(
        _log_relations(student, mask, num_heads), target, reduction="none", log_target=True
    ).sum(dim=-1)  # (N, heads, L)
    weights = mask.to(divergence.dtype)[:, None, :]
    return global_mean((divergence * weights).sum(), weights.sum() * num_heads)


def _log_relations(states: Tensor, mask: Tensor, num_heads: int) -> Tensor:
    num_rows, length, width = states.shape
    head_size = width // num_heads
    heads = states.reshape(num_rows, length, num_heads, head_size).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2) / head_size**0.5  # (N, heads, L, L)
    scores = scores.masked_fill(mask[:, None, None, :] == 0, _MASKED)
    return torch.log_softmax(scores.float(), dim=-1)
