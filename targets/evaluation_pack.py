"""Evaluation data, read and in one file, so that every target answers the very same inputs."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from targets.answers.base import side_by_side
from targets.errors import InputError
from targets.feeds import FeedsSpec, synthetic_rows
from targets.preprocessing import FIXED_SIZE, AnyPreprocessing, Rows, TextPreprocessing
from targets.signature import Arrays, Signature

__all__ = ["Batch", "EvaluationPack", "Labels"]

SCHEMA_VERSION = 5
_TEXT_ONLY = 2
"""The version of texts only: it named the padding and nothing else."""
_UNCOUNTED = (_TEXT_ONLY, 3)
"""Versions that did not keep how many labels a sample has: one, or one a token."""
_WIDE = (*_UNCOUNTED, 4)
"""Versions that kept every integer with 64 bits."""
_NARROW = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
HEADER = "evaluation_pack"
INPUT = "input."
COUNTS = "label_counts"
Labels = Sequence[Any] | NDArray[np.generic]
"""One label a sample, or one array of labels a sample; before they are placed, also one file."""
_PREPROCESSING: TypeAdapter[AnyPreprocessing] = TypeAdapter(AnyPreprocessing)


@dataclass(frozen=True)
class Batch:
    """Some samples of a pack, ready to run.

    Attributes:
        indices: Where the samples stand in the pack.  # (samples,)
        feeds: One array for each input of the signature.  # (samples, ...)
    """

    indices: NDArray[np.int64]
    feeds: Arrays


@dataclass(frozen=True)
class EvaluationPack:
    """Samples with their labels, as small as they can be kept; see `Preprocessing.feeds`.

    Attributes:
        inputs: Name -> the rows of all samples. Where samples have lengths, they lie end to end
            along the first axis, else side by side.  # (total length, ...) or (samples, ...)
        lengths: Of each sample, at least 1; all 0 where they have one size.  # (samples,)
        labels: One label a sample, or those of all samples end to end; `targets.answers.IGNORED`
            where nothing is judged. A label may be a vector.
            # (samples, ...) or (sum of label_counts,)
        preprocessing: Makes the arrays of a batch out of rows.
        label_counts: How many labels each sample has; None where it is one.  # (samples,)

    Raises:
        InputError: The arrays do not fit together.
    """

    inputs: Mapping[str, NDArray[np.generic]]
    lengths: NDArray[np.int64]
    labels: NDArray[np.generic]
    preprocessing: AnyPreprocessing
    label_counts: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        kind = self.preprocessing
        if kind.needs not in self.inputs:
            raise InputError(
                f"an evaluation pack of {kind.noun}s needs {kind.needs!r}",
                given=", ".join(self.inputs) or "no inputs",
                fix="read the data with the preprocessing of the model",
            )
        shortest = 1 if kind.ragged else FIXED_SIZE
        if self.lengths.ndim != 1 or not len(self.lengths) or self.lengths.min() < shortest:
            part = kind.noun if kind.unit is None else kind.unit.removesuffix("s")
            raise InputError(
                f"every sample of an evaluation pack needs at least one {part}",
                given=f"lengths of shape {self.lengths.shape}",
                fix="leave empty samples out",
            )
        total = int(self.lengths.sum()) if kind.ragged else len(self.lengths)
        for name, values in self.inputs.items():
            if not values.ndim or len(values) != total:
                raise InputError(
                    f"input {name!r} does not fit the samples",
                    given=f"shape {values.shape}",
                    fix=f"pass the values of all samples along the first axis, {total} in all",
                )
        counts = self.label_counts
        wanted = len(self.lengths) if counts is None else int(counts.sum())
        fits = counts is None or counts.shape == self.lengths.shape
        if not fits or self.labels.shape[:1] != (wanted,):
            raise InputError(
                "the labels do not fit the samples",
                given=f"shape {self.labels.shape}",
                fix=f"pass one label, or one array of labels, for each of {len(self.lengths)} "
                "samples",
            )

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def from_rows(
        cls,
        rows: Rows,
        labels: Labels,
        *,
        preprocessing: AnyPreprocessing,
    ) -> EvaluationPack:
        """Build a pack from one array a sample and name.

        Labels in one array are one a sample, also where they are vectors; in a sequence of arrays,
        each has all those of its sample.
        """
        samples = rows.get(preprocessing.needs, ())
        ragged = preprocessing.ragged
        several = not isinstance(labels, np.ndarray) and len(labels) > 0 and np.ndim(labels[0]) > 0
        return cls(
            inputs={
                name: np.concatenate(each) if ragged else np.stack(each)
                for name, each in rows.items()
            }
            if len(samples)
            else {name: np.empty(0) for name in rows},
            lengths=np.array(
                [len(each) if ragged else FIXED_SIZE for each in samples], dtype=np.int64
            ),
            labels=np.concatenate(labels) if several else np.asarray(labels),
            preprocessing=preprocessing,
            label_counts=np.array(list(map(np.size, labels)), np.int64) if several else None,
        )

    @classmethod
    def synthetic(cls, spec: FeedsSpec) -> EvaluationPack:
        """Make a pack of random values; its labels mean nothing."""
        labels = np.zeros(len(spec.lengths), dtype=np.int64)
        return cls.from_rows(synthetic_rows(spec), labels, preprocessing=spec.preprocessing)

    def head(self, count: int) -> EvaluationPack:
        """The first samples, all of them where there are fewer."""
        lengths = self.lengths[:count]
        total = int(lengths.sum()) if self.preprocessing.ragged else len(lengths)
        counts = None if self.label_counts is None else self.label_counts[:count]
        return EvaluationPack(
            inputs={name: values[:total] for name, values in self.inputs.items()},
            lengths=lengths,
            labels=self.labels[: len(lengths) if counts is None else int(counts.sum())],
            preprocessing=self.preprocessing,
            label_counts=counts,
        )

    def feeds(self, indices: Sequence[int] | NDArray[np.int64], signature: Signature) -> Arrays:
        """Some samples as one batch."""
        if not self.preprocessing.ragged:
            rows: Rows = {name: values[indices] for name, values in self.inputs.items()}  # type: ignore[misc]
        else:
            spans = [(self.offsets[index], self.lengths[index]) for index in indices]
            rows = {
                name: [values[start : start + length] for start, length in spans]
                for name, values in self.inputs.items()
            }
        return self.preprocessing.feeds(rows, signature)

    @functools.cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each sample begins, where they have lengths.  # (samples,)"""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def label_rows(self) -> NDArray[np.int64]:
        """Which sample each label belongs to.  # as the labels"""
        rows = np.arange(len(self))
        return rows if self.label_counts is None else np.repeat(rows, self.label_counts)

    def save(self, path: Path) -> None:
        """Write the pack as one safetensors file; a reader sees the whole file or none."""
        arrays = {INPUT + name: np.ascontiguousarray(each) for name, each in self.inputs.items()}
        arrays |= {"lengths": self.lengths, "labels": np.ascontiguousarray(self.labels)}
        if self.label_counts is not None:
            arrays[COUNTS] = self.label_counts
        wide = sorted(name for name, each in arrays.items() if each.dtype == np.int64)
        arrays |= {name: _narrow(arrays[name]) for name in wide}
        header = {
            "schema_version": SCHEMA_VERSION,
            "int64": wide,
            "preprocessing": self.preprocessing.model_dump(mode="json"),
        }
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
            arrays |= {name: arrays[name].astype(np.int64) for name in header.get("int64", ())}
            return cls(
                inputs={
                    name.removeprefix(INPUT): array
                    for name, array in arrays.items()
                    if name.startswith(INPUT)
                },
                lengths=arrays["lengths"],
                labels=arrays["labels"],
                preprocessing=_read_preprocessing(header),
                label_counts=_read_counts(header, arrays),
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
        for begin in range(0, len(self), batch_size):
            indices = order[begin : begin + batch_size]
            yield Batch(indices, self.feeds(indices, signature))

    def restore(self, answers: Sequence[tuple[Batch, Arrays]], signature: Signature) -> Arrays:
        """Bring the outputs of all batches back into the order of the pack.

        Returns:
            One array for each output of the signature. Outputs with one value a token lie end to
            end without padding, as the inputs do; other rows of unlike lengths are filled up with
            0.  # (samples, ...) or (tokens, ...)
        """
        restored: Arrays = {}
        for spec in signature.outputs:
            per_token = len(spec.shape) > 1 and spec.shape[1] == _sequence_dimension(signature)
            rows: list[NDArray[np.generic]] = [np.empty(0)] * len(self)
            for batch, outputs in answers:
                for index, row in zip(batch.indices, outputs[spec.name], strict=True):
                    rows[index] = row[: self.lengths[index]] if per_token else row
            restored[spec.name] = (
                np.concatenate(rows) if per_token else side_by_side([row[None] for row in rows])
            )
        return restored


def _sequence_dimension(signature: Signature) -> int | str | None:
    """The free dimension, beside that of the batch, of the first input."""
    shape = signature.inputs[0].shape if signature.inputs else ()
    dimension = shape[1] if len(shape) > 1 else None
    return dimension if isinstance(dimension, str) else None


def _narrow(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """The same integers in the first type that holds the smallest and the largest of them."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for kind in _NARROW:
        bounds = np.iinfo(kind)
        if bounds.min <= low and high <= bounds.max:
            return values.astype(kind)
    return values


def _read_preprocessing(header: Mapping[str, Any]) -> AnyPreprocessing:
    version = header["schema_version"]
    if version == _TEXT_ONLY:
        return TextPreprocessing(max_length=2**31 - 1, pad_token_id=header["pad_token_id"])
    if version not in (*_WIDE, SCHEMA_VERSION):
        raise ValueError(f"schema version {version}")
    return _PREPROCESSING.validate_python(header["preprocessing"])


def _read_counts(header: Mapping[str, Any], arrays: Arrays) -> NDArray[np.int64] | None:
    if header["schema_version"] in _UNCOUNTED and len(arrays["labels"]) != len(arrays["lengths"]):
        return np.asarray(arrays["lengths"], dtype=np.int64)
    counts = arrays.get(COUNTS)
    return None if counts is None else np.asarray(counts, dtype=np.int64)
