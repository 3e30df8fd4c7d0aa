"""Tiny bundles that write texts, with a tokenizer as the runtimes of language models read it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from compressor.export import export_onnx
from compressor.model import TorchModel
from compressor.tasks import get_task
from targets.base import Source
from targets.bundle import SCHEMA_VERSION, Bundle, Manifest
from targets.registry import get
from tests.compressor.decoders import CHAT_TEMPLATE, TASK

PROMPT = "the birds sing 12"


def make_byte_level() -> PreTrainedTokenizerFast:
    tokens = ["<s>", "</s>", *map(chr, range(33, 127)), "Ġ"]  # no bytes of longer characters
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, normalized=False) for each in ("<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="</s>",  # noqa: S106
        chat_template=CHAT_TEMPLATE,
    )


def make_writer(target: str, folder: Path) -> Bundle:
    """A bundle of a small Llama below a folder."""
    files = folder / "bundle"
    files.mkdir()
    tokenizer = make_byte_level()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            initializer_range=0.3, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )  # fmt: skip
        module = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    model, task = TorchModel(module, tokenizer, TASK, 64), get_task(TASK)
    signature = task.with_state(model, task.signature(model))
    source = Source(folder / "model.onnx", signature)
    export_onnx(model, signature, source.path)
    lowered = get(target).lower(source, files)
    task.save_processor(tokenizer, files)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION, name="small", task=TASK, target=target,
        target_settings={}, precision="fp32", signature=signature, model=lowered.model,
        options=dict(lowered.options), labels=(), answers=task.answers, files={},
        preprocessing=task.preprocessing(files, 64),
    )  # fmt: skip
    return Bundle.create(files, manifest)
