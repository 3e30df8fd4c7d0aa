"""Int8 products and attention as ONNX Runtime's own operators, against the graph without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from transformers import AlbertConfig, AlbertForSequenceClassification

from compressor.export import export_onnx
from compressor.lowering import _source
from compressor.model import OnnxModel, TorchModel
from compressor.passes.base import PassContext
from compressor.passes.export import Export
from compressor.passes.quantize import Quantize
from compressor.quantization import quantize_static
from compressor.tasks import get_task
from targets import qdq
from targets.base import Source
from targets.fused import ATTENTION, PRODUCT, fuse_attention, fuse_products
from targets.runtimes.onnxruntime import OnnxRuntime
from tests.compressor.conftest import IMAGE_SIZE, make_vision
from tests.compressor.test_export import MAKERS, SIGNATURE, make_model
from tests.compressor.writers import make_splits, make_writer

HEADS = {"bert": [4], "resized": [1, 3], "roberta": [4], "distilbert": [4]}


def feeds(*lengths: int, seed: int = 0) -> dict[str, Any]:
    """Rows that are padded to the longest."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(2, 60, mask.shape)
    return {"input_ids": np.where(mask == 1, ids, 1), "attention_mask": mask}


def make_int8(family: str, folder: Path) -> onnx.ModelProto:
    """A small network in Q/DQ form, with the uint8 activations that ONNX Runtime multiplies."""
    export_onnx(make_model(family), SIGNATURE, folder / "float.onnx")
    batches = [feeds(20, 7, 12, seed=seed) for seed in range(4)]
    quantize_static(folder / "float.onnx", folder / "int8.onnx", batches, weight_bits=7)
    model = onnx.load(folder / "int8.onnx")
    qdq.activations_to_uint8(model)
    return model


def answers(model: onnx.ModelProto, *rows: dict[str, Any]) -> list[Any]:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        settings,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["MatMulAddFusion"],
    )
    return [session.run(None, each)[0] for each in rows]


def types(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    return found


@pytest.mark.parametrize("family", MAKERS)
def test_what_is_fused_gives_the_same(family: str, tmp_path: Path) -> None:
    plain = make_int8(family, tmp_path)
    products = copied(plain)
    before = types(plain)
    inside = 2 * len(HEADS[family])  # of scores and of what is mixed: no weights
    assert fuse_products(products) == before["MatMul"] - inside
    whole = copied(products)
    assert fuse_attention(whole) == len(HEADS[family])
    found = types(whole)
    assert (found["Softmax"], found["MatMul"], found["DequantizeLinear"]) == (0, 0, 0)
    assert found[PRODUCT] == types(products)[PRODUCT] - 3 * len(HEADS[family])
    heads = [
        attribute.i
        for node in whole.graph.node
        for attribute in node.attribute
        if attribute.name == "num_heads"
    ]
    assert heads == HEADS[family]
    # One row is padding alone: each of its tokens attends to all.
    rows = [feeds(9), feeds(20, 3, 0, 11, seed=5), feeds(1, seed=6)]
    for ours, theirs in zip(answers(whole, *rows), answers(plain, *rows), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(answers(products, *rows), answers(plain, *rows), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    read = {name for node in whole.graph.node for name in node.input}
    assert {tensor.name for tensor in whole.graph.initializer} <= read
    onnx.checker.check_model(plain)


def constant_of(model: onnx.ModelProto, kind: str) -> onnx.TensorProto:
    """A constant that the first node of a kind reads behind what it computes."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = (
        constants[name]
        for node in model.graph.node
        if node.op_type == kind and "self" in node.name
        for name in node.input
        if name in constants
    )
    return next(found)


def scale_scores(model: onnx.ModelProto) -> None:
    tensor = constant_of(model, "Mul")
    other = numpy_helper.to_array(tensor) * np.float32(1.5)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(other, np.float32), tensor.name))


def read_weights_twice(model: onnx.ModelProto) -> None:
    """What attention gives before it is projected is an answer too."""
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    model.graph.output.append(onnx.ValueInfoProto(name=softmax.output[0]))


def mask_queries(model: onnx.ModelProto) -> None:
    """What is added is one number for each query, which changes nothing."""
    node = next(node for node in model.graph.node if node.op_type == "Unsqueeze")
    tensor = next(each for each in model.graph.initializer if each.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(np.array([1, 3]), tensor.name))


def mask_by_something_else(model: onnx.ModelProto) -> None:
    """What masks is no input of zeros and ones any more."""
    for node in model.graph.node:
        if node.op_type == "Sub":
            node.op_type = "Add"


@pytest.mark.parametrize(
    "change", [scale_scores, read_weights_twice, mask_by_something_else, mask_queries],
    ids=["another scale", "scores that are read", "another mask", "masked queries"],
)  # fmt: skip
def test_attention_of_another_kind_stays_as_it_is(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = make_int8("bert", tmp_path)
    change(model)
    plain = copied(model)
    fuse_products(model)
    before = model.SerializeToString()
    assert fuse_attention(model) == 0
    assert model.SerializeToString() == before
    rows = [feeds(9, 4)]
    np.testing.assert_allclose(answers(model, *rows)[0], answers(plain, *rows)[0], atol=1e-4)


def test_a_product_that_is_read_without_its_bias_keeps_it_apart(tmp_path: Path) -> None:
    model = make_int8("bert", tmp_path)
    product = next(
        node for node in model.graph.node if node.op_type == "MatMul" and "key" in node.name
    )
    model.graph.output.append(onnx.ValueInfoProto(name=product.output[0]))
    plain = copied(model)
    assert fuse_products(model) == types(plain)["MatMul"] - 2
    apart = [node for node in model.graph.node if product.output[0] in node.input]
    assert [node.op_type for node in apart] == ["Add"]
    assert fuse_attention(model) == 0
    rows = [feeds(9, 4)]
    np.testing.assert_allclose(answers(model, *rows)[0], answers(plain, *rows)[0], atol=1e-4)


def test_a_network_in_floats_has_nothing_to_fuse(tmp_path: Path) -> None:
    export_onnx(make_model("bert"), SIGNATURE, tmp_path / "float.onnx")
    model = onnx.load(tmp_path / "float.onnx")
    before = model.SerializeToString()
    assert (fuse_products(model), fuse_attention(model)) == (0, 0)
    assert ATTENTION not in types(model)
    assert model.SerializeToString() == before


def test_a_network_that_sees_has_no_mask(tmp_path: Path) -> None:
    vit = make_vision("vit")
    images = np.random.default_rng(0).normal(size=(4, 3, IMAGE_SIZE, IMAGE_SIZE))
    batch = {"pixel_values": images.astype(np.float32)}
    signature = get_task(vit.task).signature(vit)
    export_onnx(vit, signature, tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", [batch], weight_bits=7)
    plain = onnx.load(tmp_path / "int8.onnx")
    qdq.activations_to_uint8(plain)
    whole = copied(plain)
    fuse_products(whole)
    assert fuse_attention(whole) == types(plain)["Softmax"] > 0
    np.testing.assert_allclose(
        answers(whole, batch)[0], answers(plain, batch)[0], rtol=1e-4, atol=1e-4
    )


def test_a_constant_that_is_no_bias_is_not_fused(tmp_path: Path) -> None:
    """Such as one number for all columns."""
    model = make_int8("bert", tmp_path)
    add = next(
        node for node in model.graph.node if node.op_type == "Add" and "output.dense" in node.name
    )
    names = {tensor.name: tensor for tensor in model.graph.initializer}
    [bias] = [names[name] for name in add.input if name in names]
    bias.CopyFrom(numpy_helper.from_array(np.array([0.5], np.float32), bias.name))
    plain = copied(model)
    fuse_products(model)
    assert any(add.output[0] in node.output and node.op_type == "Add" for node in model.graph.node)
    rows = [feeds(9, 4)]
    np.testing.assert_allclose(answers(model, *rows)[0], answers(plain, *rows)[0], atol=1e-4)


def test_layers_that_share_their_weights_still_do(tmp_path: Path) -> None:
    config = AlbertConfig(
        vocab_size=60, embedding_size=16, hidden_size=32, num_attention_heads=4,
        num_hidden_layers=3, intermediate_size=48, max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    albert = TorchModel(
        AlbertForSequenceClassification(config).eval(), None, "text-classification", 32
    )
    export_onnx(albert, SIGNATURE, tmp_path / "float.onnx")
    batches = [feeds(20, 7, 12, seed=seed) for seed in range(4)]
    quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", batches, weight_bits=7)
    plain = onnx.load(tmp_path / "int8.onnx")
    qdq.activations_to_uint8(plain)
    whole = copied(plain)
    fuse_products(whole)
    assert fuse_attention(whole) == 3
    joined = [each for each in whole.graph.initializer if list(each.dims) == [32, 3 * 32]]
    assert len(joined) == 1
    rows = [feeds(9, 4)]
    np.testing.assert_allclose(answers(whole, *rows)[0], answers(plain, *rows)[0], atol=1e-4)


@pytest.mark.parametrize(("bits", "device", "is_fused"), [(7, "cpu", True), (8, "cpu", False)])
def test_lowering_fuses_where_no_sum_overflows(
    tmp_path: Path, bits: Any, device: Any, is_fused: bool
) -> None:
    export_onnx(make_model("bert"), SIGNATURE, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", [feeds(20, 7)], weight_bits=bits
    )
    made = tmp_path / "made"
    made.mkdir()
    source = Source(tmp_path / "int8.onnx", SIGNATURE, precision="int8")
    lowered = OnnxRuntime(device=device).lower(source, made)
    found = types(onnx.load(made / lowered.model))
    assert (found[ATTENTION] > 0, found[PRODUCT] > 0) == (is_fused, is_fused)
    assert any("times attention" in note for note in lowered.notes) == is_fused


@pytest.mark.parametrize("family", ["bart", "marian", "t5", "whisper"])
def test_what_writes_is_lowered_in_int8_of_seven_bits(family: str, tmp_path: Path) -> None:
    model = make_writer(family)
    context = PassContext(
        splits=make_splits(model.task), load_original=lambda: model, seed=0, folder=tmp_path
    )
    exported = Export(max_batch=4).run(model, context).model
    int8 = Quantize(method="static", weight_bits=7).run(exported, context).model
    assert isinstance(int8, OnnxModel)
    made = tmp_path / "made"
    made.mkdir()
    int8.save(int8.folder)
    source = _source(int8, int8.folder)
    lowered = OnnxRuntime().lower(source, made)
    assert lowered.encoder is not None
    kinds = types(onnx.load(made / lowered.model)) + types(onnx.load(made / lowered.encoder))
    assert kinds[PRODUCT] > 0
    for part in (lowered.model, lowered.encoder):
        onnxruntime.InferenceSession(str(made / part), providers=["CPUExecutionProvider"])
