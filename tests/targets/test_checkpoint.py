from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)

from compressor.pruning.layers import select_layers
from compressor.pruning.slicing import Kept, keep_units
from targets.checkpoint import load_module, save_module
from targets.encoder import encoder_layers
from targets.errors import CheckpointError

TASK = "text-classification"
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SMALL = {"vocab_size": 50, "num_labels": 3, "max_position_embeddings": 20, "pad_token_id": 1}
CONFIGS: dict[str, Callable[[], object]] = {
    "bert": lambda: BertConfig(**SIZES, **SMALL),
    "roberta": lambda: RobertaConfig(**SIZES, **SMALL),
    "electra": lambda: ElectraConfig(**SIZES, **SMALL, embedding_size=16),
    "distilbert": lambda: DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=64, **SMALL),
}
INPUTS = {
    "input_ids": torch.tensor([[5, 9, 30, 7, 8], [6, 40, 3, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
MIXED = Kept(
    heads=[(0, 3), (1,), (0, 1, 2)],
    ffn=[range(8), range(24), range(40, 56)],
    hidden=range(24),
)


def make(family: str = "bert") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = AutoModelForSequenceClassification.from_config(CONFIGS[family]())
        # Initial biases are zero, and zero weights would hide a bias that was lost.
        for parameter in module.parameters():
            parameter.data.add_(0.05 * torch.randn(parameter.shape))
    module.config._attn_implementation = "eager"
    return module.eval()


def logits(module: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return module(**INPUTS).logits


def assert_equal(module: nn.Module, other: nn.Module) -> None:
    ours, theirs = module.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(logits(module), logits(other))


@pytest.fixture(scope="module")
def pruned() -> nn.Module:
    return keep_units(make(), MIXED, INPUTS)


@pytest.mark.parametrize("family", CONFIGS)
def test_an_unresized_model_is_a_plain_hugging_face_folder(tmp_path: Path, family: str) -> None:
    module = make(family)
    save_module(module, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    plain = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    assert_equal(module, plain.eval())
    assert_equal(module, load_module(tmp_path, TASK))


@pytest.mark.parametrize("family", CONFIGS)
def test_layers_of_unlike_sizes_come_back_bit_equal(tmp_path: Path, family: str) -> None:
    module = keep_units(make(family), MIXED, INPUTS)
    save_module(module, tmp_path)
    loaded = load_module(tmp_path, TASK)
    assert_equal(module, loaded)
    layers = encoder_layers(loaded)
    assert [layer.num_heads for layer in layers] == [2, 1, 3]
    assert [layer.ffn_width for layer in layers] == [8, 24, 16]
    for layer, original in zip(layers, encoder_layers(module), strict=True):
        assert layer.attention.scaling == original.attention.scaling == 8**-0.5
        assert getattr(layer.attention, layer.num_heads_name) == layer.num_heads


def test_a_resized_model_saves_again_from_what_was_loaded(
    tmp_path: Path, pruned: nn.Module
) -> None:
    save_module(pruned, tmp_path)
    save_module(load_module(tmp_path, TASK), tmp_path)
    assert_equal(pruned, load_module(tmp_path, TASK))


def test_loading_gives_a_float32_eager_module_in_eval_mode(
    tmp_path: Path, pruned: nn.Module
) -> None:
    for number, module in enumerate((make().half(), copy.deepcopy(pruned).half())):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_module(module, folder)
        loaded = load_module(folder, TASK)
        assert not any(part.training for part in loaded.modules())
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert loaded.config._attn_implementation == "eager"


def test_uniform_widths_and_dropped_layers_stay_plain(tmp_path: Path) -> None:
    heads, neurons = [range(4)] * 3, [range(0, 64, 2)] * 3
    module = select_layers(keep_units(make(), Kept(heads, neurons), INPUTS), (0, 2))
    save_module(module, tmp_path)
    assert not (tmp_path / "shapes.json").exists()
    plain = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    assert_equal(module, plain.eval())


def test_a_trimmed_vocabulary_stays_plain(tmp_path: Path) -> None:
    module = make()
    module.set_input_embeddings(nn.Embedding(45, 32, padding_idx=1))
    save_module(module, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 45
    assert not (tmp_path / "shapes.json").exists()
    assert_equal(module, load_module(tmp_path, TASK))


def test_a_stream_as_wide_as_its_heads_comes_back_with_the_right_head_size(tmp_path: Path) -> None:
    module = keep_units(make(), Kept([(0, 1)] * 3, [range(64)] * 3, range(16)), INPUTS)
    save_module(module, tmp_path)
    assert_equal(module, load_module(tmp_path, TASK))


def test_saving_leaves_the_module_as_it_was(tmp_path: Path, pruned: nn.Module) -> None:
    module = copy.deepcopy(pruned)
    module.config.num_attention_heads = 4
    before = module.config.to_dict()
    save_module(module, tmp_path)
    assert module.config.to_dict() == before


def test_saving_a_plain_model_removes_the_manifest_of_an_earlier_one(
    tmp_path: Path, pruned: nn.Module
) -> None:
    save_module(pruned, tmp_path)
    save_module(make(), tmp_path)
    assert not (tmp_path / "shapes.json").exists()
    assert_equal(make(), load_module(tmp_path, TASK))


def test_loading_draws_no_random_numbers(tmp_path: Path, pruned: nn.Module) -> None:
    save_module(pruned, tmp_path)
    state = torch.get_rng_state()
    load_module(tmp_path, TASK)
    assert torch.equal(state, torch.get_rng_state())


def test_loading_and_saving_print_nothing(
    tmp_path: Path, pruned: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    save_module(pruned, tmp_path)
    load_module(tmp_path, TASK)
    save_module(make(), tmp_path)
    load_module(tmp_path, TASK)
    assert capfd.readouterr() == ("", "")


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    module = BertForMaskedLM(BertConfig(**SIZES, **SMALL)).eval()
    save_module(module, tmp_path)
    assert "cls.predictions.decoder.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_module(tmp_path, "fill-mask")
    embeddings = loaded.bert.embeddings.word_embeddings.weight
    assert loaded.cls.predictions.decoder.weight is embeddings
    assert torch.equal(embeddings, module.bert.embeddings.word_embeddings.weight)


def test_shared_and_sliced_tensors_are_stored(tmp_path: Path) -> None:
    module = make()
    layers = encoder_layers(module)
    layers[1].ffn_input.weight = layers[0].ffn_input.weight
    layers[0].query.weight.data = layers[0].query.weight.data.T.contiguous().T
    save_module(module, tmp_path)
    assert_equal(module, load_module(tmp_path, TASK))


def test_sharded_weights_are_read(tmp_path: Path) -> None:
    module = make()
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert_equal(module, load_module(tmp_path, TASK))
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(CheckpointError, match="lacks some of its weight files"):
        load_module(tmp_path, TASK)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    save_module(make(), tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    config = json.loads((tmp_path / "config.json").read_text())
    classes = ("AutoConfig", "AutoModelForSequenceClassification")
    config |= {"auto_map": dict.fromkeys(classes, "evil.Evil")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_equal(make(), load_module(tmp_path, TASK))
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))
    with pytest.raises(CheckpointError, match="knows no network of this kind"):
        load_module(tmp_path, TASK)
    assert not (tmp_path / "ran").exists()


def test_a_missing_manifest_is_named(tmp_path: Path, pruned: nn.Module) -> None:
    save_module(pruned, tmp_path)
    (tmp_path / "shapes.json").unlink()
    with pytest.raises(CheckpointError, match=r"needs its shapes\.json") as error:
        load_module(tmp_path, TASK)
    assert "do not belong together" in error.value.what


def test_a_truncated_manifest_is_named(tmp_path: Path, pruned: nn.Module) -> None:
    save_module(pruned, tmp_path)
    path = tmp_path / "shapes.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(
        CheckpointError, match="shape manifest of the checkpoint is damaged"
    ) as error:
        load_module(tmp_path, TASK)
    assert error.value.where == str(path)


def test_another_schema_version_is_named(tmp_path: Path, pruned: nn.Module) -> None:
    save_module(pruned, tmp_path)
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(CheckpointError, match="another schema version"):
        load_module(tmp_path, TASK)


def test_the_manifest_of_another_checkpoint_is_refused(tmp_path: Path, pruned: nn.Module) -> None:
    other = Kept([(0,)] * 3, [range(16)] * 3)
    for name, module in (("a", pruned), ("b", keep_units(make(), other, INPUTS)), ("c", make())):
        (tmp_path / name).mkdir()
        save_module(module, tmp_path / name)
    foreign = (tmp_path / "b" / "shapes.json").read_bytes()
    for name in ("a", "c"):
        (tmp_path / name / "shapes.json").write_bytes(foreign)
        with pytest.raises(CheckpointError, match="do not belong together") as error:
            load_module(tmp_path / name, TASK)
        assert "instead of" in str(error.value)


def test_the_manifest_of_another_model_class_is_refused(tmp_path: Path, pruned: nn.Module) -> None:
    save_module(pruned, tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another checkpoint"):
        load_module(tmp_path, "token-classification")


@pytest.mark.parametrize(
    ("layers", "tensors"),
    [([[2, 8], [1, 24], [3, 24]], {}), (None, {"bert.pooler.dense.surprise": [1]})],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path,
    pruned: nn.Module,
    layers: list[list[int]] | None,
    tensors: dict[str, list[int]],
) -> None:
    save_module(pruned, tmp_path)
    path = tmp_path / "shapes.json"
    manifest = json.loads(path.read_text())
    manifest["tensors"] |= tensors
    if layers:
        manifest["layers"] = [{"num_heads": h, "ffn_width": f} for h, f in layers]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="belong"):
        load_module(tmp_path, TASK)


def test_truncated_weights_are_named(tmp_path: Path, pruned: nn.Module) -> None:
    path = tmp_path / "model.safetensors"
    for module in (make(), pruned):
        save_module(module, tmp_path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match="truncated") as error:
            load_module(tmp_path, TASK)
        assert error.value.where == str(path)


@pytest.mark.parametrize("resized", [False, True])
def test_a_missing_tensor_is_named(tmp_path: Path, pruned: nn.Module, resized: bool) -> None:
    save_module(pruned if resized else make(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        load_module(tmp_path, TASK)


def test_weights_that_contradict_the_config_are_refused(tmp_path: Path) -> None:
    save_module(make(), tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.intermediate_size = 32
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_module(tmp_path, TASK)


def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model class is known for the task 'painting'"):
        load_module(tmp_path, "painting")


def test_tensors_that_no_checkpoint_of_the_class_has_are_refused(tmp_path: Path) -> None:
    module = BertForSequenceClassification(BertConfig(**SIZES, **SMALL))
    module.extra = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"unknown: extra\.weight") as caught:
        save_module(module, tmp_path)
    assert "are not those of a BertForSequenceClassification" in caught.value.what
    assert "after the export" in str(caught.value.fix)
    assert list(tmp_path.iterdir()) == []
