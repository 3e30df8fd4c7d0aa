"""What `inspect` says of a checkpoint, against formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    MPNetConfig,
    MPNetModel,
    PatchTSMixerConfig,
    PatchTSMixerForTimeSeriesClassification,
    ViTConfig,
    ViTModel,
)

from compressor.architecture import Architecture
from compressor.errors import CheckpointError
from compressor.inspection import inspect_checkpoint
from compressor.passes import advice_for
from compressor.tasks import get_task
from targets.preprocessing import ImagePreprocessing
from tests.compressor.conftest import make_vision, make_wordpiece
from tests.compressor.decoders import write_decoder
from tests.compressor.writers import write_writer

HIDDEN, FFN, LAYERS, LENGTH = 32, 48, 2, 10


@pytest.fixture
def checkpoint(tmp_path: Path, word_model: Any) -> Path:
    config = BertConfig(
        vocab_size=60,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=16,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    get_task("text-classification").save_processor(word_model().processor, tmp_path)
    return tmp_path


def test_weights_and_work_of_an_encoder_are_those_of_the_formulas(checkpoint: Path) -> None:
    found = inspect_checkpoint(checkpoint, length=LENGTH)
    assert (found.task, found.has_head) == ("text-classification", True)
    assert found.input == f"a text of {LENGTH} tokens"
    parts = {part.name: part for part in found.parts}
    assert list(parts) == ["embeddings", "attention", "feed-forward", "pooler", "classifier"]
    assert sum(part.num_parameters for part in found.parts) == found.architecture.num_parameters
    products = 4 * HIDDEN * HIDDEN + 2 * LENGTH * HIDDEN  # projections; scores and their sums
    assert parts["attention"].flops == 2 * LAYERS * LENGTH * products
    assert parts["feed-forward"].flops == 2 * LAYERS * LENGTH * 2 * HIDDEN * FFN
    assert parts["pooler"].flops == 2 * HIDDEN * HIDDEN
    assert parts["classifier"].flops == 2 * HIDDEN * 3
    refused = {name for name, reason in found.passes.items() if reason}
    assert refused == {"drop_blocks", "merge_tokens", "variable_window"}  # no images, no sound


def test_a_head_that_shares_the_table_has_its_work(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    found = inspect_checkpoint(tmp_path / "model", length=LENGTH)
    parts = {part.name: part for part in found.parts}
    size = found.architecture.hidden_size * found.architecture.vocabulary_size
    assert parts["lm_head"].num_parameters == 0
    assert parts["lm_head"].flops == 2 * LENGTH * size
    assert sum(part.num_parameters for part in found.parts) == found.architecture.num_parameters


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "whisper", "resnet", "convnext"])
def test_no_work_is_counted_twice_or_lost(family: str, tmp_path: Path) -> None:
    if family in ("llama", "gpt2"):
        write_decoder(tmp_path, family)
        folder = tmp_path / "model"
    elif family in ("t5", "whisper"):
        write_writer(tmp_path, family)
        folder = tmp_path / "model"
    else:
        folder = tmp_path
        make_vision(family).save(folder)
    totals = []

    class Counter(FlopCounterMode):
        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            totals.append(self.get_total_flops())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.flop_counter.FlopCounterMode", Counter)
        found = inspect_checkpoint(folder)
    assert totals[0] > 0
    assert sum(part.flops for part in found.parts) == totals[0]


def test_without_a_length_what_is_usual_is_taken_as_far_as_the_model_reads(
    checkpoint: Path,
) -> None:
    assert inspect_checkpoint(checkpoint).input == "a text of 16 tokens"


def test_a_network_that_sees_and_has_no_head(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
    )
    ViTModel(config).save_pretrained(tmp_path)
    processor = ImagePreprocessing(height=8, width=8)
    get_task("image-classification").save_processor(processor, tmp_path)
    found = inspect_checkpoint(tmp_path)
    assert (found.task, found.has_head) == ("image-classification", False)
    assert found.input == "an image"
    parts = {part.name: part for part in found.parts}
    patches = (8 // 4) ** 2
    assert parts["embeddings"].flops == 2 * patches * 4 * 4 * 3 * HIDDEN
    assert parts["feed-forward"].flops == 2 * LAYERS * (patches + 1) * 2 * HIDDEN * FFN
    assert found.passes["trim_vocabulary"] == "it reads no tokens"
    assert found.passes["prune"] is None


def test_a_network_without_attention_and_convolutions_cannot_be_cut(tmp_path: Path) -> None:
    config = PatchTSMixerConfig(
        context_length=16, num_input_channels=2, patch_length=4, patch_stride=4, d_model=8,
        num_targets=3, num_layers=1,
    )  # fmt: skip
    module = PatchTSMixerForTimeSeriesClassification(config)
    module.config.id2label = dict(enumerate("abc"))
    module.save_pretrained(tmp_path)
    found = inspect_checkpoint(tmp_path)
    assert found.task == "time-series-classification"
    for name in ("prune", "drop_blocks", "drop_layers"):
        assert found.passes[name] == "its layers are of an unknown kind"
    assert found.passes["quantize"] is None


def test_a_network_that_sentence_transformers_wraps_needs_no_head(tmp_path: Path) -> None:
    config = MPNetConfig(
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        vocab_size=len(make_wordpiece()),
        max_position_embeddings=LENGTH + 2,
    )
    MPNetModel(config).save_pretrained(tmp_path)
    make_wordpiece().save_pretrained(tmp_path)
    (tmp_path / "modules.json").write_text(
        '[{"path": "", "type": "sentence_transformers.models.Transformer"},'
        ' {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]'
    )
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    found = inspect_checkpoint(tmp_path, task="text-embedding", length=LENGTH)
    assert (found.task, found.has_head) == ("text-embedding", True)


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the folder is not a checkpoint"):
        inspect_checkpoint(tmp_path)


def test_the_command_prints_it(checkpoint: Path, compressor: Any) -> None:
    outcome = compressor("inspect", checkpoint, "--length", LENGTH)
    assert outcome.code == 0, outcome.err
    for told in ("family:  bert", "task:    text-classification", "feed-forward", "GFLOP"):
        assert told in outcome.out
    assert "no head" not in outcome.out


def test_what_does_not_suit_a_model_is_no_advice(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    found, all_of_it = advice_for((), Architecture.read(tmp_path / "model")), advice_for(())
    assert "trim_vocabulary" in all_of_it["size"]
    assert "trim_vocabulary" not in found["size"]
    of_images = {"a drop_blocks pass", "a merge_tokens pass"}
    assert of_images < set(all_of_it["speed"])
    assert set(found["speed"]) == set(all_of_it["speed"]) - of_images
