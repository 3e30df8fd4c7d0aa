"""Language models: heads with several queries, gated feed-forwards, layers, tied tables."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from compressor.architecture import Architecture
from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.passes.drop_layers import DropLayers
from compressor.passes.prune import Prune
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.pruning.importance import magnitude_scores, taylor_scores
from compressor.pruning.layers import select_layers
from compressor.pruning.planning import Ratios, plan_sizes
from compressor.pruning.prune import sample_batches
from compressor.pruning.slicing import Kept, keep_units
from compressor.tasks import get_task
from targets.checkpoint import load_module, save_module
from targets.encoder import encoder_layers
from tests.compressor.decoders import MAX_LENGTH, TASK, make_decoder, make_plain_split

INPUTS = {
    "input_ids": torch.tensor([[5, 9, 12, 7, 8], [6, 14, 3, 2, 2]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
REAL = INPUTS["attention_mask"] != 0
HEADS, QUERIES, HEAD_SIZE, FFN = 4, 2, 4, 48
ALL_HEADS, ALL_NEURONS = [range(HEADS)] * 3, [range(FFN)] * 3
KEPT = {
    "both": Kept([(0, 2), (1, 3), (0, 1)], [range(0, FFN, 2)] * 3),
    "unlike layers": Kept([(3,), (0, 1, 2), (2,)], [range(8), range(16, FFN), range(FFN)]),
    "three heads": Kept([(0, 1, 3)] * 3, ALL_NEURONS),
    "ffn": Kept(ALL_HEADS, [range(40)] * 3),
}


def logits(module: nn.Module) -> Tensor:
    with torch.inference_mode():
        found: Tensor = module(**INPUTS).logits[REAL]
    return found


@pytest.fixture(params=["llama", "qwen2"])
def decoder(request: pytest.FixtureRequest) -> nn.Module:
    return make_decoder(request.param).module


def mask_units(module: nn.Module, kept: Kept) -> nn.Module:
    """Zero what is not kept where it is read: the reference for pruning."""
    masked = copy.deepcopy(module)
    width = QUERIES * HEAD_SIZE
    with torch.no_grad():
        for layer, heads, neurons in zip(encoder_layers(masked), kept.heads, kept.ffn, strict=True):
            for head in set(range(HEADS)) - set(heads):
                layer.attention_output.weight[:, head * width : (head + 1) * width] = 0
            layer.ffn_output.weight[:, sorted(set(range(FFN)) - set(neurons))] = 0
    return masked


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_a_pruned_model_computes_what_the_masked_one_does(
    decoder: nn.Module, kept: Kept, tmp_path: Path
) -> None:
    pruned = keep_units(decoder, kept, INPUTS)
    expected = logits(mask_units(decoder, kept))
    assert not torch.allclose(logits(decoder), expected, atol=1e-3)
    torch.testing.assert_close(logits(pruned), expected, atol=1e-5, rtol=1e-5)
    save_module(pruned, tmp_path)
    loaded = load_module(tmp_path, TASK)
    assert torch.equal(logits(loaded), logits(pruned))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight  # type: ignore[union-attr]
    read, measured = Architecture.read(tmp_path), Architecture.of(loaded)
    assert read == measured
    assert [each.num_heads for each in read.layers] == [len(each) for each in kept.heads]
    assert [each.ffn_width for each in read.layers] == [len(each) for each in kept.ffn]
    assert read.queries_per_head == QUERIES
    assert read.num_parameters == sum(each.numel() for each in loaded.parameters())


def test_equal_layers_are_a_plain_checkpoint_again(decoder: nn.Module, tmp_path: Path) -> None:
    pruned = keep_units(decoder, KEPT["ffn"], INPUTS)
    pruned = keep_units(pruned, Kept([(1, 2)] * 3, [range(40)] * 3), INPUTS)
    save_module(pruned, tmp_path)
    assert not (tmp_path / "shapes.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.equal(logits(plain), logits(pruned))
    config = plain.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)


def test_layers_are_dropped_with_what_is_said_of_them(decoder: nn.Module, tmp_path: Path) -> None:
    selected = select_layers(decoder, (0, 2))
    expected = copy.deepcopy(decoder)
    body = expected.model
    del body.layers[1]  # type: ignore[operator,union-attr]
    body.layers[1].self_attn.layer_idx = 1  # type: ignore[index,union-attr]
    body.config.num_hidden_layers = 2  # type: ignore[union-attr]
    torch.testing.assert_close(logits(selected), logits(expected))
    assert len(getattr(selected.config, "layer_types", None) or (0, 0)) == 2
    save_module(selected, tmp_path)
    assert torch.equal(logits(load_module(tmp_path, TASK)), logits(selected))
    assert Architecture.read(tmp_path).num_parameters == sum(
        each.numel() for each in selected.parameters()
    )


def test_the_importance_of_a_head_is_that_of_all_its_queries() -> None:
    model = make_decoder()
    with torch.no_grad():
        layer = encoder_layers(model.module)[1]
        layer.attention_output.weight[:, 8:16] = 0  # what the queries of head 1 give goes nowhere
        layer.ffn_output.weight[:, 5] = 0
    batches = sample_batches(model, make_plain_split(16, 1), num_rows=16, batch_size=8, seed=0)
    scores = taylor_scores(model.module, batches, task=get_task(TASK))
    assert [each.shape for each in scores.heads] == [(HEADS,)] * 3
    assert scores.heads[1][1] == 0
    assert (scores.heads[1] > 0).tolist() == [True, False, True, True]
    assert scores.ffn[1][5] == 0
    assert (scores.ffn[1] > 0).sum() == FFN - 1
    with torch.no_grad():
        for part in (layer.query, layer.key, layer.value):
            part.weight[part.out_features // 4 : part.out_features // 2] = 0
        layer.ffn_inputs[0].weight[5] = layer.ffn_inputs[1].weight[5] = 0
    found = magnitude_scores(model.module)
    assert found.heads[1][1] == 0
    assert found.ffn[1][5] == 0


def test_the_pass_prunes_whole_heads_and_says_what_it_leaves() -> None:
    architecture = Architecture.of(make_decoder().module)
    assert architecture.describe() == (
        "3 layers x 4 heads of 2 queries x 48 FFN, hidden 32, vocabulary 23"
    )
    planned = plan_sizes(architecture, Ratios(0.5, 0.5, 0.0), multiple=8)
    assert planned.describe() == (
        "3 layers x 2 heads of 2 queries x 24 FFN, hidden 32, vocabulary 23"
    )


def test_the_residual_stream_of_a_decoder_stays() -> None:
    with pytest.raises(PassError, match="can be narrowed only in text encoders"):
        plan_sizes(Architecture.of(make_decoder().module), Ratios(0.0, 0.0, 0.5), multiple=8)


def test_passes_that_do_not_suit_a_decoder_say_why() -> None:
    known, unknown = (Architecture.of(make_decoder(each).module) for each in ("llama", "gpt2"))
    assert TrimVocabulary.unsuited(known) == "it writes text, so any token may be needed"
    assert Prune.unsuited(known) is None
    assert DropLayers.unsuited(known) is None
    assert Prune.unsuited(unknown) == "its layers are of an unknown kind"
    assert DropLayers.unsuited(unknown) == "its layers are of an unknown kind"
    assert unknown.num_parameters == sum(
        each.numel() for each in make_decoder("gpt2").module.parameters()
    )


def test_a_pruned_model_is_saved_and_loaded_as_a_whole(tmp_path: Path) -> None:
    model = make_decoder()
    pruned = replace(model, module=keep_units(model.module, KEPT["both"], INPUTS))
    pruned.save(tmp_path)
    loaded = TorchModel.load(tmp_path)
    assert torch.equal(logits(loaded.module), logits(pruned.module))
    assert (loaded.max_length, loaded.labels) == (MAX_LENGTH, ())
