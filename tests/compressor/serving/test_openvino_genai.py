"""openvino.genai: what it writes with a packaged bundle is what the bundle writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compressor.errors import PackageError
from compressor.serving import available_formats
from targets.bundle import Bundle
from targets.errors import MissingLibraryError
from targets.generation import load_generator
from tests.compressor.serving.writers import PROMPT, make_writer


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_writer("openvino", tmp_path_factory.mktemp("openvino"))


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
