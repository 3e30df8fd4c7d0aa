"""The teacher of a distillation: its outputs for a batch, from memory where they fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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

__all__ = ["Teacher", "vocabulary_table"]

_CACHE_BATCH = 64  # rows the teacher runs at once while the cache is filled
_LEAST_SHARED = 0.5  # of the student's tokens; below it the two cannot read the same text

Row = dict[str, Any]


class Teacher:
    """Runs the teacher without gradients, or recalls what it gave.

    In bfloat16 where the processor multiplies it natively, as the student trains; what it gives is
    float32.

    Args:
        encoder: The teacher with the taps that the losses need.
        inputs: Names of the inputs of the model.
        table: Student token -> teacher token; None where both have one vocabulary.
    """

    def __init__(self, encoder: TappedEncoder, inputs: Sequence[str], table: Tensor | None) -> None:
        self.encoder = encoder.eval()
        self.bf16 = has_bf16(encoder)
        if is_convolutional(encoder):
            set_memory_format(encoder, torch.channels_last)
        self.inputs = tuple(inputs)
        self.table = table
        self._logits: Tensor | None = None
        self._states = torch.empty(0)
        self._starts: list[int] = []
        self._widths: tuple[list[int], int] = ([], 0)

    @property
    def is_cached(self) -> bool:
        """Whether the outputs come from memory."""
        return self._logits is not None

    def outputs(self, batch: Mapping[str, Tensor]) -> TappedOutputs:
        """The teacher's outputs for a batch of the student's rows.

        Args:
            batch: The inputs of the model, (N, ...) each; slot, (N,), where cached.
        """
        if self._logits is None:
            return self._run(batch)
        return self._recall(self._logits, batch)

    def remember(
        self,
        variants: Sequence[Row],
        lengths: Sequence[int],
        collate: Callable[[Sequence[Row]], dict[str, Tensor]],
        *,
        limit_bytes: int,
    ) -> bool:
        """Run the teacher once on everything it will be asked, unless that takes too much memory.

        Rows go by length in one fixed order: the rounding of a batched matrix product depends on
        the batch, and a resumed training must see equal targets.

        Args:
            variants: Every row, by slot.
            lengths: Of each; see `Task.length`.
            collate: Pads rows into a batch.
            limit_bytes: Most memory to use.

        Returns:
            Whether the outputs are in memory now.
        """
        order = sorted(range(len(variants)), key=lambda slot: lengths[slot])
        logits, states, starts, sizes = None, torch.empty(0), np.zeros(1, int), list(lengths)
        for first in range(0, len(order), _CACHE_BATCH):
            slots = order[first : first + _CACHE_BATCH]
            batch = collate([variants[slot] for slot in slots])
            outputs = self._run(batch)
            tokens = [*outputs.hidden, *outputs.projections]
            if logits is None:
                if tokens and tokens[0].shape[1] != max(sizes[slot] for slot in slots):
                    if max(lengths) != FIXED_SIZE:
                        return False  # a layer has fewer states than its input is long
                    sizes = [tokens[0].shape[1]] * len(variants)
                starts = np.cumsum([0, *sizes])
                width = sum(part.shape[-1] for part in tokens)
                if len(variants) * outputs.logits.shape[1] * 4 + starts[-1] * width * 2 > (
                    limit_bytes
                ):
                    return False
                logits = torch.empty(len(variants), outputs.logits.shape[1])
                states = torch.empty(int(starts[-1]), width, dtype=torch.float16)
                self._widths = ([part.shape[-1] for part in tokens], len(outputs.hidden))
            logits[slots] = outputs.logits.float().cpu()
            if tokens:
                joined = torch.cat(tokens, dim=-1).to("cpu", torch.float16)  # (N, L, width)
                for row, slot in enumerate(slots):
                    start = int(starts[slot])
                    states[start : start + sizes[slot]] = joined[row, : sizes[slot]]
        self._logits, self._states = logits, states
        self._starts = starts.tolist()
        return True

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

    def _recall(self, logits: Tensor, batch: Mapping[str, Tensor]) -> TappedOutputs:
        device = batch[self.inputs[0]].device
        slots = batch["slot"].cpu()
        widths, num_hidden = self._widths
        states = torch.empty(0)
        if widths:
            spans = [(self._starts[slot], self._starts[slot + 1]) for slot in slots.tolist()]
            mask = batch.get(MASK)
            # Padded as the batch is: its rows may be longer than all that count.
            longest = max(end - start for start, end in spans) if mask is None else mask.shape[1]
            states = torch.zeros(len(slots), longest, sum(widths))
            for row, (start, end) in enumerate(spans):
                states[row, : end - start] = self._states[start:end]
        parts = torch.split(states.to(device), widths, dim=-1) if widths else ()
        return TappedOutputs(logits[slots].to(device), parts[:num_hidden], parts[num_hidden:])


def vocabulary_table(student: TorchModel, teacher: TorchModel) -> Tensor | None:
    """Map the student's tokens to the teacher's by their text.

    The student's vocabulary may be smaller or in another order. The teacher reads the student's
    tokens, so their positions agree; a token it does not know becomes its unknown token.

    Returns:
        (student's vocabulary,) int64, or None where both read the same inputs.

    Raises:
        PassError: Fewer than half of the tokens are shared.
    """
    if get_task(student.task).kind != "text":
        return None
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
