from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from compressor.data import Split, Splits
from compressor.errors import PassError
from compressor.model import OnnxModel, TorchModel
from compressor.parity import measure_parity
from compressor.passes import PassContext, PassResult
from compressor.passes.export import Export
from compressor.tasks import get_task

LABELS = ("person", "place", "time")
TOKENS = ["[PAD]", "[UNK]", "who", "where", "when", "dog", "cat", "house"]
TEXTS = ("who dog", "where cat house", "when", "who cat dog dog cat house where", "cat dog house")


def make_model() -> TorchModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TOKENS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=24, id2label=dict(enumerate(LABELS)),
        initializer_range=0.4,
    )  # fmt: skip
    tokenizer = Tokenizer(
        models.WordLevel({name: index for index, name in enumerate(TOKENS)}, unk_token="[UNK]")  # noqa: S106
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    module = BertForSequenceClassification(config).eval()
    return TorchModel(module, wrapped, "text-classification", 24)


def make_context(folder: Path) -> PassContext:
    split = Split(TEXTS, np.arange(len(TEXTS)) % 3)
    return PassContext(Splits(split, split, split, LABELS), make_model, seed=0, folder=folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchModel, PassResult, PassContext]:
    model, context = make_model(), make_context(tmp_path_factory.mktemp("export"))
    return model, Export(max_batch=8).run(model, context), context


Ran = tuple[TorchModel, PassResult, PassContext]


def test_the_promise_holds_and_the_difference_is_measured(ran: Ran) -> None:
    model, result, context = ran
    Export().ensures(model, result, context)
    assert 0 <= result.metrics["max_relative_difference"] < 1e-5
    assert result.metrics["size_bytes"] == result.model.size_bytes  # type: ignore[union-attr]
    assert result.metrics["num_nodes"] > 10
    assert "batches compared with torch" in result.notes[0]


def test_the_onnx_model_knows_its_labels_signature_and_ranges(ran: Ran) -> None:
    exported = ran[1].model
    assert isinstance(exported, OnnxModel)
    assert exported.labels == LABELS
    assert exported.precision == "fp32"
    assert exported.signature.free_dimensions == ("batch", "sequence")
    # Median of the validation texts' lengths: 1, 2, 3, 3 and 7 tokens.
    assert exported.ranges == {"batch": (1, 1, 8), "sequence": (1, 3, 24)}


def test_the_tokenizer_lies_beside_it_without_traces_of_its_last_call(ran: Ran) -> None:
    model, result, _ = ran
    folder = result.model.folder  # type: ignore[union-attr]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.truncation is None
    assert tokenizer.padding is None
    assert tokenizer.encode(TEXTS[1]).ids == model.processor(TEXTS[1])["input_ids"]


def test_it_survives_the_disk(ran: Ran, tmp_path: Path) -> None:
    exported = ran[1].model
    assert isinstance(exported, OnnxModel)
    exported.save(tmp_path)
    loaded = OnnxModel.load(tmp_path)
    assert replace(loaded, folder=exported.folder) == exported
    assert loaded.path.read_bytes() == exported.path.read_bytes()


def test_the_batches_cover_short_long_padded_and_empty_rows(ran: Ran) -> None:
    task = get_task("text-classification")
    rows = task.encode(ran[0], TEXTS)
    found = list(task.probes(ran[0], rows).values())
    shapes = {batch["input_ids"].shape for batch in found}
    assert {(1, 1), (len(TEXTS), 7), (2, 24)} <= shapes
    masks = [batch["attention_mask"] for batch in found]
    assert any((mask.sum(axis=1) == 0).any() for mask in masks)
    assert any(set(mask.sum(axis=1)) == {1, 24} for mask in masks)
    assert len(task.probes(ran[0], rows[:1])) == 5  # one text is enough


def changed(result: PassResult, folder: Path, name: str, change: Callable[..., None]) -> OnnxModel:
    """A copy of the exported model in which one weight is another."""
    exported = result.model
    assert isinstance(exported, OnnxModel)
    exported.save(folder)
    model = onnx.load(exported.path)
    tensor = next(each for each in model.graph.initializer if each.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, folder / "model.onnx")
    return replace(exported, folder=folder)


def test_a_wrong_weight_breaks_the_promise_and_names_the_batch(ran: Ran, tmp_path: Path) -> None:
    model, result, context = ran
    name = "bert.embeddings.position_embeddings.weight"

    def shift_last(array: np.ndarray) -> None:
        array[-1] = -20 * array[0]  # a shift of all values alike would vanish in the LayerNorm

    broken = changed(result, tmp_path, name, shift_last)
    parity = measure_parity(model, broken.path, TEXTS)
    assert parity.worst_case == "the longest input beside one token: batch 2 x 24 tokens"
    metrics = {
        "max_relative_difference": parity.max_relative_difference,
        "max_abs_difference": parity.max_abs_difference,
    }
    with pytest.raises(PassError, match="does not compute what the torch model") as caught:
        Export().ensures(model, PassResult(broken, metrics), context)
    assert "batch 2 x 24 tokens" in str(caught.value)
    assert "tolerance above 0.0" in str(caught.value)


def test_outputs_that_are_not_finite_are_refused(ran: Ran, tmp_path: Path) -> None:
    model, result, _ = ran
    broken = changed(
        result, tmp_path, "bert.embeddings.LayerNorm.weight", lambda array: array.fill(np.nan)
    )
    with pytest.raises(PassError, match="does not compute what the torch model") as caught:
        measure_parity(model, broken.path, TEXTS)
    assert "not finite" in str(caught.value)
    assert "one text" in str(caught.value)


def test_a_file_with_other_inputs_is_refused(ran: Ran, tmp_path: Path) -> None:
    model, result, context = ran
    exported = result.model
    assert isinstance(exported, OnnxModel)
    exported.save(tmp_path)
    proto = onnx.load(exported.path)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    onnx.save(proto, tmp_path / "model.onnx")
    broken = replace(result, model=replace(exported, folder=tmp_path))
    with pytest.raises(PassError, match="other inputs or outputs") as caught:
        Export().ensures(model, broken, context)
    assert "rows" in str(caught.value)


def test_the_input_is_not_changed(ran: Ran) -> None:
    model, fresh = ran[0], make_model()
    for name, tensor in fresh.module.state_dict().items():
        assert torch.equal(tensor, model.module.state_dict()[name])
    config = copy.deepcopy(fresh.module.config.to_dict())
    assert model.module.config.to_dict() == config


@pytest.mark.parametrize(
    ("settings", "message", "given"),
    [
        (Export(max_batch=2, usual_batch=4), "usual_batch is larger", "4 > 2"),
        (Export(usual_length=25), "usual_length is larger", "25 > 24 tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_the_work(
    settings: Export, message: str, given: str, tmp_path: Path
) -> None:
    with pytest.raises(PassError, match=message) as caught:
        settings.requires(make_model(), make_context(tmp_path))
    assert given in str(caught.value)


def test_settings_outside_their_range_are_refused() -> None:
    for settings in ({"opset": 17}, {"tolerance": 0}, {"max_batch": 0}, {"half": True}):
        with pytest.raises(ValidationError):
            Export(**settings)
