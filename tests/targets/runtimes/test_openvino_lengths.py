"""Single texts in OpenVINO run at fixed lengths, and are answered as they are at any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from targets.runtimes._openvino_lengths import LENGTHS, FixedLengths, fixed_lengths
from targets.runtimes.openvino import OpenVINO
from targets.signature import Signature, StateSpec, TensorSpec

LONGEST = 24
WIDTH = 6


def reference(path: Path, feeds: Any) -> Any:
    return ReferenceEvaluator(onnx.load(path)).run(None, feeds)[0]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths for which models are compiled."""
    found: list[int] = []
    compile_ = FixedLengths._made

    def noted(lengths: FixedLengths, length: int) -> Any:
        found.append(length)
        return compile_(lengths, length)

    monkeypatch.setattr(FixedLengths, "_made", noted)
    return found


def spec(name: str, *shape: int | str, dtype: str = "int64") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


TOKENS = (spec("input_ids", "batch", "sequence"), spec("attention_mask", "batch", "sequence"))
LOGITS = (spec("logits", "batch", 3, dtype="float32"),)
TEXT = Signature(inputs=TOKENS, outputs=LOGITS)


@pytest.mark.parametrize(
    ("longest", "size", "lengths"),
    [
        (24, 1, (8, 16, 24)),
        (20, 1, (8, 16, 20)),
        (5, 1, (5,)),
        (512, 1, (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)),
        (4096, 1, (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)),
        (24, 10**8, ()),
    ],
)
def test_lengths_go_up_to_the_longest_text_of_small_models(
    longest: int, size: int, lengths: tuple[int, ...]
) -> None:
    assert fixed_lengths(TEXT, {"sequence": (1, 16, longest)}, size) == lengths
    assert fixed_lengths(TEXT, {}, size) == ()


@pytest.mark.parametrize(
    "signature",
    [
        Signature(inputs=TOKENS[:1], outputs=LOGITS),
        Signature(
            inputs=(spec("pixel_values", "batch", 3, 8, 8, dtype="float32"),), outputs=LOGITS
        ),
        Signature(
            inputs=(spec("input_values", "batch", "sequence", dtype="float32"), TOKENS[1]),
            outputs=LOGITS,
        ),
        Signature(
            inputs=TOKENS,
            outputs=(spec("logits", "batch", "sequence", 50_000, dtype="float32"),),
        ),
        Signature(
            inputs=TOKENS,
            outputs=LOGITS,
            state=(
                StateSpec(name="k", dtype="float32", shape=("batch", "past", 4), output="next"),
            ),
        ),
    ],
    ids=["no mask", "images", "recordings", "language", "state"],
)
def test_other_models_have_no_lengths(signature: Signature) -> None:
    assert fixed_lengths(signature, {"sequence": (1, 16, 24)}, 1) == ()


def test_lengths_may_be_left_out(lower: Callable[..., Any], encoder_path: Path) -> None:
    bundle = lower(OpenVINO(fixed_lengths=False), encoder_path, longest=LONGEST)
    assert LENGTHS not in bundle.manifest.options


@pytest.mark.parametrize("threads", [1, 2])
def test_single_texts_are_answered_as_ever(
    lower: Callable[..., Any],
    encoder_path: Path,
    make_feeds: Callable[..., Any],
    made: list[int],
    threads: int,
) -> None:
    bundle = lower(OpenVINO(), encoder_path, longest=LONGEST)
    assert bundle.manifest.options[LENGTHS] == [8, 16, 24]
    assert "single texts run at fixed lengths: 8, 16, 24 tokens" in bundle.manifest.notes
    session = OpenVINO().load(bundle, threads=threads)
    made.clear()
    for length in (5, 8, 9, 16, 3, 5, 30):
        feeds = make_feeds(batch=1, sequence=length, seed=length)
        expected = reference(encoder_path, feeds)
        np.testing.assert_allclose(session.run(feeds)["logits"], expected, atol=1e-5)
    assert made == [8, 16]  # each when it is needed; one for more than the longest
    feeds = make_feeds(batch=2, sequence=9, seed=3)
    expected = reference(encoder_path, feeds)
    np.testing.assert_allclose(session.run(feeds)["logits"], expected, atol=1e-5)
    assert made == [8, 16]


def test_the_padding_of_a_text_is_that_of_a_shorter_one_before_it(
    lower: Callable[..., Any], encoder_path: Path, make_feeds: Callable[..., Any]
) -> None:
    session = OpenVINO().load(lower(OpenVINO(), encoder_path, longest=LONGEST), threads=1)
    long, short = (make_feeds(batch=1, sequence=length, seed=1) for length in (8, 3))
    first = session.run(short)["logits"]
    kept = first.copy()
    session.run(long)
    np.testing.assert_array_equal(first, kept)  # not overwritten
    np.testing.assert_array_equal(session.run(short)["logits"], kept)


def test_int8_runs_at_fixed_lengths(
    lower: Callable[..., Any],
    int8_path: Path,
    make_feeds: Callable[..., Any],
) -> None:
    free = OpenVINO().load(lower(OpenVINO(), int8_path, "int8", name="free"), threads=1)
    bundle = lower(OpenVINO(), int8_path, "int8", longest=LONGEST)
    assert bundle.manifest.options[LENGTHS] == [8, 16, 24]
    session = OpenVINO().load(bundle, threads=1)
    feeds = make_feeds(batch=1, sequence=11, seed=2)
    expected = free.run(feeds)["logits"]
    np.testing.assert_allclose(session.run(feeds)["logits"], expected, atol=0.05)


def write_tokens(path: Path, *, masks: bool, per_token: bool) -> Path:
    """Embeddings of tokens: each of them, or their sum; with or without those of the padding."""
    table = np.random.default_rng(0).normal(size=(1000, WIDTH)).astype(np.float32)
    shape: list[int | str] = ["batch", "sequence", WIDTH] if per_token else ["batch", WIDTH]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["read"])]
    last = "read"
    nodes += [
        helper.make_node("Cast", ["attention_mask"], ["float_mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["float_mask", "axes"], ["column"]),
    ]
    if masks:
        nodes.append(helper.make_node("Mul", ["read", "column"], ["masked"]))
    else:  # the mask is there, and has no effect
        nodes += [
            helper.make_node("Mul", ["column", "zero"], ["nothing"]),
            helper.make_node("Add", ["read", "nothing"], ["masked"]),
        ]
    last = "masked"
    if per_token:
        nodes.append(helper.make_node("Identity", [last], ["logits"]))
    else:
        nodes.append(helper.make_node("ReduceSum", [last, "token_axis"], ["logits"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "tokens",
        [
            helper.make_tensor_value_info(each.name, TensorProto.INT64, list(each.shape))
            for each in TOKENS
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2]), "axes"),
            numpy_helper.from_array(np.array([1]), "token_axis"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def token_signature(*shape: int | str) -> Signature:
    return Signature(inputs=TOKENS, outputs=(spec("logits", *shape, dtype="float32"),))


def test_answers_of_tokens_end_where_the_text_does(
    lower: Callable[..., Any], make_feeds: Callable[..., Any], tmp_path: Path
) -> None:
    path = write_tokens(tmp_path / "tokens.onnx", masks=True, per_token=True)
    signature = token_signature("batch", "sequence", WIDTH)
    bundle = lower(OpenVINO(), path, signature=signature, longest=LONGEST)
    assert bundle.manifest.options[LENGTHS] == [8, 16, 24]
    assert OpenVINO().runs_alone(bundle)
    feeds = make_feeds(batch=1, sequence=5, seed=0)
    found = OpenVINO().load(bundle, threads=1).run(feeds)["logits"]
    assert found.shape == (1, 5, WIDTH)
    np.testing.assert_allclose(found, reference(path, feeds), atol=1e-5)


def test_a_model_that_looks_across_the_mask_runs_at_the_length_of_the_text(
    lower: Callable[..., Any], tmp_path: Path
) -> None:
    signature = token_signature("batch", WIDTH)
    for masks, name in ((True, "heeds"), (False, "ignores")):
        path = write_tokens(tmp_path / f"{name}.onnx", masks=masks, per_token=False)
        bundle = lower(OpenVINO(), path, name=name, signature=signature, longest=LONGEST)
        assert (LENGTHS in bundle.manifest.options) == masks
        assert OpenVINO().runs_alone(bundle) == masks


def test_a_profile_is_that_of_the_model_that_ran(
    lower: Callable[..., Any], encoder_path: Path, make_feeds: Callable[..., Any], made: list[int]
) -> None:
    bundle = lower(OpenVINO(), encoder_path, longest=LONGEST)
    made.clear()
    single, several = (
        OpenVINO().profile(bundle, make_feeds(batch=count, sequence=8), threads=1, num_runs=3)
        for count in (1, 2)
    )
    assert made == [8]
    assert any(each.op == "FullyConnected" for each in single)
    assert [each.name for each in single] != [each.name for each in several]


def test_a_length_that_cannot_be_compiled_is_left_out(
    lower: Callable[..., Any],
    encoder_path: Path,
    make_feeds: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = OpenVINO().load(lower(OpenVINO(), encoder_path, longest=LONGEST), threads=1)
    tried: list[int] = []

    def fail(_: FixedLengths, length: int) -> Any:
        tried.append(length)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(FixedLengths, "_made", fail)
    for _ in range(2):
        feeds = make_feeds(batch=1, sequence=7, seed=1)
        expected = reference(encoder_path, feeds)
        np.testing.assert_allclose(session.run(feeds)["logits"], expected, atol=1e-5)
    assert tried == [8, 16]  # the next one holds it too


def test_a_bundle_that_is_replaced_stays_what_was_opened(
    lower: Callable[..., Any], encoder_path: Path, make_feeds: Callable[..., Any]
) -> None:
    bundle = lower(OpenVINO(), encoder_path, longest=LONGEST)
    session = OpenVINO().load(bundle, threads=1)
    feeds = make_feeds(batch=1, sequence=7, seed=1)
    expected = reference(encoder_path, feeds)
    shutil.rmtree(bundle.folder)
    np.testing.assert_allclose(session.run(feeds)["logits"], expected, atol=1e-5)


def test_a_small_part_of_a_large_model_is_lowered_as_that() -> None:
    assert OpenVINO().for_size(10**6) == OpenVINO()
    assert OpenVINO().for_size(10**8) == OpenVINO(fixed_lengths=False)


def test_a_closed_session_says_so(
    lower: Callable[..., Any], encoder_path: Path, make_feeds: Callable[..., Any]
) -> None:
    from targets.errors import TargetError

    session = OpenVINO().load(lower(OpenVINO(), encoder_path, longest=LONGEST), threads=1)
    feeds = make_feeds(batch=1, sequence=5, seed=0)
    session.run(feeds)
    session.close()
    with pytest.raises(TargetError, match="the session is closed"):
        session.run(feeds)
