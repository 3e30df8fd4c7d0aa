"""Tokenised evaluation data in one file, so that every target answers the very same inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from targets.errors import InputError
from targets.feeds import IDS, FeedsSpec, pad_batch, synthetic_ids
from targets.signature import Arrays, Signature

__all__ = ["Batch", "EvaluationPack"]

SCHEMA_VERSION = 2
HEADER = "evaluation_pack"
INPUT = "input."


@dataclass(frozen=True)
class Batch:
    """Some samples of a pack, padded to the longest of them.

    Attributes:
        indices: Where the samples stand in the pack.  # (samples,)
        feeds: One array for each input of the signature.  # (samples, longest)
    """

    indices: NDArray[np.int64]
    feeds: Arrays


@dataclass(frozen=True)
class EvaluationPack:
    """Ragged tokenised samples with their labels.

    Attributes:
        inputs: Input name -> the tokens of all samples, end to end; ``input_ids`` is required.
            What follows from it (masks, zero token types) need not be stored.  # (tokens,)
        lengths: Number of tokens of each sample, at least 1.  # (samples,)
        labels: One label a sample, or one a token, end to end.  # (samples,) or (tokens,)
        pad_token_id: What ``input_ids`` are padded with.

    Raises:
        InputError: The arrays do not fit together.
    """

    inputs: Mapping[str, NDArray[np.generic]]
    lengths: NDArray[np.int64]
    labels: NDArray[np.generic]
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        if IDS not in self.inputs:
            raise InputError(
                f"an evaluation pack needs {IDS!r}",
                given=", ".join(self.inputs) or "no inputs",
                fix="tokenize the data with the tokenizer of the model",
            )
        if self.lengths.ndim != 1 or not len(self.lengths) or self.lengths.min() < 1:
            raise InputError(
                "every sample of an evaluation pack needs at least one token",
                given=f"lengths of shape {self.lengths.shape}",
                fix="leave empty samples out",
            )
        tokens = int(self.lengths.sum())
        for name, flat in self.inputs.items():
            if flat.shape != (tokens,):
                raise InputError(
                    f"input {name!r} does not fit the lengths of the samples",
                    given=f"shape {flat.shape}",
                    fix=f"pass the {tokens} tokens of all samples end to end",
                )
        if self.labels.shape not in ((len(self.lengths),), (tokens,)):
            raise InputError(
                "the labels do not fit the samples",
                given=f"shape {self.labels.shape}",
                fix=f"pass one for each of {len(self.lengths)} samples or {tokens} tokens",
            )

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def from_rows(
        cls,
        rows: Mapping[str, Sequence[Sequence[int]]],
        labels: Sequence[int] | NDArray[np.generic],
        *,
        pad_token_id: int,
    ) -> EvaluationPack:
        """Build a pack from one list of token values a sample and input."""
        return cls(
            inputs={
                name: np.array([value for row in samples for value in row], dtype=np.int64)
                for name, samples in rows.items()
            },
            lengths=np.array([len(row) for row in rows.get(IDS, ())], dtype=np.int64),
            labels=np.asarray(labels),
            pad_token_id=pad_token_id,
        )

    @classmethod
    def synthetic(cls, spec: FeedsSpec) -> EvaluationPack:
        """Make a pack of random tokens; its labels mean nothing."""
        return cls(
            inputs={IDS: synthetic_ids(spec)},
            lengths=np.array(spec.lengths, dtype=np.int64),
            labels=np.zeros(len(spec.lengths), dtype=np.int64),
            pad_token_id=spec.pad_token_id,
        )

    def head(self, count: int) -> EvaluationPack:
        """The first samples, all of them where there are fewer."""
        lengths = self.lengths[:count]
        tokens = int(lengths.sum())
        by_sample = self.labels.shape == (len(self.lengths),)
        return EvaluationPack(
            inputs={name: flat[:tokens] for name, flat in self.inputs.items()},
            lengths=lengths,
            labels=self.labels[: len(lengths) if by_sample else tokens],
            pad_token_id=self.pad_token_id,
        )

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each sample begins in the flat arrays.  # (samples,)"""
        return np.cumsum(self.lengths) - self.lengths

    def save(self, path: Path) -> None:
        """Write the pack as one safetensors file; a reader sees the whole file or none."""
        arrays = {INPUT + name: np.ascontiguousarray(flat) for name, flat in self.inputs.items()}
        arrays |= {"lengths": self.lengths, "labels": np.ascontiguousarray(self.labels)}
        header = {"schema_version": SCHEMA_VERSION, "pad_token_id": self.pad_token_id}
        # One key: safetensors writes several in an order that changes, and with it the file's hash.
        metadata = {HEADER: json.dumps(header)}
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(save(arrays, metadata))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> EvaluationPack:
        """Read a pack.

        Raises:
            InputError: The file is not an evaluation pack.
        """
        try:
            with safe_open(path, framework="numpy") as stream:
                header = json.loads((stream.metadata() or {})[HEADER])
                arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            if header["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {header['schema_version']}")
            return cls(
                inputs={
                    name.removeprefix(INPUT): array
                    for name, array in arrays.items()
                    if name.startswith(INPUT)
                },
                lengths=arrays["lengths"],
                labels=arrays["labels"],
                pad_token_id=int(header["pad_token_id"]),
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                "this is not an evaluation pack",
                where=path,
                given=error,
                fix="pass a file that `EvaluationPack.save` of this version wrote",
            ) from error

    def batches(self, batch_size: int, signature: Signature) -> Iterator[Batch]:
        """Go through the samples from the longest to the shortest, so that little is padding.

        The longest come first: what does not fit in memory fails at once.
        """
        order = np.argsort(-self.lengths, kind="stable")
        offsets = self.offsets
        for begin in range(0, len(self), batch_size):
            indices = order[begin : begin + batch_size]
            spans = [(offsets[index], offsets[index] + self.lengths[index]) for index in indices]
            rows = {
                name: [flat[start:stop] for start, stop in spans]
                for name, flat in self.inputs.items()
            }
            yield Batch(indices, pad_batch(rows, signature, pad_token_id=self.pad_token_id))

    def restore(self, answers: Sequence[tuple[Batch, Arrays]], signature: Signature) -> Arrays:
        """Bring the outputs of all batches back into the order of the pack.

        Returns:
            One array for each output of the signature. Outputs with one value a token lie end to
            end without padding, as the inputs do.  # (samples, ...) or (tokens, ...)
        """
        restored: Arrays = {}
        for spec in signature.outputs:
            per_token = len(spec.shape) > 1 and spec.shape[1] == _sequence_dimension(signature)
            rows: list[NDArray[np.generic]] = [np.empty(0)] * len(self)
            for batch, outputs in answers:
                for index, row in zip(batch.indices, outputs[spec.name], strict=True):
                    rows[index] = row[: self.lengths[index]] if per_token else row
            restored[spec.name] = np.concatenate(rows) if per_token else np.stack(rows)
        return restored


def _sequence_dimension(signature: Signature) -> int | str | None:
    shapes = [spec.shape for spec in signature.inputs if spec.name == IDS]
    dimension = shapes[0][1] if shapes else None
    return dimension if isinstance(dimension, str) else None
