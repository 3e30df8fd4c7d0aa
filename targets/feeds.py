"""Token ids in, the arrays a text model takes out: padding, masks and synthetic batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from targets.bundle import Bundle
from targets.errors import BundleError, InputError
from targets.signature import Arrays, Signature

__all__ = [
    "FeedsSpec",
    "bundle_feeds",
    "check_length",
    "num_token_ids",
    "pad_batch",
    "synthetic_feeds",
    "synthetic_ids",
]

IDS = "input_ids"
MASK = "attention_mask"
ZEROS_IF_ABSENT = ("token_type_ids",)
"""Inputs that are zero for a single text."""


class FeedsSpec(BaseModel):
    """The shape of a synthetic batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lengths: tuple[int, ...] = Field(min_length=1)
    """Number of tokens of each sample; shorter ones are padded to the longest."""
    num_ids: int = Field(ge=1)
    """Ids are drawn from 0 to this, exclusive."""
    pad_token_id: int = Field(default=0, ge=0)
    seed: int = 0

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return len(self.lengths)

    @property
    def sequence_length(self) -> int:
        """Length that the samples are padded to."""
        return max(self.lengths)


def bundle_feeds(bundle: Bundle, *, batch_size: int, sequence_length: int) -> FeedsSpec:
    """A synthetic batch for the model of a bundle, all samples of one length.

    Raises:
        BundleError: The tokenizer cannot be read.
    """
    return FeedsSpec(
        lengths=(sequence_length,) * batch_size,
        num_ids=num_token_ids(bundle),
        pad_token_id=bundle.manifest.preprocessing.pad_token_id,
    )


def check_length(bundle: Bundle, sequence_length: int) -> None:
    """Check that the model of a bundle takes texts of a length, before any work.

    Raises:
        InputError: They are too long; names the longest.
    """
    longest = bundle.manifest.preprocessing.max_length
    if sequence_length > longest:
        raise InputError(
            "the model takes no text of this length",
            where=bundle.source,
            given=f"{sequence_length} tokens",
            fix=f"use at most {longest}",
        )


def synthetic_feeds(signature: Signature, spec: FeedsSpec) -> Arrays:
    """Make a batch of random token ids for a text model.

    Raises:
        InputError: The model takes an input that no text provides.
    """
    rows = np.split(synthetic_ids(spec), np.cumsum(spec.lengths)[:-1])
    return pad_batch({IDS: rows}, signature, pad_token_id=spec.pad_token_id)


def synthetic_ids(spec: FeedsSpec) -> NDArray[np.int64]:
    """Draw random token ids, those of all samples end to end.  # (tokens,)"""
    random = np.random.default_rng(spec.seed)
    ids = random.integers(0, spec.num_ids, size=sum(spec.lengths))
    # RoBERTa counts positions from the ids that are not padding.
    ids[ids == spec.pad_token_id] = (spec.pad_token_id + 1) % spec.num_ids
    return ids


def pad_batch(
    rows: Mapping[str, Sequence[NDArray[np.generic]]], signature: Signature, *, pad_token_id: int
) -> Arrays:
    """Pad ragged samples to their longest and add the inputs that follow from them.

    Args:
        rows: Input name -> one array a sample, each of that sample's length; ``input_ids`` is
            always among them.
        signature: Decides which inputs are made, and their types.
        pad_token_id: What ``input_ids`` are padded with; all others are padded with 0.

    Returns:
        One array for each input of the signature.  # (samples, longest)

    Raises:
        InputError: The model takes an input that is neither in ``rows`` nor follows from them.
    """
    ids = rows[IDS]
    feeds: Arrays = {}
    for spec in signature.inputs:
        if spec.name in rows:
            values = rows[spec.name]
        elif spec.name == MASK:
            values = [np.ones_like(row) for row in ids]
        elif spec.name in ZEROS_IF_ABSENT:
            values = [np.zeros_like(row) for row in ids]
        else:
            raise InputError(
                f"the model takes an input {spec.name!r}, which text does not provide",
                given=", ".join(rows),
                fix="export the model with the inputs of its tokenizer only",
            )
        pad = pad_token_id if spec.name == IDS else 0
        feeds[spec.name] = _pad(values, pad).astype(spec.dtype)
    return feeds


def num_token_ids(bundle: Bundle) -> int:
    """How many token ids the model of a text bundle knows.

    Taken from the option ``vocab_size`` if the target recorded it, else from the tokenizer.

    Raises:
        BundleError: The tokenizer cannot be read.
    """
    recorded = bundle.manifest.options.get("vocab_size")
    if isinstance(recorded, int):
        return recorded
    from targets.predictor import read_tokenizer

    num_ids = int(read_tokenizer(bundle).get_vocab_size(with_added_tokens=True))
    if num_ids < 1:
        raise BundleError(
            "the tokenizer of the bundle knows no tokens",
            where=bundle.source / bundle.manifest.preprocessing.tokenizer,
            fix="build the bundle again",
        )
    return num_ids


def _pad(rows: Sequence[NDArray[np.generic]], pad: int) -> NDArray[np.generic]:
    padded = np.full((len(rows), max(len(row) for row in rows)), pad, dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
