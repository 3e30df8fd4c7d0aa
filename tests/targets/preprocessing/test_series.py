"""Signals are read from every form they come in, and what is none is refused in words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from targets import Signature, TensorSpec
from targets.errors import InputError
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import KINDS, AnyPreprocessing, SeriesPreprocessing

VALUES = "past_values"
WANTED = SeriesPreprocessing(length=3, channels=2)
SIGNAL = [[0.5, 1.0], [2.0, -3.25], [4.0, 5.0]]


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def signature(name: str = VALUES) -> Signature:
    return Signature(
        inputs=(TensorSpec(name=name, dtype="float32", shape=("batch", 3, 2)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
    )


def read(*values: Any, preprocessing: SeriesPreprocessing = WANTED) -> list[NDArray[Any]]:
    return list(preprocessing.open(Path()).encode(values).rows[VALUES])


def refusal(value: Any, preprocessing: SeriesPreprocessing = WANTED) -> InputError:
    with pytest.raises(InputError) as caught:
        read(value, preprocessing=preprocessing)
    return caught.value


def test_every_form_of_a_signal_gives_the_same_row(tmp_path: Path) -> None:
    path = tmp_path / "signal.npy"
    path.write_bytes(npy(np.array(SIGNAL)))
    forms = [SIGNAL, np.array(SIGNAL), path, str(path), path.read_bytes(), np.float16(SIGNAL)]
    for row in read(*forms):
        assert row.dtype == np.float32
        np.testing.assert_array_equal(row, np.array(SIGNAL, np.float32))


def test_one_channel_needs_no_list_of_its_own() -> None:
    one = SeriesPreprocessing(length=3)
    flat, nested = read([1, 2, 3], [[1], [2], [3]], preprocessing=one)
    np.testing.assert_array_equal(flat, nested)
    assert flat.shape == (3, 1)


def test_batches_have_the_values_as_they_are() -> None:
    rows = read(SIGNAL, np.zeros((3, 2)))
    feeds = WANTED.feeds({VALUES: rows}, signature())
    assert feeds[VALUES].shape == (2, 3, 2)
    assert feeds[VALUES].dtype == np.float32
    np.testing.assert_array_equal(feeds[VALUES][0], np.array(SIGNAL))
    with pytest.raises(InputError, match="takes an input 'mask', which signal does not provide"):
        WANTED.feeds({VALUES: rows}, signature("mask"))


def test_a_pack_of_signals_comes_back_equal(tmp_path: Path) -> None:
    pack = EvaluationPack.from_rows({VALUES: read(SIGNAL, SIGNAL)}, [1, 0], preprocessing=WANTED)
    pack.save(tmp_path / "pack.safetensors")
    found = EvaluationPack.load(tmp_path / "pack.safetensors")
    assert found.preprocessing == WANTED
    np.testing.assert_array_equal(found.inputs[VALUES], pack.inputs[VALUES])


def test_synthetic_signals_have_the_size_of_the_model() -> None:
    rows = WANTED.synthetic((0, 0), num_ids=1, random=np.random.default_rng(0))[VALUES]
    assert [row.shape for row in rows] == [(3, 2)] * 2
    assert np.std(np.stack(rows)) > 0.3


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (SIGNAL[:2], "2 points in time of 2 channels"),
        ([*SIGNAL, [0, 0]], "4 points in time of 2 channels"),
        ([1.0, 2.0, 3.0], "3 points in time of 1 channels"),
    ],
)
def test_another_size_is_refused(value: Any, given: str) -> None:
    error = refusal(value)
    assert "another length or another number of channels than the model reads" in error.what
    assert error.given == given
    assert "pass 3 points in time of 2 channels" in str(error.fix)
    assert error.where == "signals[0]"


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (7, "int 7"),
        ({"a": 1}, "dict {'a': 1}"),
        ([[1, 2], [3]], "lists of different lengths"),
        ([["1", "2"]], "<U1 of shape (1, 2)"),
        ([], "float64 of shape (0,)"),
        (np.zeros((3, 2, 1)), "float64 of shape (3, 2, 1)"),
        (np.zeros((3, 2), complex), "complex128 of shape (3, 2)"),
        (np.zeros((3, 2), bool), "bool of shape (3, 2)"),
    ],
)
def test_what_is_no_signal_is_refused(value: Any, given: str) -> None:
    error = refusal(value)
    assert error.what == "this is not a signal"
    assert error.given == given
    assert "(length, channels)" in str(error.fix)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_missing_values_are_refused(wrong: float) -> None:
    values = np.zeros((3, 2))
    values[1, 0] = wrong
    error = refusal(values)
    assert error.what == "the signal has values that are missing or infinite"
    assert error.given == "1 of 6"


@pytest.mark.parametrize(
    ("content", "given"),
    [
        (b"", "EOF"),
        (b"1, 2, 3\n4, 5, 6\n", "magic string"),
        (npy(np.zeros((3, 2)))[:-8], ""),
        (npy(np.array([{}, 1], dtype=object)), "allow_pickle=False"),
        (npy(np.zeros((3, 2))).replace(b"}", b" ", 1), "EOF in multi-line statement"),
        (npy(np.zeros((3, 2))).replace(b"descr", b"de\\cr", 1), ""),
    ],
    ids=["empty", "text", "truncated", "objects", "header", "escape"],
)
def test_files_that_are_damaged_or_hold_objects_are_refused(
    tmp_path: Path, content: bytes, given: str
) -> None:
    path = tmp_path / "signal.npy"
    path.write_bytes(content)
    for value, where in ((path, str(path)), (content, "signals[0]")):
        error = refusal(value)
        assert error.what == "the array cannot be read"
        assert error.where == where
        assert given in str(error.given)
        assert "numpy.save" in str(error.fix)


def test_absent_files_are_told(tmp_path: Path) -> None:
    assert "No such file" in str(refusal(tmp_path / "absent.npy").given)


def test_a_single_signal_is_put_into_a_list() -> None:
    with pytest.raises(InputError, match="takes a list of signals"):
        WANTED.open(Path()).encode("signal.npy")


def test_manifests_name_the_size() -> None:
    adapter: TypeAdapter[AnyPreprocessing] = TypeAdapter(AnyPreprocessing)
    found = adapter.validate_python({"kind": "series", "length": 3, "channels": 2})
    assert found == WANTED
    for wrong in ({"length": 0}, {"length": 3, "channels": 0}, {"length": 3, "extra": 1}):
        with pytest.raises(ValidationError):
            adapter.validate_python({"kind": "series", **wrong})


def test_kinds_are_those_of_the_union() -> None:
    assert KINDS["series"] is SeriesPreprocessing
    assert {"text", "image", "audio", "series"} <= set(KINDS)
    assert all(each.model_fields["kind"].default == kind for kind, each in KINDS.items())
