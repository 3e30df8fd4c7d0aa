from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import PassError
from compressor.pruning import slicing
from compressor.pruning.slicing import Kept, keep_units
from targets.encoder import encoder_layers

Inputs = dict[str, Tensor]
ALL_HEADS, ALL_NEURONS = [range(4)] * 2, [range(64)] * 2


def logits(module: nn.Module, inputs: Inputs) -> Tensor:
    with torch.inference_mode():
        return module(**inputs).logits


def mask_units(module: nn.Module, kept: Kept) -> nn.Module:
    """Zero what is not kept in the projections that read it: the reference for pruning."""
    masked = copy.deepcopy(module)
    with torch.no_grad():
        for layer, heads, neurons in zip(encoder_layers(masked), kept.heads, kept.ffn, strict=True):
            for head in set(range(4)) - set(heads):
                layer.attention_output.weight[:, head * 8 : (head + 1) * 8] = 0
            gone = sorted(set(range(64)) - set(neurons))
            layer.ffn_output.weight[:, gone] = 0
    return masked


@pytest.mark.parametrize(
    "kept",
    [
        Kept([(0, 2), (1, 3)], [range(0, 64, 2)] * 2),
        Kept([(3,), (0, 1, 2)], [range(8), range(16, 64)]),
        Kept([(1, 2)] * 2, ALL_NEURONS),
        Kept(ALL_HEADS, [range(40)] * 2),
    ],
    ids=["both", "unlike layers", "heads", "ffn"],
)
def test_a_pruned_model_computes_what_the_masked_one_does(
    encoder: nn.Module, inputs: Inputs, kept: Kept
) -> None:
    pruned = keep_units(encoder, kept, inputs)
    expected = logits(mask_units(encoder, kept), inputs)
    assert not torch.allclose(logits(encoder, inputs), expected, atol=1e-3)
    torch.testing.assert_close(logits(pruned, inputs), expected, atol=1e-5, rtol=1e-5)
    layers = encoder_layers(pruned)
    assert [layer.num_heads for layer in layers] == [len(each) for each in kept.heads]
    assert [layer.ffn_width for layer in layers] == [len(each) for each in kept.ffn]


def test_a_head_whose_output_is_zero_leaves_the_outputs_as_they_were(
    encoder: nn.Module, inputs: Inputs
) -> None:
    with torch.no_grad():
        encoder_layers(encoder)[1].attention_output.weight[:, 16:24] = 0
    pruned = keep_units(encoder, Kept([range(4), (0, 1, 3)], ALL_NEURONS), inputs)
    torch.testing.assert_close(
        logits(pruned, inputs), logits(encoder, inputs), atol=1e-5, rtol=1e-5
    )


def test_keeping_everything_changes_nothing(encoder: nn.Module, inputs: Inputs) -> None:
    pruned = keep_units(encoder, Kept(ALL_HEADS, ALL_NEURONS, range(32)), inputs)
    assert torch.equal(logits(pruned, inputs), logits(encoder, inputs))


def test_a_narrower_stream_is_cut_at_the_same_units_everywhere(
    encoder: nn.Module, inputs: Inputs
) -> None:
    hidden = [*range(8), *range(12, 28)]
    pruned = keep_units(encoder, Kept(ALL_HEADS, ALL_NEURONS, hidden), inputs)
    before, after = encoder.state_dict(), pruned.state_dict()
    for name, tensor in before.items():
        expected = tensor
        stream = 16 if "embeddings." in name and "electra" in name else 32
        inner = ("query", "key", "value", "q_lin", "k_lin", "v_lin", "intermediate", "lin1")
        written = not any(part in name for part in inner) and "pooler" not in name
        written = written and "classifier" not in name
        if name.endswith("weight") and tensor.ndim == 2:
            embedding = "embeddings." in name
            if stream == 32 and written and not embedding:
                expected = expected[hidden]  # projections that write the stream
            if stream == 32 and embedding:
                expected = expected[:, hidden]
            reads = not written and ("out_proj" not in name and name != "classifier.weight")
            if reads:
                expected = expected[:, hidden]
        elif stream == 32 and written:
            expected = expected[hidden]
        assert torch.equal(after[name], expected), name
    assert torch.isfinite(logits(pruned, inputs)).all()
    assert pruned.config.hidden_size == 24


def test_the_input_stays_untouched_and_shares_nothing(encoder: nn.Module, inputs: Inputs) -> None:
    before = copy.deepcopy(encoder.state_dict())
    config = encoder.config.to_dict()
    kept = Kept([(0,), (1, 2)], [range(8), range(16)], range(16, 32))
    pruned = keep_units(encoder, kept, inputs)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.fill_(7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert encoder.config.to_dict() == config
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_frozen_parameters_are_cut_and_stay_frozen(encoder: nn.Module, inputs: Inputs) -> None:
    encoder.requires_grad_(False)
    encoder.get_input_embeddings().weight.requires_grad_(True)
    pruned = keep_units(encoder, Kept([(0, 1)] * 2, [range(8)] * 2), inputs)
    learning = [name for name, each in pruned.named_parameters() if each.requires_grad]
    assert len(learning) == 1
    assert learning[0].endswith("word_embeddings.weight")


def test_a_pruned_model_is_pruned_again(encoder: nn.Module, inputs: Inputs) -> None:
    once = keep_units(encoder, Kept([(0, 1, 3), (1, 2, 3)], [range(32)] * 2), inputs)
    twice = keep_units(once, Kept([(0, 2), (1,)], [range(8)] * 2), inputs)
    direct = keep_units(encoder, Kept([(0, 3), (2,)], [range(8)] * 2), inputs)
    assert torch.equal(logits(twice, inputs), logits(direct, inputs))


def test_a_cut_that_was_skipped_is_noticed(
    encoder: nn.Module, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slicing, "_keep_hidden", lambda *_: None)
    with pytest.raises(PassError, match="a layer with the wrong sizes") as error:
        keep_units(encoder, Kept([(0,), range(4)], ALL_NEURONS, range(16)), inputs)
    assert error.value.where == "layer 0, query"
    assert error.value.given == "[8, 32] instead of [8, 16]"
