"""Conversion of a language model and of plain texts: a tiny GGUF file, made as llama.cpp does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from assets.errors import PackageError
from assets.smollm2 import convert_llama, rename
from assets.text_generation import cut_texts, join_words
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh0123456789.", "Ġ", "ab", "Ġab"]
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}"
HEAD_SIZE = 8


def make_llama() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config).eval()


def pairs_together(weight: torch.Tensor) -> torch.Tensor:
    """Rows of queries or keys as llama.cpp's converter writes them."""
    halves = weight.reshape(-1, 2, HEAD_SIZE // 2, weight.shape[-1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: Any, *, pre: str = "smollm", left_out: str = "") -> None:
    gguf = pytest.importorskip("gguf", reason="not installed")
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = {rename(each): each for each in gguf_names(config.num_hidden_layers)}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" or name == left_out:
            continue
        if "q_proj" in name or "k_proj" in name:
            weight = pairs_together(weight)
        writer.add_tensor(names[name], weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_names(num_layers: int) -> list[str]:
    parts = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"]
    parts += ["ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
    layers = [f"blk.{layer}.{part}.weight" for layer in range(num_layers) for part in parts]
    return ["token_embd.weight", "output_norm.weight", *layers]


def test_a_llama_comes_back_out_of_a_gguf_file(tmp_path: Path) -> None:
    model = make_llama()
    write_gguf(tmp_path / "model.gguf", model)
    folder = tmp_path / "out"
    folder.mkdir()
    details = convert_llama(tmp_path / "model.gguf", folder)
    found = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert details == {
        "model": {
            "architectures": ["LlamaForCausalLM"],
            "num_parameters": sum(each.numel() for each in model.parameters()),
        }
    }
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    assert found.lm_head.weight is found.model.embed_tokens.weight
    ids = torch.arange(len(TOKENS))[None]
    with torch.inference_mode():
        torch.testing.assert_close(found(ids).logits, model(ids).logits)
    assert found.config.rms_norm_eps == 1e-5
    assert found.generation_config.eos_token_id == 2


def test_the_tokenizer_takes_digits_one_by_one(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", make_llama())
    folder = tmp_path / "out"
    folder.mkdir()
    convert_llama(tmp_path / "model.gguf", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("ab ab12 3.4<|im_end|>a") == [
        "ab", "Ġab", "1", "2", "Ġ", "3", ".", "4", "<|im_end|>", "a",
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer("ab ab12 3")["input_ids"]) == "ab ab12 3"
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert special == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == "<|im_start|>ab"


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre is 'llama-bpe', not 'smollm'"),
        ({"left_out": "model.norm.weight"}, "model.norm.weight"),
        (None, ""),
    ],
    ids=["other tokenizer", "absent weight", "no GGUF"],
)
def test_another_file_is_a_clear_error(tmp_path: Path, change: Any, given: str) -> None:
    path, folder = tmp_path / "model.gguf", tmp_path / "out"
    folder.mkdir()
    pytest.importorskip("gguf", reason="not installed")
    if change is None:
        path.write_bytes(b"no such file" * 10)
    else:
        write_gguf(path, make_llama(), **change)
    with pytest.raises(PackageError, match="not a readable SmolLM2 model in GGUF format") as caught:
        convert_llama(path, folder)
    assert given in str(caught.value.given)
    assert not list(folder.iterdir())


def test_texts_are_cut_at_ends_of_sentences() -> None:
    sentences = [["One", "two", "."], ["Three", "."], ["Four", "five", "six", "."], ["End"]]
    assert cut_texts(sentences, least_words=6) == ["One two. Three. Four five six."]
    assert cut_texts(sentences, least_words=4) == ["One two. Three.", "Four five six."]


def test_punctuation_stands_where_it_does_in_print() -> None:
    words = ["``", "Well", "''", ",", "he", "said", "(", "to", "her", ")"]
    words += [":", "``", "who", "?", "?", "''"]
    assert join_words(words) == '"Well", he said (to her): "who?"'
