from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from compressor.checkpoint import check_checkpoint, check_weights, label_names
from compressor.errors import CheckpointError
from compressor.lowering import _source
from compressor.model import TorchModel
from compressor.tasks import get_task
from targets.checkpoint import load_module

HEAD = "ForSequenceClassification"
MakeModel = Callable[..., TorchModel]


@pytest.fixture
def folder(tmp_path: Path, word_model: MakeModel) -> Path:
    word_model().save(tmp_path)
    return tmp_path


def test_a_good_checkpoint_passes_and_loads(folder: Path) -> None:
    check_checkpoint(folder, head=HEAD)
    assert get_task("text-classification").load_checkpoint(folder).labels[0] == "person"


def test_roberta_takes_fewer_tokens_than_its_position_table_has_rows(
    tmp_path: Path, word_model: MakeModel
) -> None:
    config = RobertaConfig(
        vocab_size=29,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    word_model().processor.save_pretrained(tmp_path)
    model = get_task("text-classification").load_checkpoint(tmp_path)
    assert model.max_length == 10
    model.module(input_ids=torch.full((1, 10), 7))


def test_classes_without_names_have_those_of_transformers(folder: Path) -> None:
    """Its configs leave them out where there are two."""
    config = json.loads((folder / "config.json").read_text())
    del config["id2label"]
    (folder / "config.json").write_text(json.dumps(config))
    assert label_names(folder) == ("LABEL_0", "LABEL_1")


def test_tokens_without_embeddings_are_refused(folder: Path, word_model: MakeModel) -> None:
    tokenizer = word_model().processor
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="tokens that the network has no embeddings") as error:
        get_task("text-classification").load_checkpoint(folder)
    assert "resize_token_embeddings" in str(error.value.fix)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the checkpoint does not exist") as error:
        check_checkpoint(tmp_path / "nowhere", head=HEAD)
    assert error.value.where == str(tmp_path / "nowhere")
    (tmp_path / "somewhere").mkdir()
    with pytest.raises(CheckpointError) as error:
        check_checkpoint(tmp_path / "somwhere", head=HEAD)
    assert str(error.value.fix).startswith("did you mean 'somewhere'? pass a Hugging Face folder")


def test_a_file_is_not_a_checkpoint(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="this is not a folder"):
        check_checkpoint(folder / "model.safetensors", head=HEAD)


def test_a_folder_without_config_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        check_checkpoint(folder, head=HEAD)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), ("[1]", "not a JSON object")]
)
def test_a_broken_config_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(folder, head=HEAD)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="runs whatever code it holds") as error:
        check_checkpoint(folder, head=HEAD)
    assert "save_pretrained" in str(error.value.fix)
    assert str(folder) in str(error.value.fix)


def test_a_pickle_beside_safetensors_does_no_harm(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    check_checkpoint(folder, head=HEAD)


def test_a_checkpoint_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        check_checkpoint(folder, head=HEAD)


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertModel])
def test_another_head_is_told_to_fine_tune_first(
    tmp_path: Path, word_model: MakeModel, kind: type[BertModel]
) -> None:
    kind(word_model().module.config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no head for this task") as error:
        check_checkpoint(tmp_path, head=HEAD)
    assert error.value.given == kind.__name__
    assert error.value.fix == "fine-tune first: compressor finetune"


def test_a_model_of_texts_and_images_is_told_as_such(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {"a": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="reads other inputs beside texts") as error:
        check_checkpoint(folder, head=("ForConditionalGeneration",))
    assert error.value.given == "Gemma3ForConditionalGeneration, with vision_config"
    assert "language model alone" in str(error.value.fix)


def test_a_config_that_names_no_class_is_told_to_fine_tune_first(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no head for this task"):
        check_checkpoint(folder, head=HEAD)


def test_class_names_may_be_numbers(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    numbers = {name: 2 * int(name) for name in config["id2label"]}
    path.write_text(json.dumps(config | {"id2label": numbers}))
    names = tuple(str(2 * index) for index in range(len(numbers)))
    assert label_names(folder) == names
    assert get_task("text-classification").load_checkpoint(folder).labels == names


def test_classes_have_to_be_numbered(folder: Path) -> None:
    path = folder / "config.json"
    names = {"id2label": {"pos": "0", "neg": "1"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    with pytest.raises(CheckpointError, match="does not map class numbers to names") as error:
        label_names(folder)
    assert "id2label" in str(error.value.where)
    assert "'pos': '0'" in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 200, -10])
def test_truncated_weights_are_named(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated") as error:
        check_checkpoint(folder, head=HEAD)
    assert error.value.where == str(path)


def test_sharded_weights_pass_unless_one_is_missing(tmp_path: Path, word_model: MakeModel) -> None:
    word_model().module.save_pretrained(tmp_path, max_shard_size="20KB")
    check_checkpoint(tmp_path, head=HEAD)
    next(tmp_path.glob("model-00001-*")).unlink()
    with pytest.raises(CheckpointError, match="lacks some of its weight files") as error:
        check_checkpoint(tmp_path, head=HEAD)
    assert "model-00001-" in str(error.value.given)


def test_a_broken_index_is_named(tmp_path: Path, word_model: MakeModel) -> None:
    word_model().module.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(CheckpointError, match="index of the weights cannot be read"):
        check_checkpoint(tmp_path, head=HEAD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, word_model: MakeModel, value: float, dtype: torch.dtype
) -> None:
    module = word_model().module.to(dtype)
    module.save_pretrained(tmp_path)
    check_weights(tmp_path)
    module.classifier.weight.data[0, 0] = value
    module.bert.pooler.dense.bias.data[2] = value
    module.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="NaN or infinite") as error:
        check_weights(tmp_path)
    assert error.value.given == "bert.pooler.dense.bias, classifier.weight"


def test_weights_are_checked_in_every_shard(tmp_path: Path, word_model: MakeModel) -> None:
    module = word_model().module
    module.classifier.weight.data[0, 0] = float("nan")
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        check_weights(tmp_path)


def test_a_target_is_told_what_loads_a_checkpoint(folder: Path, word_model: MakeModel) -> None:
    source = _source(word_model(), folder)
    assert source.task is not None
    module = load_module(source.path, source.task)
    assert type(module) is type(word_model().module)
