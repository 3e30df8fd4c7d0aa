"""Synthetic batches for the model of a bundle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from targets.bundle import Bundle
from targets.errors import BundleError, InputError
from targets.preprocessing import FIXED_SIZE, AnyPreprocessing
from targets.signature import Arrays, Signature

__all__ = [
    "FeedsSpec",
    "bundle_feeds",
    "check_length",
    "num_token_ids",
    "synthetic_feeds",
    "synthetic_rows",
    "usual_length",
]


class FeedsSpec(BaseModel):
    """The shape of a synthetic batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lengths: tuple[int, ...] = Field(min_length=1)
    """Length of each sample; shorter ones are padded to the longest."""
    preprocessing: AnyPreprocessing
    """Of the model."""
    num_ids: int = Field(default=1, ge=1)
    """Token ids are drawn from 0 to this, exclusive."""
    seed: int = 0

    @classmethod
    def of(cls, bundle: Bundle, batch_size: int, length: int, *, num_ids: int) -> FeedsSpec:
        """For a bundle, all samples of one length, which counts only where they have lengths."""
        preprocessing = bundle.manifest.preprocessing
        each = length if preprocessing.ragged else FIXED_SIZE
        return cls(lengths=(each,) * batch_size, preprocessing=preprocessing, num_ids=num_ids)


def bundle_feeds(bundle: Bundle, *, batch_size: int, sequence_length: int) -> FeedsSpec:
    """A synthetic batch for the model of a bundle, all samples of one length.

    Raises:
        BundleError: The tokenizer cannot be read.
    """
    return FeedsSpec.of(bundle, batch_size, sequence_length, num_ids=num_token_ids(bundle))


def check_length(bundle: Bundle, sequence_length: int) -> None:
    """Check that the model of a bundle takes inputs of a length, before any work.

    Where all inputs have one size, a length means nothing.

    Raises:
        InputError: They are too long; names the longest.
    """
    preprocessing = bundle.manifest.preprocessing
    if preprocessing.ragged and sequence_length > preprocessing.longest:
        raise InputError(
            f"the model takes no {preprocessing.noun} of this length",
            where=bundle.source,
            given=f"{sequence_length} {preprocessing.unit}",
            fix=f"use at most {preprocessing.longest}",
        )


def usual_length(bundles: Sequence[Bundle], wanted: int | None = None) -> int:
    """The length of synthetic inputs for bundles that are measured side by side.

    Args:
        bundles: N >= 1.
        wanted: What was asked for, in the unit of their inputs.

    Returns:
        What was asked for, else what is usual and all of them read; `FIXED_SIZE` where the inputs
        of all have one size.

    Raises:
        InputError: One of them does not read inputs that long, or the inputs of all have one size.
    """
    ragged = [each for each in bundles if each.manifest.preprocessing.ragged]
    if not ragged:
        if wanted:
            [noun, *_] = [f"{each.manifest.preprocessing.noun}s" for each in bundles]
            raise InputError(
                f"{noun} all have the size that the model takes: there is no length to choose",
                where=bundles[0].source,
                given=wanted,
                fix="leave the length out",
            )
        return FIXED_SIZE
    if wanted is None:
        usual = max(each.manifest.preprocessing.usual_length for each in ragged)
        return min(usual, *(each.manifest.preprocessing.longest for each in ragged))
    for each in ragged:
        check_length(each, wanted)
    return wanted


def synthetic_feeds(signature: Signature, spec: FeedsSpec) -> Arrays:
    """Make a batch of random values.

    Raises:
        InputError: The model takes an input that its preprocessing does not provide.
    """
    return spec.preprocessing.feeds(synthetic_rows(spec), signature)


def synthetic_rows(spec: FeedsSpec) -> dict[str, list[NDArray[np.generic]]]:
    """Draw random samples; see `targets.preprocessing.Preprocessing.synthetic`."""
    random = np.random.default_rng(spec.seed)
    return spec.preprocessing.synthetic(spec.lengths, num_ids=spec.num_ids, random=random)


def num_token_ids(bundle: Bundle) -> int:
    """How many token ids the model of a bundle knows; 1 where its inputs are no tokens.

    Taken from the option ``vocab_size`` if the target recorded it, else from the tokenizer.

    Raises:
        BundleError: The tokenizer cannot be read.
    """
    recorded = bundle.manifest.options.get("vocab_size")
    if isinstance(recorded, int):
        return recorded
    preprocessing = bundle.manifest.preprocessing
    if not preprocessing.files:
        return 1
    num_ids = preprocessing.open(bundle.folder, source=bundle.source).num_ids
    if num_ids < 1:
        raise BundleError(
            "the tokenizer of the bundle knows no tokens",
            where=bundle.source / preprocessing.files[0],
            fix="build the bundle again",
        )
    return num_ids
