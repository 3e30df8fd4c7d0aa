"""The teacher of a distillation: its outputs for a batch, made once where they can be kept."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.tasks import get_task
from compressor.training.taps import TappedEncoder, TappedOutputs
from compressor.training.trainer import has_bf16, is_convolutional, set_memory_format
from targets.preprocessing import FIXED_SIZE
from targets.preprocessing.text import IDS, MASK

__all__ = ["Remembered", "Teacher", "TeacherMemory", "vocabulary_table"]

_FREE_SHARE = 0.75  # of the free space of a disk: the rest is for checkpoints, and for others
_LEAST_SHARED = 0.5  # of the student's tokens; below it the two cannot read the same text

Row = dict[str, Any]


@dataclass(frozen=True)
class Remembered:
    """What a teacher gave for rows, by slot.

    Attributes:
        logits: Of each row.
        states: What the taps gave, side by side; None where there are none.
        widths: Of each tap.
        hidden_layers: The layers of the first taps.
        relation_layer: That of the others, where there are any.
    """

    logits: _Kept
    states: _Kept | None
    widths: tuple[int, ...]
    hidden_layers: tuple[int, ...]
    relation_layer: int | None

    def covers(self, encoder: TappedEncoder) -> bool:
        """Whether it holds all that other taps would give."""
        return self.relation_layer == encoder.relation_layer and set(encoder.hidden_layers) <= set(
            self.hidden_layers
        )


class TeacherMemory:
    """Keeps what a teacher gave from one training to the next that has the same rows."""

    def __init__(self) -> None:
        self._key = ""
        self._kept: Remembered | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the next training would have to ask the teacher."""
        return self._kept is None

    def find(self, key: str) -> Remembered | None:
        """What is kept under a key, or None."""
        return self._kept if key == self._key else None

    def keep(self, key: str, kept: Remembered) -> None:
        """Keep it instead of what was there."""
        self._key, self._kept = key, kept

    def close(self) -> None:
        """Give the memory and the file free."""
        self._key, self._kept = "", None


class Teacher:
    """Runs the teacher without gradients, or recalls what it gave.

    In bfloat16 where the processor multiplies it natively, as the student trains; what it gives is
    float32.

    Args:
        encoder: The teacher with the taps that the losses need.
        inputs: Names of the inputs of the model.
        table: Student token -> teacher token; None where both have one vocabulary.
        rows_at_once: Rows that it runs at once while what it gives is put into memory.
    """

    def __init__(
        self,
        encoder: TappedEncoder,
        inputs: Sequence[str],
        table: Tensor | None,
        rows_at_once: int = 64,
    ) -> None:
        self.encoder = encoder.eval()
        self.bf16 = has_bf16(encoder)
        if is_convolutional(encoder):
            set_memory_format(encoder, torch.channels_last)
        self.inputs = tuple(inputs)
        self.table = table
        self.rows_at_once = rows_at_once
        self.kept: Remembered | None = None
        """What it gave for every row, or what one with more taps did."""

    def outputs(self, batch: Mapping[str, Tensor]) -> TappedOutputs:
        """The teacher's outputs for a batch of the student's rows.

        Args:
            batch: The inputs of the model, (N, ...) each; slot, (N,), where cached.
        """
        if self.kept is None:
            return self._run(batch)
        return self._recall(self.kept, batch)

    def remember(
        self,
        variants: Sequence[Row],
        lengths: Sequence[int],
        collate: Callable[[Sequence[Row]], dict[str, Tensor]],
        *,
        forms: Sequence[int] | None = None,
        limit_bytes: int,
        folder: Path | None = None,
        disk_bytes: int = 0,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Remembered | None:
        """Run the teacher once on everything it will be asked, and keep what it gives.

        In memory; or, where that takes too much, the states of the layers in a file; or not at all.

        Rows go by form and length in one fixed order: the rounding of a batched matrix product
        depends on the batch, and a resumed training must see equal targets, as must one that comes
        to fewer forms of the same rows.

        Args:
            variants: Every row, by slot.
            lengths: Of each; see `Task.length`.
            collate: Pads rows into a batch.
            forms: Of each, which form of its row it is, from 0; None where all are the first.
            limit_bytes: Most memory to use.
            folder: For the file, which has no name there and goes with this object.
            disk_bytes: Longest file to write.
            progress: Called with the number of rows that are done.

        Returns:
            What is kept now, if it is.
        """
        logits: _Kept | None = None
        states: _Kept | None = None
        widths: tuple[int, ...] = ()
        done = 0
        for slots in _batches(lengths, forms or [0] * len(variants), self.rows_at_once):
            outputs = self._run(collate([variants[slot] for slot in slots]))
            tokens = [*outputs.hidden, *outputs.projections]
            if logits is None:
                longest = max(lengths[slot] for slot in slots)
                room = _room_for(
                    outputs, lengths, longest, limit_bytes, folder=folder, disk_bytes=disk_bytes
                )
                if room is None:
                    return None
                logits, states = room
                widths = tuple(part.shape[-1] for part in tokens)
            logits.put(slots, outputs.logits)
            if states is not None:
                states.put(slots, torch.cat(tokens, dim=-1))
            done += len(slots)
            progress(done)
        if logits is not None:
            taps = self.encoder.hidden_layers, self.encoder.relation_layer
            self.kept = Remembered(logits, states, widths, *taps)
        return self.kept

    def _run(self, batch: Mapping[str, Tensor]) -> TappedOutputs:
        device = next(self.encoder.parameters()).device
        fast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)
        inputs = {name: batch[name] for name in self.inputs}
        if self.table is not None:
            inputs[IDS] = self.table[inputs[IDS].cpu()]
        with torch.inference_mode(), fast:
            moved = {name: each.to(device) for name, each in inputs.items()}
            outputs: TappedOutputs = self.encoder(**moved)
        # Tensors of inference mode cannot be saved for a backward.
        return TappedOutputs(
            outputs.logits.float().clone(),
            tuple(part.float().clone() for part in outputs.hidden),
            tuple(part.float().clone() for part in outputs.projections),
        )

    def _recall(self, kept: Remembered, batch: Mapping[str, Tensor]) -> TappedOutputs:
        device = batch[self.inputs[0]].device
        slots = batch["slot"].tolist()
        mask = batch.get(MASK)
        # Padded as the batch is: its rows may be longer than all that count.
        longest = None if mask is None else mask.shape[1]
        parts: tuple[Tensor, ...] = ()
        if kept.states is not None:
            states = kept.states.get(slots, longest)
            parts = torch.split(states, list(kept.widths), dim=-1)
        places = [kept.hidden_layers.index(layer) for layer in self.encoder.hidden_layers]
        wanted = [*(parts[place] for place in places), *parts[len(kept.hidden_layers) :]]
        found = tuple(part.to(device, torch.float32) for part in wanted)
        return TappedOutputs(
            kept.logits.get(slots, longest).to(device), found[: len(places)], found[len(places) :]
        )


def _batches(lengths: Sequence[int], forms: Sequence[int], size: int) -> Iterator[list[int]]:
    """Slots, batch by batch: of one form each, by length."""
    order = sorted(range(len(lengths)), key=lambda slot: (forms[slot], lengths[slot]))
    for _, same in itertools.groupby(order, key=lambda slot: forms[slot]):
        slots = list(same)
        for first in range(0, len(slots), size):
            yield slots[first : first + size]


def _room_for(
    outputs: TappedOutputs,
    lengths: Sequence[int],
    longest: int,
    limit_bytes: int,
    *,
    folder: Path | None,
    disk_bytes: int,
) -> tuple[_Kept, _Kept | None] | None:
    """Where the logits of all rows, and their states if there are any, are to be kept.

    Args:
        outputs: Of some of the rows.
        lengths: Of all rows.
        longest: Of those whose outputs there are.
        limit_bytes: Most memory to use.
        folder: For a file.
        disk_bytes: Longest file.

    Returns:
        None where there is not the space, or a layer has fewer states than its input is long.
    """
    tokens = [*outputs.hidden, *outputs.projections]
    is_fixed = max(lengths) == FIXED_SIZE
    sizes = list(lengths)
    if tokens and tokens[0].shape[1] != longest:
        if not is_fixed:
            return None
        sizes = [tokens[0].shape[1]] * len(lengths)
    by_token = outputs.logits.ndim == 3 and not is_fixed
    answers = list(lengths) if by_token else [1] * len(lengths)
    shape = tuple(outputs.logits.shape[2 if by_token else 1 :])
    width = sum(part.shape[-1] for part in tokens)
    answers_size = sum(answers) * math.prod(shape) * 4
    states_size = sum(sizes) * width * 2
    store: _File | None = None
    if answers_size + states_size > limit_bytes:
        if answers_size > limit_bytes or states_size > disk_bytes:
            return None
        store = _reserve(folder, sum(sizes), width)
        if store is None:
            return None
    logits = _Kept(answers, shape, torch.float32, by_token=by_token)
    return logits, _Kept(sizes, (width,), torch.float16, store=store) if tokens else None


class _Kept:
    """Outputs of rows of different lengths, end to end.

    Args:
        sizes: Length of the outputs of each row, by slot.
        shape: Of an output.
        dtype: What they are kept in.
        by_token: Whether rows have several outputs, (N, L, *shape), or one, (N, *shape).
        store: Where they are kept, if not in memory.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        by_token: bool = True,
        store: _File | None = None,
    ) -> None:
        self.starts: list[int] = np.cumsum([0, *sizes]).tolist()
        self.shape = shape
        self.dtype = dtype
        self.values: Tensor | _File = store or torch.empty(self.starts[-1], *shape, dtype=dtype)
        self.by_token = by_token

    def put(self, slots: Sequence[int], values: Tensor) -> None:
        """Keep the outputs of a padded batch, without its padding."""
        values = values.to("cpu", self.dtype)
        for slot, row in zip(slots, values if self.by_token else values[:, None], strict=True):
            start, end = self.starts[slot], self.starts[slot + 1]
            self.values[start:end] = row[: end - start]

    def get(self, slots: Sequence[int], longest: int | None) -> Tensor:
        """The outputs of some rows, padded with 0 to a length; None is the longest of them."""
        if isinstance(self.values, Tensor) and not self.by_token:
            return self.values[slots]
        spans = [(self.starts[slot], self.starts[slot + 1]) for slot in slots]
        length = max(end - start for start, end in spans) if longest is None else longest
        padded = torch.zeros(len(slots), length, *self.shape, dtype=self.dtype)
        for row, (start, end) in enumerate(spans):
            padded[row, : end - start] = self.values[start:end]
        return padded


class _File:
    """Vectors of float16 in a file without a name: it is gone with this object, however that ends.

    Args:
        file: Long enough for all of them.
        width: Of a vector.
    """

    def __init__(self, file: IO[bytes], width: int) -> None:
        self.file = file
        self.width = width
        weakref.finalize(self, file.close)

    def __setitem__(self, span: slice, values: Tensor) -> None:
        raw = np.ascontiguousarray(values.numpy()).data.cast("B")
        os.pwrite(self.file.fileno(), raw, 2 * self.width * span.start)

    def __getitem__(self, span: slice) -> Tensor:
        values = np.empty((span.stop - span.start, self.width), np.float16)
        os.preadv(self.file.fileno(), [values.data.cast("B")], 2 * self.width * span.start)
        return torch.from_numpy(values)


def _reserve(folder: Path | None, num_vectors: int, width: int) -> _File | None:
    """A file for so many vectors; None where there is not the space for it."""
    size = 2 * num_vectors * width
    if folder is None or size > _FREE_SHARE * shutil.disk_usage(folder).free:
        return None
    file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  (kept open)
    try:
        os.posix_fallocate(file.fileno(), 0, size)  # so that no later write fails
    except OSError:
        file.close()
        return None
    return _File(file, width)


def vocabulary_table(student: TorchModel, teacher: TorchModel) -> Tensor | None:
    """Map the student's tokens to the teacher's by their text.

    The student's vocabulary may be smaller or in another order. The teacher reads the student's
    tokens, so their positions agree; a token it does not know becomes its unknown token.

    Returns:
        (student's vocabulary,) int64, or None where both read the same inputs.

    Raises:
        PassError: Fewer than half of the tokens are shared.
    """
    task = get_task(student.task)
    if task.preprocessing_type.reads_files() or task.signature(student).context:
        return None  # a student with a decoder has the tokenizer of its teacher
    ours, theirs = student.processor.get_vocab(), teacher.processor.get_vocab()
    if ours == theirs:
        return None
    shared = sum(token in theirs for token in ours)
    if shared < _LEAST_SHARED * len(ours):
        raise PassError(
            "student and teacher have too few tokens in common",
            given=f"{shared} of the student's {len(ours)} tokens",
            fix="distil from a teacher with the same kind of tokenizer",
        )
    unknown = teacher.processor.unk_token_id or 0
    table = torch.full((max(ours.values()) + 1,), unknown, dtype=torch.int64)
    for token, index in ours.items():
        table[index] = theirs.get(token, unknown)
    return table
