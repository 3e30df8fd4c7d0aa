from __future__ import annotations

import copy
import gc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from compressor.errors import PassError
from compressor.export import MASK_VALUE, InputForm, export_onnx, to_onnx
from compressor.model import TorchModel
from compressor.parity import open_session
from targets.encoder import set_head_counts
from targets.signature import Signature, TensorSpec

FREE = ("batch", "sequence")
SIGNATURE = Signature(
    inputs=tuple(
        TensorSpec(name=name, dtype="int64", shape=FREE) for name in ("input_ids", "attention_mask")
    ),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
)
SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "initializer_range": 0.3,
}
ALLOWED = {
    "Add", "Cast", "Gather", "Gelu", "Gemm", "LayerNormalization", "MatMul", "Mul", "Range",
    "Reshape", "Shape", "Softmax", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
}  # fmt: skip


def resized_bert() -> nn.Module:
    """A BERT whose layers have other numbers of heads and widths than the config says."""
    module = BertForSequenceClassification(BertConfig(**SMALL))
    for layer, heads, width in zip(module.bert.encoder.layer, (1, 3), (8, 40), strict=True):
        attention = layer.attention
        for name in ("query", "key", "value"):
            setattr(attention.self, name, nn.Linear(32, 8 * heads))
        attention.output.dense = nn.Linear(8 * heads, 32)
        layer.intermediate.dense, layer.output.dense = nn.Linear(32, width), nn.Linear(width, 32)
    set_head_counts(module, 8)
    return module


def distilbert() -> nn.Module:
    config = DistilBertConfig(
        vocab_size=60, dim=32, n_layers=1, n_heads=4, hidden_dim=48, max_position_embeddings=40,
        pad_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    return DistilBertForSequenceClassification(config)


MAKERS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**{**SMALL, "num_hidden_layers": 1})),
    "resized": resized_bert,
    "roberta": lambda: RobertaForSequenceClassification(
        RobertaConfig(**{**SMALL, "num_hidden_layers": 1})
    ),
    "distilbert": distilbert,
}


def make_model(family: str = "bert", tokenizer: Any = None) -> TorchModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MAKERS[family]().eval()
        for parameter in module.parameters():
            if parameter.dim() == 1:  # nothing that is all zero or one: it would be folded away
                nn.init.normal_(parameter, 0.5)
    return TorchModel(module, tokenizer, "text-classification", 32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TorchModel, Path, Any]]:
    made = {}
    for family in MAKERS:
        model = make_model(family)
        path = tmp_path_factory.mktemp(family) / "model.onnx"
        made[family] = (model, path, export_onnx(model, SIGNATURE, path))
    return made


every_family = pytest.mark.parametrize("family", MAKERS)
SHAPES = [(1, 1), (1, 9), (3, 8), (2, 32), (7, 5)]


@every_family
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_computes_what_torch_computes(
    family: str, shape: tuple[int, int], exported: dict[str, tuple[TorchModel, Path, Any]]
) -> None:
    model, path, _ = exported[family]
    generator = np.random.default_rng(3)
    ids = generator.integers(2, 60, shape)
    mask = np.ones(shape, np.int64)
    lengths = generator.integers(1, shape[1] + 1, shape[0])
    for row, length in enumerate(lengths):
        mask[row, length:], ids[row, length:] = 0, 1
    (found,) = open_session(path).run(None, {"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        expected = model.module(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        ).logits
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@every_family
def test_a_row_of_padding_only_is_finite_and_leaves_the_others_alone(
    family: str, exported: dict[str, tuple[TorchModel, Path, Any]]
) -> None:
    session = open_session(exported[family][1])
    ids, mask = np.full((2, 6), 1), np.zeros((2, 6), np.int64)
    ids[0], mask[0] = np.arange(6) + 5, 1
    (both,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    (alone,) = session.run(None, {"input_ids": ids[:1], "attention_mask": mask[:1]})
    assert np.isfinite(both).all()
    np.testing.assert_allclose(both[:1], alone, atol=1e-5)


@every_family
def test_every_family_gets_the_small_graph(
    family: str, exported: dict[str, tuple[TorchModel, Path, Any]]
) -> None:
    network, path, form = exported[family]
    num_layers = network.module.config.num_hidden_layers
    first = 2 if family == "roberta" else 0  # RoBERTa counts from behind the padding token
    assert form == InputForm(True, first, one_token_type=family != "distilbert")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    types = Counter(node.op_type for node in model.graph.node)
    relu = {"Relu"} if family == "distilbert" else set()
    assert set(types) <= ALLOWED | relu
    assert types["Transpose"] == 4 * num_layers  # queries, keys, values and context
    assert types["Reshape"] == 4 * num_layers
    assert types["Cast"] == types["Shape"] == 1  # mask to float; the number of positions


def test_standard_operators_of_the_opset_asked_for_and_no_others(
    exported: dict[str, tuple[TorchModel, Path, Any]],
) -> None:
    for _, path, _ in exported.values():
        model = onnx.load(path)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 21)]
        assert not model.functions
        assert all(node.domain == "" for node in model.graph.node)


def test_inputs_and_outputs_are_those_of_the_signature(
    exported: dict[str, tuple[TorchModel, Path, Any]],
) -> None:
    graph = onnx.load(exported["bert"][1]).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "logits": ["batch", 2],
    }


@every_family
def test_weights_have_the_names_of_the_torch_parameters(
    family: str, exported: dict[str, tuple[TorchModel, Path, Any]]
) -> None:
    model, path, _ = exported[family]
    arrays = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer
    }
    parameters = dict(model.module.named_parameters())
    unused = {name for name in parameters if "token_type_embeddings" in name}  # folded to one row
    assert set(parameters) - unused <= set(arrays)
    for name in set(parameters) & set(arrays):
        weight = parameters[name].detach().numpy()
        stored = arrays[name] if arrays[name].shape == weight.shape else arrays[name].T
        assert np.array_equal(stored, weight) or np.array_equal(stored.T, weight)


def test_nodes_have_the_names_of_the_modules_they_come_from(
    exported: dict[str, tuple[TorchModel, Path, Any]],
) -> None:
    names = [node.name for node in onnx.load(exported["bert"][1]).graph.node]
    assert len(set(names)) == len(names)
    assert "bert.encoder.layer.0.attention.self.query.MatMul" in names
    assert "bert.embeddings.word_embeddings.Gather" in names


def test_the_file_tells_nothing_of_the_machine(
    exported: dict[str, tuple[TorchModel, Path, Any]],
) -> None:
    for _, path, _ in exported.values():
        model = onnx.load(path)
        assert not model.metadata_props
        assert not model.graph.value_info
        nodes = [*model.graph.node, *model.graph.initializer, *model.graph.input]
        assert not any(each.metadata_props or each.doc_string for each in nodes)
        content = path.read_bytes()
        for trace in (b".py", b"/home", b"/root", b"File ", b"network."):
            assert trace not in content


def test_the_model_stays_as_it_is_and_gives_the_same_bytes_again(
    tmp_path: Path, exported: dict[str, tuple[TorchModel, Path, Any]]
) -> None:
    model, path, _ = exported["bert"]
    model.module.set_attn_implementation("sdpa")
    state, config = copy.deepcopy(model.module.state_dict()), model.module.config.to_dict()
    was_enabled = gc.isenabled()
    export_onnx(model, SIGNATURE, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert gc.isenabled() == was_enabled
    assert model.module.config.to_dict() == config
    assert model.module.config._attn_implementation == "sdpa"
    assert all(torch.equal(state[name], each) for name, each in model.module.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.module.parameters())


def test_the_mask_stays_finite_in_half_precision() -> None:
    assert np.isfinite(np.float16(MASK_VALUE))
    assert np.exp(np.float32(MASK_VALUE)) == 0.0


class Plain(nn.Module):
    """A network that knows nothing of additive masks, positions and token types."""

    def __init__(self) -> None:
        super().__init__()
        self.config = BertConfig(**SMALL)
        self.embeddings = nn.Embedding(60, 8)
        self.classifier = nn.Linear(8, 2)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> SequenceClassifierOutput:
        weights = attention_mask.to(torch.float32)[..., None]  # (B, T, 1)
        mean = (self.embeddings(input_ids) * weights).sum(1) / weights.sum(1)
        return SequenceClassifierOutput(logits=self.classifier(mean))


class Branching(Plain):
    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> SequenceClassifierOutput:
        if input_ids.sum() > 10:
            return super().forward(input_ids, attention_mask)
        raise ValueError("no tokens")


class OwnMasks(BertForSequenceClassification):
    """A network that insists on making masks, positions and token types by itself."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        if attention_mask.dim() != 2:
            raise ValueError("the mask must have a row for each text")
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


def test_a_network_that_takes_no_additive_mask_gets_the_plain_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = OwnMasks(BertConfig(**{**SMALL, "num_hidden_layers": 1})).eval()
    model = TorchModel(module, None, "text-classification", 32)  # type: ignore[arg-type]
    path = tmp_path / "model.onnx"
    assert export_onnx(model, SIGNATURE, path, opset=20) == InputForm()
    assert onnx.load(path).opset_import[0].version == 20
    session = open_session(path)
    for length in (1, 5, 40):
        ids, mask = np.full((3, length), 7), np.ones((3, length), np.int64)
        mask[0, 1:] = 0
        (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        with torch.no_grad():
            expected = module(torch.from_numpy(ids), torch.from_numpy(mask)).logits
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


def test_weights_above_the_limit_lie_in_a_file_of_their_own(tmp_path: Path) -> None:
    model = TorchModel(Plain().eval(), None, "text-classification", 32)  # type: ignore[arg-type]
    export_onnx(model, SIGNATURE, tmp_path / "model.onnx", single_file_limit_bytes=1_000)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx").stat().st_size < 60 * 8 * 4
    ids, mask = np.full((1, 4), 7), np.ones((1, 4), np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask}
    (found,) = open_session(tmp_path / "model.onnx").run(None, feeds)
    with torch.no_grad():
        expected = model.module(torch.from_numpy(ids), torch.from_numpy(mask)).logits
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_a_model_that_cannot_be_exported_says_why_in_a_few_lines() -> None:
    model = TorchModel(Branching().eval(), None, "text-classification", 32)  # type: ignore[arg-type]
    with pytest.raises(PassError, match="cannot be exported to ONNX") as caught:
        to_onnx(model, SIGNATURE)
    message = str(caught.value)
    assert "Branching" in message
    assert "data-dependent" in message
    assert "no Python branches on the data" in message
    assert len(message.splitlines()) <= 4


def test_a_task_with_other_inputs_is_refused() -> None:
    pixels = TensorSpec(name="pixels", dtype="float32", shape=("batch", 3))
    with pytest.raises(PassError, match="are not those of the task") as caught:
        to_onnx(make_model(), Signature(inputs=(pixels,), outputs=SIGNATURE.outputs))
    assert "pixels" in str(caught.value)
