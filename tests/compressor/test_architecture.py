from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BeitConfig,
    BeitForImageClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)

from compressor.architecture import Architecture, LayerShape, reads_sound
from compressor.errors import CheckpointError
from compressor.pruning.slicing import Kept, keep_units
from targets.checkpoint import save_module

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {"vocab_size": 50, "num_labels": 3, "max_position_embeddings": 20, "pad_token_id": 1}
CONFIGS: dict[str, Callable[[], object]] = {
    "bert": lambda: BertConfig(**SIZES, **SMALL, intermediate_size=64),
    "roberta": lambda: RobertaConfig(**SIZES, **SMALL, intermediate_size=64, type_vocab_size=1),
    "electra": lambda: ElectraConfig(**SIZES, **SMALL, intermediate_size=64, embedding_size=16),
    "distilbert": lambda: DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **SMALL),
}
INPUTS = {"input_ids": torch.tensor([[5, 9, 30], [6, 40, 3]])}


def make(family: str) -> nn.Module:
    return AutoModelForSequenceClassification.from_config(CONFIGS[family]()).eval()


@pytest.mark.parametrize("family", CONFIGS)
def test_sizes_are_read_from_the_config(tmp_path: Path, family: str) -> None:
    module = make(family)
    save_module(module, tmp_path)
    read = Architecture.read(tmp_path)
    assert read == Architecture.of(module)
    assert read.layers == (LayerShape(4, 64),) * 2
    assert (read.family, read.head_size, read.hidden_size) == (family, 8, 32)
    assert (read.vocabulary_size, read.num_labels) == (50, 3)
    assert read.max_positions == (18 if family == "roberta" else 20)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_longest_input_is_one_that_the_model_takes(family: str) -> None:
    module = make(family)
    limit = Architecture.of(module).max_positions
    ids = torch.full((1, limit + 1), 7)
    assert torch.isfinite(module(input_ids=ids[:, :limit]).logits).all()
    with pytest.raises((IndexError, RuntimeError)):
        module(input_ids=ids)


@pytest.mark.parametrize("family", CONFIGS)
def test_parameters_are_counted_exactly_also_of_unlike_layers(family: str) -> None:
    module = make(family)
    pruned = keep_units(module, Kept([(0, 3), (1,)], [range(8), range(24)]), INPUTS)
    for each in (module, pruned):
        counted = sum(parameter.numel() for parameter in each.parameters())
        assert Architecture.of(each).num_parameters == counted


def test_a_pruned_checkpoint_tells_its_real_sizes(tmp_path: Path) -> None:
    kept = Kept([(0, 3), (1,)], [range(8), range(24)], range(24))
    module = keep_units(make("bert"), kept, INPUTS)
    save_module(module, tmp_path)
    read = Architecture.read(tmp_path)
    assert read == Architecture.of(module)
    assert read.layers == (LayerShape(2, 8), LayerShape(1, 24))
    assert (read.head_size, read.hidden_size) == (8, 24)
    assert read.describe() == "2 layers x 1-2 heads x 8-24 FFN, hidden 24, vocabulary 50"
    counted = sum(parameter.numel() for parameter in module.parameters())
    assert read.num_parameters == pytest.approx(counted, rel=0.05)


def test_two_labels_are_what_a_config_without_labels_means(tmp_path: Path) -> None:
    save_module(make("bert"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["id2label"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Architecture.read(tmp_path).num_labels == 2


@pytest.mark.parametrize("change", [{"num_attention_heads": 0}, {"hidden_size": None}])
def test_of_a_config_that_names_its_sizes_otherwise_the_layers_are_unknown(
    tmp_path: Path, change: dict[str, object]
) -> None:
    module = make("bert")
    save_module(module, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = Architecture.read(tmp_path)
    assert (read.layers, read.has_unknown_layers) == ((), True)
    assert (read.vocabulary_size, read.num_labels, read.max_positions) == (50, 3, 20)
    assert read.num_parameters == sum(each.numel() for each in module.parameters())


def test_a_network_that_sees_reads_no_tokens_whatever_its_config_names() -> None:
    config = BeitConfig(
        **SIZES, intermediate_size=64, image_size=16, patch_size=4, num_labels=3, vocab_size=8192
    )
    module = BeitForImageClassification(config).eval()
    found = Architecture.of(module)
    assert (found.vocabulary_size, found.layers) == (0, (LayerShape(4, 64),) * 2)
    assert found.num_parameters == sum(each.numel() for each in module.state_dict().values())


def test_a_config_that_does_not_tell_its_family_is_refused(tmp_path: Path) -> None:
    save_module(make("bert"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not say which network this is") as error:
        Architecture.read(tmp_path)
    assert "model_type" in str(error.value.given)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_an_unreadable_config_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Architecture.read(tmp_path)


LLAMA = {
    "model_type": "gemma3n_text",
    "architectures": ["Gemma3nForCausalLM"],
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 100,
}
PROPHET = {
    "model_type": "prophetnet",
    "architectures": ["ProphetNetForConditionalGeneration"],
    "hidden_size": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 100,
}


@pytest.mark.parametrize("config", [{**LLAMA, "intermediate_size": [64, 128]}, PROPHET])
def test_of_a_config_that_is_like_a_known_one_in_part_the_layers_are_unknown(
    tmp_path: Path, config: dict[str, object]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a.weight": torch.zeros(3, 4)}, tmp_path / "model.safetensors")
    found = Architecture.read(tmp_path)
    assert found.has_unknown_layers
    assert (found.layers, found.vocabulary_size) == ((), 100)


def test_what_reads_sound_has_widths_of_its_convolutions_or_bins() -> None:
    assert reads_sound({"conv_dim": [512, 512]})
    assert reads_sound({"num_mel_bins": 80})
    assert not reads_sound({"conv_dim": 2048, "conv_L_cache": 3})  # LFM2 reads text
