"""Encoders of sound: their heads, neurons and layers are found, cut and stored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForAudioClassification,
)

from compressor.architecture import Architecture
from compressor.errors import PassError
from compressor.pruning.layers import select_layers
from compressor.pruning.slicing import Kept, check_hidden, keep_units
from targets.checkpoint import load_module, save_module
from targets.encoder import encoder_layers

KEPT = Kept([(0, 2), (1,), (0, 1, 3)], [range(32), range(16, 64), range(0, 64, 4)])


def wav2vec2(norm: str) -> nn.Module:
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_kernel=(10, 8),
        conv_stride=(5, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        classifier_proj_size=16,
    )
    return Wav2Vec2ForSequenceClassification._from_config(config, attn_implementation="eager")


def whisper() -> nn.Module:
    config = WhisperConfig(
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        vocab_size=100,
        max_source_positions=20,
        num_mel_bins=8,
        classifier_proj_size=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return WhisperForAudioClassification._from_config(config, attn_implementation="eager")


KINDS: dict[str, Callable[[], nn.Module]] = {
    "wav2vec2": lambda: wav2vec2("group"),
    "wav2vec2-stable": lambda: wav2vec2("layer"),
    "whisper": whisper,
}


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = KINDS[request.param]()
        for parameter in module.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return module.eval()


@pytest.fixture
def inputs(encoder: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if isinstance(encoder, WhisperForAudioClassification):
        return {"input_features": torch.randn((2, 8, 40), generator=generator)}
    return {"input_values": torch.randn((2, 900), generator=generator)}


def logits(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        found: Tensor = module(**inputs).logits
    return found


def masked(module: nn.Module, kept: Kept) -> nn.Module:
    """Zero what is not kept in the projections that read it: the reference for pruning."""
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for layer, heads, neurons in zip(
            encoder_layers(changed), kept.heads, kept.ffn, strict=True
        ):
            for head in set(range(4)) - set(heads):
                layer.attention_output.weight[:, head * 8 : (head + 1) * 8] = 0
            layer.ffn_output.weight[:, sorted(set(range(64)) - set(neurons))] = 0
    return changed


def test_a_pruned_encoder_computes_what_the_masked_one_does(
    encoder: nn.Module, inputs: dict[str, Tensor]
) -> None:
    expected = logits(masked(encoder, KEPT), inputs)
    assert not torch.allclose(logits(encoder, inputs), expected, atol=1e-3)
    pruned = keep_units(encoder, KEPT, inputs)
    torch.testing.assert_close(logits(pruned, inputs), expected, atol=1e-5, rtol=1e-5)


def test_a_pruned_encoder_comes_back_bit_equal(
    encoder: nn.Module, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    pruned = keep_units(select_layers(encoder, (0, 2)), Kept(KEPT.heads[:2], KEPT.ffn[:2]), inputs)
    save_module(pruned, tmp_path)
    loaded = load_module(tmp_path, "audio-classification")
    torch.testing.assert_close(logits(loaded, inputs), logits(pruned, inputs), atol=0, rtol=0)
    assert [(each.num_heads, each.ffn_width) for each in encoder_layers(loaded)] == [
        (2, 32),
        (1, 48),
    ]


def test_parameters_are_counted_as_they_are(encoder: nn.Module, inputs: dict[str, Tensor]) -> None:
    before = Architecture.of(encoder)
    after = Architecture.of(keep_units(encoder, KEPT, inputs))
    for module, sizes in ((encoder, before), (keep_units(encoder, KEPT, inputs), after)):
        total = sum(each.numel() for each in module.state_dict().values())
        assert sizes.num_parameters == total
    # What is planned for other layers is exact only where the rest is the same.
    assert before.num_other_parameters == after.num_other_parameters


def test_hidden_units_are_pruned_or_refused(encoder: nn.Module, inputs: dict[str, Tensor]) -> None:
    kept = Kept([range(4)] * 3, [range(64)] * 3, hidden=range(16))
    if isinstance(encoder, WhisperForAudioClassification):
        check_hidden(encoder)
        assert keep_units(encoder, kept, inputs).config.d_model == 16
        return
    with pytest.raises(PassError, match="cannot be pruned") as caught:
        check_hidden(encoder)
    assert "pos_conv_embed" in str(caught.value.where)
    assert "leave hidden out" in str(caught.value.fix)
