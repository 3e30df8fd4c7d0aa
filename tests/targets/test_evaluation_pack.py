"""An evaluation pack: ragged samples in one file, batched, and back in their order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from targets import Arrays, Signature, TensorSpec
from targets.errors import InputError
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import TextPreprocessing

ROWS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=20)


def signature(*inputs: str, dtype: str = "int64") -> Signature:
    names = inputs or ("input_ids", "attention_mask", "token_type_ids")
    return Signature(
        inputs=tuple(TensorSpec(name=name, dtype=dtype, shape=("N", "L")) for name in names),
        outputs=(
            TensorSpec(name="total", dtype="int64", shape=("N", 1)),
            TensorSpec(name="tokens", dtype="int64", shape=("N", "L")),
        ),
    )


def pack_of(rows: list[list[int]], pad: int = 0) -> EvaluationPack:
    return EvaluationPack.from_rows(
        {"input_ids": rows},
        [0] * len(rows),
        preprocessing=TextPreprocessing(max_length=512, pad_token_id=pad),
    )


def answer(feeds: Arrays) -> Arrays:
    ids = np.asarray(feeds["input_ids"], dtype=np.int64)
    masked = ids * np.asarray(feeds["attention_mask"], dtype=np.int64)
    return {"total": masked.sum(axis=1, keepdims=True), "tokens": ids}


@given(ROWS, st.integers(1, 25), st.integers(0, 200))
def test_outputs_come_back_in_the_order_of_the_samples(
    rows: list[list[int]], batch_size: int, pad: int
) -> None:
    pack = pack_of(rows, pad)
    answers = [(batch, answer(batch.feeds)) for batch in pack.batches(batch_size, signature())]
    outputs = pack.restore(answers, signature())
    assert outputs["total"].tolist() == [[sum(row)] for row in rows]
    assert outputs["tokens"].tolist() == [value for row in rows for value in row]


@given(ROWS, st.integers(1, 25))
def test_batches_hold_every_sample_once_and_fall_in_length(
    rows: list[list[int]], batch_size: int
) -> None:
    batches = list(pack_of(rows).batches(batch_size, signature()))
    indices = [index for batch in batches for index in batch.indices]
    assert sorted(indices) == list(range(len(rows)))
    lengths = [len(rows[index]) for index in indices]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(batch.indices) <= batch_size for batch in batches)


def test_padding_and_the_inputs_that_follow_from_the_ids() -> None:
    pack = pack_of([[5, 6, 7], [8]], pad=1)
    (batch,) = pack.batches(2, signature())
    assert batch.feeds["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch.feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.feeds["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_inputs_of_the_pack_win_over_derived_ones_and_are_padded_with_zero() -> None:
    rows = {"input_ids": [[5, 6], [8]], "token_type_ids": [[0, 1], [1]]}
    pack = EvaluationPack.from_rows(
        rows, [0, 0], preprocessing=TextPreprocessing(max_length=512, pad_token_id=1)
    )
    (batch,) = pack.batches(2, signature())
    assert batch.feeds["token_type_ids"].tolist() == [[0, 1], [1, 0]]


def test_feeds_have_the_inputs_and_types_of_the_signature() -> None:
    wanted = signature("input_ids", dtype="int32")
    (batch,) = pack_of([[1, 2]]).batches(1, wanted)
    assert list(batch.feeds) == ["input_ids"]
    assert batch.feeds["input_ids"].dtype == np.int32


def test_input_that_text_does_not_provide() -> None:
    with pytest.raises(InputError, match="'pixel_values', which text does not provide"):
        next(pack_of([[1]]).batches(1, signature("input_ids", "pixel_values")))


def test_pack_survives_its_file(tmp_path: Path) -> None:
    rows = {"input_ids": [[5, 6], [8]], "token_type_ids": [[0, 1], [1]]}
    pack = EvaluationPack.from_rows(
        rows, np.array([0.5, 1.5]), preprocessing=TextPreprocessing(max_length=512, pad_token_id=7)
    )
    pack.save(tmp_path / "pack.safetensors")
    loaded = EvaluationPack.load(tmp_path / "pack.safetensors")
    assert loaded.preprocessing == pack.preprocessing
    assert loaded.lengths.tolist() == [2, 1]
    assert loaded.labels.tolist() == [0.5, 1.5]
    assert {name: flat.tolist() for name, flat in loaded.inputs.items()} == {
        "input_ids": [5, 6, 8],
        "token_type_ids": [0, 1, 1],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["pack.safetensors"]


def test_the_same_pack_is_the_same_file(tmp_path: Path) -> None:
    written = set()
    for _ in range(16):
        pack_of([[5, 6], [8]], pad=7).save(tmp_path / "pack.safetensors")
        written.add((tmp_path / "pack.safetensors").read_bytes())
    assert len(written) == 1


def test_file_that_is_no_pack(tmp_path: Path) -> None:
    path = tmp_path / "pack.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not an evaluation pack") as caught:
        EvaluationPack.load(path)
    assert caught.value.where == str(path)


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an evaluation pack"):
        EvaluationPack.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ({"other": [[1]]}, [0], "needs 'input_ids'"),
        ({"input_ids": [[1], []]}, [0, 0], "at least one token"),
        ({"input_ids": []}, [], "at least one token"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0]]}, [0], "'token_type_ids' does not fit"),
        ({"input_ids": [[1, 2]]}, [0, 1, 2], "labels do not fit"),
    ],
)
def test_arrays_that_do_not_fit_together(
    rows: dict[str, list[list[int]]], labels: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        EvaluationPack.from_rows(
            rows, labels, preprocessing=TextPreprocessing(max_length=512, pad_token_id=0)
        )


def test_a_sample_may_have_several_labels(tmp_path: Path) -> None:
    pack = EvaluationPack.from_rows(
        {"input_ids": [[1, 2], [3], [4, 5]]},
        [np.array([0, 1]), np.array([-100]), np.array([2])],
        preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
    )
    pack.save(tmp_path / "pack.safetensors")
    for each in (pack, EvaluationPack.load(tmp_path / "pack.safetensors")):
        assert each.labels.tolist() == [0, 1, -100, 2]
        assert each.label_rows.tolist() == [0, 0, 1, 2]
        assert each.head(2).labels.tolist() == [0, 1, -100]
        assert each.head(2).label_rows.tolist() == [0, 0, 1]


def test_integers_are_stored_with_few_bits_and_read_with_64(tmp_path: Path) -> None:
    rows = {"input_ids": [[2, 30_000, 3], [2, 70_000]], "token_type_ids": [[0, 0, 1], [0, 0]]}
    pack = EvaluationPack.from_rows(
        {name: [np.array(each) for each in row] for name, row in rows.items()},
        [np.array([0, -100, 1]), np.array([1])],
        preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
    )
    path = tmp_path / "pack.safetensors"
    pack.save(path)
    with safe_open(path, framework="numpy") as stream:
        stored = {name: str(stream.get_tensor(name).dtype) for name in stream.keys()}  # noqa: SIM118
    assert stored == {
        "input.input_ids": "uint32",
        "input.token_type_ids": "uint8",
        "lengths": "uint8",
        "labels": "int8",
        "label_counts": "uint8",
    }
    again = EvaluationPack.load(path)
    for name, values in pack.inputs.items():
        assert again.inputs[name].dtype == np.int64
        np.testing.assert_array_equal(again.inputs[name], values)
    assert again.labels.tolist() == [0, -100, 1, 1]
    assert again.labels.dtype == again.lengths.dtype == np.int64
    assert again.label_rows.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(("version", "labels"), [(3, [1, 0]), (3, [1, 0, 2]), (4, [1, 0])])
def test_a_pack_of_a_version_before_has_one_label_a_sample_or_a_token(
    version: int, labels: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "pack.safetensors"
    preprocessing = TextPreprocessing(max_length=512, pad_token_id=0)
    header = {"schema_version": version, "preprocessing": preprocessing.model_dump(mode="json")}
    arrays = {
        "input.input_ids": np.array([7, 8, 9]),
        "lengths": np.array([2, 1]),
        "labels": np.array(labels),
    }
    path.write_bytes(save(arrays, {"evaluation_pack": json.dumps(header)}))
    pack = EvaluationPack.load(path)
    assert pack.labels.tolist() == labels
    assert pack.label_rows.tolist() == [[0, 1], [0, 0, 1]][len(labels) - 2]
