"""Rows, their order and their padding: everything about a batch that needs no model.

An index that travels from the sampler to the rows is a *ticket*, ``epoch * num_rows + row``. What
becomes of a row is a pure function of its ticket, so a resumed training sees the same batches as
an undisturbed one, however many batches were fetched ahead when it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from compressor.data import Split
from compressor.model import TorchModel
from compressor.tasks import get_task
from compressor.tasks.base import LABELS
from targets.preprocessing import FIXED_SIZE

__all__ = ["EncodedRows", "LengthBucketSampler", "collator", "encode", "input_names", "lengths"]

_BUCKET_BATCHES = 50  # batches that are sorted by length together: little padding, much shuffling

Row = dict[str, Any]


def encode(model: TorchModel, split: Split) -> list[Row]:
    """Read a split; each row has what the task made of an input, and labels."""
    return get_task(model.task).encode_labelled(model, split)


def lengths(model: TorchModel, rows: Sequence[Row]) -> list[int]:
    """The length of each row; see `Task.length`. `FIXED_SIZE` where the model is given one size."""
    task = get_task(model.task)
    _, *free = task.signature(model).free_dimensions
    return list(map(task.length, rows)) if free else [FIXED_SIZE] * len(rows)


def input_names(model: TorchModel) -> tuple[str, ...]:
    """Names of the inputs of a model."""
    return tuple(spec.name for spec in get_task(model.task).signature(model).inputs)


class EncodedRows(Dataset[Row]):
    """Encoded rows by ticket.

    Args:
        rows: One dict a row, with what the task made of an input, and ``labels``.
        lengths: Of each row; see `Task.length`.
        transform: Makes the row of a ticket out of (row, row index, epoch).
    """

    def __init__(
        self,
        rows: Sequence[Row],
        lengths: Sequence[int],
        transform: Callable[[Row, int, int], Row] | None = None,
    ) -> None:
        self.rows = rows
        self.lengths = lengths
        self.transform = transform

    def by_length(self) -> EncodedRows:
        """The same rows as they are, the shortest first, so that little is padding."""
        order = np.argsort(self.lengths, kind="stable").tolist()
        return EncodedRows(
            [self.rows[index] for index in order], [self.lengths[index] for index in order]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, ticket: int) -> Row:
        epoch, index = divmod(ticket, len(self.rows))
        row = self.rows[index]
        return row if self.transform is None else self.transform(row, index, epoch)


class LengthBucketSampler(Sampler[int]):
    """Shuffles anew each epoch, with rows of like length side by side.

    Args:
        lengths: Of each row, such as in tokens.
        batch_size: Rows of one step over all processes.
        seed: Of the order; the epoch counts in as well.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.lengths))
        num_full = len(order) // self.batch_size * self.batch_size
        # The incomplete batch stays last, or it would shift the borders of all batches after it.
        order, rest = order[:num_full], order[num_full:]
        size = self.batch_size * _BUCKET_BATCHES
        buckets = [order[start : start + size] for start in range(0, num_full, size)]
        for number, bucket in enumerate(buckets):
            buckets[number] = bucket[np.argsort(self.lengths[bucket], kind="stable")]
        if buckets:
            batches = np.concatenate(buckets).reshape(-1, self.batch_size)
            order = batches[generator.permutation(len(batches))].reshape(-1)
        offset = self.epoch * len(self.lengths)
        yield from (offset + int(row) for row in (*order, *rest))


def collator(model: TorchModel) -> Callable[[Sequence[Row]], dict[str, Tensor]]:
    """Make the function that pads rows into a batch of tensors.

    Beside the inputs of the model, (N, ...) each, the batch has the labels of the rows, if they
    have any, and other numbers in them as (N,) tensors.
    """
    task = get_task(model.task)

    def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
        padded = task.collate(model, rows)
        batch = {name: torch.from_numpy(array) for name, array in padded.items()}
        for name, value in rows[0].items():
            if name == LABELS:
                batch[name] = torch.from_numpy(task.collate_labels(rows))
            elif np.ndim(value) == 0:
                batch[name] = torch.as_tensor([row[name] for row in rows])
        return batch

    return collate
