"""openvino.genai: what it writes with a packaged bundle is what the bundle writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from compressor.errors import PackageError
from compressor.export import export_onnx
from compressor.model import TorchModel
from compressor.serving import available_formats
from compressor.tasks import get_task
from targets.base import Source
from targets.bundle import SCHEMA_VERSION, Bundle, Manifest
from targets.errors import MissingLibraryError
from targets.generation import load_generator
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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
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
    source = Source(tmp_path_factory.mktemp("onnx") / "model.onnx", signature)
    export_onnx(model, signature, source.path)
    lowered = get("openvino").lower(source, folder)
    task.save_processor(tokenizer, folder)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION, name="small", task=TASK, target="openvino",
        target_settings={}, precision="fp32", signature=signature, model=lowered.model,
        options=dict(lowered.options), labels=(), answers=task.answers, files={},
        preprocessing=task.preprocessing(folder, 64),
    )  # fmt: skip
    return Bundle.create(folder, manifest)


def test_openvino_genai_writes_what_the_bundle_writes(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("openvino_tokenizers", reason="not installed")
    genai: Any = pytest.importorskip("openvino_genai", reason="not installed")
    packaged = available_formats()["openvino_genai"]().package(bundle, tmp_path / "out")
    assert {
        "openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml",
        "openvino_detokenizer.xml", "generation_config.json", "tokenizer.json",
        "chat_template.jinja",
    } <= set(packaged.files)  # fmt: skip
    assert "INFERENCE_PRECISION_HINT=f32" in packaged.notes[0]
    with load_generator(bundle.folder) as generator:
        expected = "".join(generator.stream(PROMPT, max_tokens=10))
    assert expected
    pipeline = genai.LLMPipeline(
        str(tmp_path / "out"), "CPU", INFERENCE_PRECISION_HINT="f32", KV_CACHE_PRECISION="f32",
        DYNAMIC_QUANTIZATION_GROUP_SIZE=0,
    )  # fmt: skip
    settings = pipeline.get_generation_config()
    assert settings.eos_token_id == 1
    settings.max_new_tokens, settings.do_sample = 10, False
    settings.apply_chat_template = False
    assert str(pipeline.generate(PROMPT, settings)) == expected


def test_without_its_library_the_format_says_what_to_install(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino_tokenizers", None)
    with pytest.raises(MissingLibraryError, match="openvino-tokenizers") as caught:
        available_formats()["openvino_genai"]().package(bundle, tmp_path / "out")
    assert "compressor[genai]" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_a_state_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    plain = bundle.manifest.signature.model_copy(update={"state": ()})
    without = Bundle(bundle.folder, bundle.manifest.model_copy(update={"signature": plain}))
    with pytest.raises(PackageError, match="runs language models that keep a state") as caught:
        available_formats()["openvino_genai"]().package(without, tmp_path / "out")
    assert "cache: true" in str(caught.value.fix)
