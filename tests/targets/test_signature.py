"""What a session takes: each mismatch is named with what was given and what to pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from targets.errors import InputError
from targets.signature import Signature, TensorSpec


def spec(name: str, *shape: int | str, dtype: str = "int64") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


TEXT = Signature(
    inputs=(spec("ids", "batch", "sequence"), spec("mask", "batch", "sequence")),
    outputs=(spec("logits", "batch", 3, dtype="float32"),),
)


def feeds(**changes: Any) -> dict[str, Any]:
    given = {"ids": np.zeros((2, 5), np.int64), "mask": np.ones((2, 5), np.int64)} | changes
    return {name: array for name, array in given.items() if array is not None}


def refusal(given: dict[str, Any], signature: Signature = TEXT) -> InputError:
    with pytest.raises(InputError) as caught:
        signature.check(given)
    assert caught.value.exit_code == 3
    return caught.value


def test_matching_feeds_pass_in_any_order() -> None:
    TEXT.check(feeds())
    TEXT.check(dict(reversed(feeds().items())))
    TEXT.check(feeds(ids=np.zeros((2, 5), np.int64).T.copy().T))


def test_free_dimensions_are_named_once_in_order() -> None:
    assert TEXT.free_dimensions == ("batch", "sequence")
    assert Signature(inputs=(spec("a", 1, 3),), outputs=()).free_dimensions == ()


def test_a_missing_input_is_named() -> None:
    error = refusal(feeds(mask=None))
    assert error.what == "input 'mask' is missing"
    assert error.given == "ids"
    assert error.fix == "pass ids, mask"
    assert refusal({}).given == "no inputs"


def test_unknown_inputs_are_named() -> None:
    error = refusal(feeds(extra=np.zeros(1), more=np.zeros(1)))
    assert error.what == "unknown input 'extra', 'more'"
    assert error.fix == "pass only ids, mask"


@pytest.mark.parametrize("dtype", [np.int32, np.float32, bool, np.uint64])
def test_another_type_is_named(dtype: Any) -> None:
    error = refusal(feeds(mask=np.ones((2, 5), dtype)))
    assert error.what == "input 'mask' has the wrong type"
    assert error.given == np.dtype(dtype).name
    assert error.fix == "pass int64"


@pytest.mark.parametrize("value", [[[1, 2]], 3, "text"])
def test_what_is_no_array_is_named(value: Any) -> None:
    error = refusal(feeds(ids=value))
    assert error.what == "input 'ids' is not an array"
    assert error.given == type(value).__name__
    assert error.fix == "pass a numpy array of int64"


@pytest.mark.parametrize("shape", [(5,), (2, 5, 1), ()])
def test_another_number_of_dimensions(shape: tuple[int, ...]) -> None:
    error = refusal(feeds(ids=np.zeros(shape, np.int64)))
    assert error.what == "input 'ids' has the wrong shape"
    assert error.given == str(shape)
    assert error.fix == "pass (batch, sequence)"


def test_dimensions_of_one_name_have_one_size() -> None:
    error = refusal(feeds(mask=np.ones((2, 4), np.int64)))
    assert error.what == "input 'mask' has the wrong shape"
    assert error.fix == "pass (batch, sequence) with {'batch': 2, 'sequence': 5}"
    square = Signature(inputs=(spec("a", "n", "n"),), outputs=())
    square.check({"a": np.zeros((3, 3), np.int64)})
    assert "wrong shape" in refusal({"a": np.zeros((3, 4), np.int64)}, square).what


def test_fixed_dimensions_are_compared() -> None:
    signature = Signature(inputs=(spec("a", "batch", 128),), outputs=())
    signature.check({"a": np.zeros((7, 128), np.int64)})
    error = refusal({"a": np.zeros((7, 100), np.int64)}, signature)
    assert error.fix == "pass (batch, 128)"


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_empty_arrays_are_refused_without_taking_their_size_for_wanted(
    shape: tuple[int, int],
) -> None:
    error = refusal(feeds(ids=np.zeros(shape, np.int64), mask=np.zeros(shape, np.int64)))
    assert error.given == str(shape)
    assert error.fix == "pass (batch, sequence)"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_two_inputs_fit_when_their_sizes_are_equal(sizes: list[int]) -> None:
    a, b, c, d = sizes
    given = feeds(ids=np.zeros((a, b), np.int64), mask=np.zeros((c, d), np.int64))
    if (a, b) == (c, d):
        TEXT.check(given)
    else:
        refusal(given)


def test_a_signature_survives_a_round_trip_and_is_frozen() -> None:
    assert Signature.model_validate_json(TEXT.model_dump_json()) == TEXT
    with pytest.raises(ValidationError):
        TEXT.inputs = ()  # type: ignore[misc]
    with pytest.raises(ValidationError):
        TensorSpec.model_validate({"name": "a", "dtype": "int64", "shape": (1,), "more": 1})
