"""Synthetic batches: within the vocabulary, masked where they are padded, the same every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from targets import Bundle, Signature, TensorSpec
from targets.feeds import FeedsSpec, num_token_ids, synthetic_feeds
from targets.preprocessing import TextPreprocessing

NAMES = ("input_ids", "attention_mask", "token_type_ids")
SIGNATURE = Signature(
    inputs=tuple(TensorSpec(name=name, dtype="int64", shape=("N", "L")) for name in NAMES),
    outputs=(),
)


def test_uniform_batch_is_unmasked_and_within_the_vocabulary() -> None:
    feeds = synthetic_feeds(
        SIGNATURE,
        FeedsSpec(
            lengths=(128,) * 4,
            num_ids=50,
            preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
        ),
    )
    SIGNATURE.check(feeds)
    ids = np.asarray(feeds["input_ids"], dtype=np.int64)
    assert ids.shape == (4, 128)
    assert ids.min() >= 1  # 0 is padding
    assert ids.max() == 49
    assert feeds["attention_mask"].all()
    assert not feeds["token_type_ids"].any()


def test_real_lengths_are_padded_and_masked() -> None:
    spec = FeedsSpec(
        lengths=(2, 3), num_ids=50, preprocessing=TextPreprocessing(max_length=512, pad_token_id=7)
    )
    feeds = synthetic_feeds(SIGNATURE, spec)
    assert feeds["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert feeds["input_ids"][0, 2] == 7


def test_same_spec_gives_same_ids_and_another_seed_others() -> None:
    one, same, other = (
        synthetic_feeds(
            SIGNATURE,
            FeedsSpec(
                lengths=(64,),
                num_ids=1000,
                seed=seed,
                preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
            ),
        )["input_ids"]
        for seed in (0, 0, 1)
    )
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize("num_ids", [1, 2])
def test_smallest_vocabularies(num_ids: int) -> None:
    feeds = synthetic_feeds(
        SIGNATURE,
        FeedsSpec(
            lengths=(9,),
            num_ids=num_ids,
            preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
        ),
    )
    assert int(np.asarray(feeds["input_ids"]).max()) < num_ids


def test_number_of_ids_comes_from_the_tokenizer_unless_the_target_recorded_it(
    make_bundle: Callable[..., Path],
) -> None:
    bundle = Bundle.open(make_bundle())
    assert num_token_ids(bundle) == 20
    manifest = bundle.manifest.model_copy(update={"options": {"vocab_size": 12}})
    assert num_token_ids(Bundle(bundle.folder, manifest)) == 12
