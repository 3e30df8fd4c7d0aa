"""Prune a model to given sizes: score its units, choose, cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from compressor.architecture import Architecture
from compressor.data import Split
from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.pruning.importance import (
    Importance,
    Scores,
    magnitude_scores,
    random_scores,
    second_order_scores,
    taylor_scores,
)
from compressor.pruning.layers import select_layers
from compressor.pruning.moments import LayerMoments
from compressor.pruning.refit import refit
from compressor.pruning.selection import global_counts, top_units
from compressor.pruning.slicing import Kept, keep_units
from compressor.pruning.widths import head_multiple
from compressor.tasks import get_task
from compressor.tasks.base import inputs_of
from compressor.training.batches import collator, encode

__all__ = [
    "check_finite",
    "choose",
    "drop_least_missed",
    "mean_loss",
    "prune_to",
    "sample_batches",
]

Scope = Literal["layer", "global"]
Part = TypeVar("Part", int, str)

_LOSS_BATCH = 32
TAYLOR_BATCH = 8  # rows: smaller is sharper and slower
_EXAMPLES = 2  # rows that tracing and the check for finite outputs look at


def prune_to(
    model: TorchModel,
    target: Architecture,
    split: Split,
    *,
    layers: Sequence[int] | None = None,
    importance: Importance,
    scope: Scope,
    multiple: int,
    num_examples: int,
    refits: bool,
    seed: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> TorchModel:
    """A copy of ``model`` with the sizes of ``target``; ``model`` stays untouched.

    Args:
        model: A BERT-like encoder.
        target: The sizes; with scope "global" only the totals over all layers hold.
        split: Training data, for importance and to fit on.
        layers: Those that stay, one for each of the target, where others go; but for second-order
            importance units are scored while all are there.
        importance: How units are scored.
        scope: Whether units compete within their layer or with those of all layers.
        multiple: Widths are multiples of this.
        num_examples: Rows for Taylor and second-order importance, and to fit on.
        refits: Whether what stays is fitted to say what goes, see :mod:`compressor.pruning.refit`.
        seed: Of the choice of rows, and of random scores.
        progress: Called with the fraction done.
    """
    batches: Sequence[dict[str, Tensor]] = []
    if importance in ("taylor", "second-order") or refits:
        batches = sample_batches(
            model, split, num_rows=num_examples, batch_size=TAYLOR_BATCH, seed=seed
        )
    now = Architecture.of(model.module)
    module = model.module
    if layers is not None:
        module = select_layers(module, layers)
        now = replace(now, layers=tuple(now.layers[layer] for layer in layers))
    moments = None
    if importance == "second-order":  # of what the layers that stay read then
        moments, total = LayerMoments(module, batches), 2 * len(now.layers)
        scores = second_order_scores(
            module, moments, progress=lambda count: progress(count / total)
        )
    else:
        scores = _scores(model, importance, batches, seed, progress)
        scores = scores if layers is None else scores.of_layers(layers)
    kept = choose(scores, now, target, scope=scope, multiple=multiple)
    if refits:
        module = refit(module, kept, batches, moments=moments)
    return replace(model, module=keep_units(module, kept, _example(model, split)))


def _scores(
    model: TorchModel,
    importance: Importance,
    batches: Sequence[dict[str, Tensor]],
    seed: int,
    progress: Callable[[float], None],
) -> Scores:
    """Of the units of all layers, while all are there."""
    if importance == "taylor":
        return taylor_scores(
            model.module,
            batches,
            task=get_task(model.task),
            progress=lambda count: progress(count / len(batches)),
        )
    if importance == "magnitude":
        return magnitude_scores(model.module)
    return random_scores(model.module, seed)


def choose(
    scores: Scores, now: Architecture, target: Architecture, *, scope: Scope, multiple: int
) -> Kept:
    """Which units stay.

    Args:
        scores: Of the model as it is now.
        now: Its sizes.
        target: Sizes to reach; with scope "global" only the totals hold.
        scope: "layer" or "global".
        multiple: Widths are multiples of this.
    """
    heads = [layer.num_heads for layer in target.layers]
    ffn = [layer.ffn_width for layer in target.layers]
    if scope == "global":
        most = max(layer.num_heads for layer in now.layers)
        step = head_multiple(most, now.head_size, multiple)
        heads = list(global_counts(scores.heads, sum(heads), multiple=step))
        ffn = list(global_counts(scores.ffn, sum(ffn), multiple=multiple))
    narrower = target.hidden_size < now.hidden_size
    return Kept(
        heads=[top_units(each, count) for each, count in zip(scores.heads, heads, strict=True)],
        ffn=[top_units(each, count) for each, count in zip(scores.ffn, ffn, strict=True)],
        hidden=top_units(scores.hidden, target.hidden_size) if narrower else None,
    )


def sample_batches(
    model: TorchModel, split: Split, *, num_rows: int, batch_size: int, seed: int
) -> Sequence[dict[str, Tensor]]:
    """A seeded choice of rows as padded batches with labels, rows of like length together."""
    count = min(num_rows, len(split))
    chosen = np.random.default_rng(seed).choice(len(split), size=count, replace=False)
    rows = encode(model, split.take(chosen.tolist()))
    rows.sort(key=get_task(model.task).length)
    return _Batches(rows, collator(model), batch_size)


class _Batches(Sequence[dict[str, Tensor]]):
    """Rows in batches that are made when they are asked for: those of videos are large."""

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]],
        size: int,
    ) -> None:
        self.rows = rows
        self.collate = collate
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.collate(self.rows[place * self.size : (place + 1) * self.size])


def mean_loss(model: TorchModel, batches: Sequence[dict[str, Tensor]]) -> float:
    """Mean loss over all that is judged, such as cross-entropy in nats."""
    task = get_task(model.task)
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in batches:
            part, judged = task.loss(model.module(**inputs_of(batch))[0], batch)
            total, count = total + float(part), count + int(judged)
    return total / count


def drop_least_missed(
    model: TorchModel,
    parts: Sequence[Part],
    num_drops: int,
    with_parts: Callable[[tuple[Part, ...]], nn.Module],
    split: Split,
    *,
    num_rows: int,
    seed: int,
    progress: Callable[[tuple[Part, ...]], None],
) -> tuple[tuple[Part, ...], dict[str, float]]:
    """Drop parts one at a time, each time that whose absence raises the loss least.

    Args:
        model: All parts are in it.
        parts: Those that may go.
        num_drops: How many do, at least 1.
        with_parts: The network with some of them only.
        split: Data on which the loss is measured.
        num_rows: Rows of it.
        seed: Of their choice.
        progress: Called with those that are left.

    Returns:
        The parts that stay, in their order, and the losses before and after, in nats.
    """
    # All are read once a part and drop: they are made once.
    batches = [*sample_batches(model, split, num_rows=num_rows, batch_size=_LOSS_BATCH, seed=seed)]
    metrics = {"loss_before_nats": mean_loss(model, batches)}
    kept = tuple(parts)
    for _ in range(num_drops):
        losses = {}
        for part in kept:
            rest = tuple(each for each in kept if each != part)
            losses[rest] = mean_loss(replace(model, module=with_parts(rest)), batches)
        kept = min(losses, key=lambda rest: losses[rest])
        metrics["loss_after_nats"] = losses[kept]
        progress(kept)
    return kept, metrics


def check_finite(model: TorchModel, split: Split, name: str) -> None:
    """Check that the model's outputs on some rows are finite.

    Raises:
        PassError: They are not.
    """
    with torch.inference_mode():
        outputs = model.module(**_example(model, split))[0]
    if not torch.isfinite(outputs).all():
        raise PassError(
            f"{name} left a model whose outputs are not finite",
            where=type(model.module).__name__,
            given=outputs.flatten()[:4].tolist(),
            fix="prune less, or recover with a lower learning rate",
        )


def _example(model: TorchModel, split: Split) -> dict[str, Tensor]:
    return inputs_of(collator(model)(encode(model, split.take(range(min(_EXAMPLES, len(split)))))))
