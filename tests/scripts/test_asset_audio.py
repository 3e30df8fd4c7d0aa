"""Conversion of audio assets: a tiny Whisper as CTranslate2 writes it, and the names of prompts."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from assets.audio_classification import label_prompts
from assets.errors import PackageError
from assets.whisper import convert_whisper, read_weights
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

VOCABULARY = 1700
SUPPRESSED = {"suppress_ids": [1, 2], "suppress_ids_begin": [3, 92]}
PROMPTS = "usr/share/asterisk/sounds/en_US_f_Allison/"


@pytest.fixture(scope="module")
def model() -> WhisperForConditionalGeneration:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = WhisperConfig(
            vocab_size=VOCABULARY,
            d_model=12,
            num_mel_bins=8,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=3,
            decoder_attention_heads=3,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_source_positions=10,
            max_target_positions=9,
            pad_token_id=92,
            bos_token_id=92,
            eos_token_id=92,
            decoder_start_token_id=93,
        )
        model = WhisperForConditionalGeneration(config).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
            parameter.data = parameter.data.half().float()
    return model


def as_ctranslate2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of CTranslate2, queries, keys and values joined."""
    found = {}

    def put(ours: str, theirs: str) -> None:
        for new, old in (("weight", "weight"), ("bias", "bias")):
            if f"{theirs}.{old}" in state:
                found[f"{ours}/{new}"] = state[f"{theirs}.{old}"]

    def norm(ours: str, theirs: str) -> None:
        found[f"{ours}/gamma"] = state[f"{theirs}.weight"]
        found[f"{ours}/beta"] = state[f"{theirs}.bias"]

    def join(ours: str, theirs: list[str]) -> None:
        found[f"{ours}/weight"] = torch.cat([state[f"{each}.weight"] for each in theirs])
        zeros = torch.zeros(12)
        found[f"{ours}/bias"] = torch.cat([state.get(f"{each}.bias", zeros) for each in theirs])

    for side in ("encoder", "decoder"):
        body = f"model.{side}"
        found[f"{side}/position_encodings/encodings"] = state[f"{body}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"{body}.layer_norm")
        for number in range(2):
            ours, theirs = f"{side}/layer_{number}", f"{body}.layers.{number}"
            norm(f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm")
            heads = [f"{theirs}.self_attn.{each}_proj" for each in "qkv"]
            join(f"{ours}/self_attention/linear_0", heads)
            put(f"{ours}/self_attention/linear_1", f"{theirs}.self_attn.out_proj")
            norm(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm")
            put(f"{ours}/ffn/linear_0", f"{theirs}.fc1")
            put(f"{ours}/ffn/linear_1", f"{theirs}.fc2")
            if side == "decoder":
                norm(f"{ours}/attention/layer_norm", f"{theirs}.encoder_attn_layer_norm")
                heads = [f"{theirs}.encoder_attn.{each}_proj" for each in "qkv"]
                join(f"{ours}/attention/linear_0", heads[:1])
                join(f"{ours}/attention/linear_1", heads[1:])
                put(f"{ours}/attention/linear_2", f"{theirs}.encoder_attn.out_proj")
    put("encoder/conv1", "model.encoder.conv1")
    put("encoder/conv2", "model.encoder.conv2")
    put("decoder/embeddings", "model.decoder.embed_tokens")
    return found


def write_bin(weights: dict[str, Tensor], *, spec: str = "WhisperSpec") -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", 6), text(spec), struct.pack("<I", 3)]
    parts.append(struct.pack("<I", len(weights) + 1))
    parts.append(text("encoder/num_heads") + struct.pack("<BBIh", 0, 2, 2, 3))
    for name, value in weights.items():
        raw = value.detach().numpy().astype("<f2").tobytes()
        shape = struct.pack(f"<{value.ndim}I", *value.shape)
        parts.append(text(name) + struct.pack("<B", value.ndim) + shape)
        parts.append(struct.pack("<BI", 4, len(raw)) + raw)
    parts.append(struct.pack("<I", 0))
    return b"".join(parts)


def test_whisper_comes_back_out_of_ctranslate2(
    model: WhisperForConditionalGeneration, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = write_bin(as_ctranslate2(model.state_dict()))
    convert_whisper(content, SUPPRESSED, tmp_path, num_heads=3)
    assert capfd.readouterr() == ("", "")
    converted = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    expected = model.state_dict()
    assert converted.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in converted.state_dict().items())
    same = ("vocab_size", "d_model", "encoder_layers", "encoder_ffn_dim", "pad_token_id")
    same += ("decoder_start_token_id", "encoder_attention_heads", "max_source_positions")
    assert [getattr(converted.config, each) for each in same] == [
        getattr(model.config, each) for each in same
    ]
    assert converted.generation_config.suppress_tokens == [1, 2]
    assert AutoFeatureExtractor.from_pretrained(tmp_path).feature_size == 8


@pytest.mark.parametrize("spec", ["TransformerSpec", "WhisperSpec"])
def test_another_file_is_a_clear_error(spec: str, tmp_path: Path) -> None:
    content = write_bin({"encoder/conv1/weight": torch.zeros(2, 2)}, spec=spec)
    with pytest.raises(PackageError, match="not a readable CTranslate2 model of Whisper") as caught:
        read_weights(content if spec == "TransformerSpec" else content[:-20])
    assert caught.value.given
    assert not list(tmp_path.iterdir())


def test_a_whisper_that_lacks_weights_is_a_clear_error(
    model: WhisperForConditionalGeneration, tmp_path: Path
) -> None:
    weights = as_ctranslate2(model.state_dict())
    del weights["encoder/layer_1/ffn/linear_1/bias"]
    with pytest.raises(PackageError, match="not a readable CTranslate2 model of Whisper") as caught:
        convert_whisper(write_bin(weights), SUPPRESSED, tmp_path, num_heads=3)
    assert "model.encoder.layers.1.fc2.bias" in caught.value.given
    assert not list(tmp_path.iterdir())


def test_prompts_are_labelled_by_the_names_of_their_files() -> None:
    names = ["vm-goodbye.wav", "conf-full.wav", "confbridge-pin.wav", "digits/7.wav"]
    names += ["letters/a.wav", "phonetic/a_p.wav", "beep.wav", "silence/1.wav", "digits/7.txt"]
    rows = label_prompts([*(PROMPTS + name for name in names), "usr/share/doc/copyright"])
    assert [(row.audio, row.label) for row in rows] == [
        ("recordings/conf-full.wav", "conference"),
        ("recordings/confbridge-pin.wav", "conference"),
        ("recordings/digits/7.wav", "number"),
        ("recordings/letters/a.wav", "spelling"),
        ("recordings/phonetic/a_p.wav", "spelling"),
        ("recordings/vm-goodbye.wav", "voicemail"),
    ]


def test_a_package_without_a_kind_of_prompts_is_a_clear_error() -> None:
    with pytest.raises(PackageError, match="no prompts of some kinds") as caught:
        label_prompts([PROMPTS + "vm-goodbye.wav", PROMPTS + "digits/7.wav"])
    assert caught.value.given == "none for conference, spelling"


def test_numbers_keep_their_type() -> None:
    weights = read_weights(write_bin({"a/weight": torch.tensor([[1.5, -2.0]])}))
    assert json.dumps({name: each.tolist() for name, each in weights.items()}) == (
        '{"a/weight": [[1.5, -2.0]]}'
    )
    assert weights["a/weight"].dtype == np.float32
