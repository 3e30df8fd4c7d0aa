"""onnxruntime-genai: what it writes with a packaged bundle is what the bundle writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.errors import PackageError
from compressor.serving import available_formats
from compressor.serving.onnxruntime_genai import _special_tokens
from targets.answers import NextTokenAnswers
from targets.bundle import Bundle
from targets.generation import load_generator
from tests.compressor.serving.writers import PROMPT, make_writer

FORMAT = "onnxruntime_genai"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_writer("onnxruntime", tmp_path_factory.mktemp("onnxruntime"))


def test_onnxruntime_genai_writes_what_the_bundle_writes(bundle: Bundle, tmp_path: Path) -> None:
    genai: Any = pytest.importorskip("onnxruntime_genai", reason="not installed")
    out = tmp_path / "out"
    packaged = available_formats()[FORMAT]().package(bundle, out)
    assert set(packaged.files) == {
        "genai_config.json", "model/model.onnx", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "generation_config.json",
    }  # fmt: skip
    assert str(out) in packaged.command
    model = genai.Model(str(out))
    tokenizer = genai.Tokenizer(model)
    with load_generator(bundle.folder) as writer:
        prompt = writer.tokenizer.encode(PROMPT).ids
        expected = list(writer.tokens(prompt, max_tokens=10))
    assert list(tokenizer.encode(PROMPT)) == prompt
    generator = genai.Generator(model, genai.GeneratorParams(model))
    generator.append_tokens(prompt)
    found = []
    while not generator.is_done() and len(found) < 10:
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    assert found[: len(expected)] == expected
    assert len(expected) == 10 or found[len(expected)] in writer.ends


def test_a_text_ends_where_the_bundle_ends_it(bundle: Bundle, tmp_path: Path) -> None:
    available_formats()[FORMAT]().package(bundle, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text(encoding="utf-8"))
    assert config["model"]["eos_token_id"] == 1
    assert config["model"]["context_length"] == config["search"]["max_length"] == 64
    assert config["search"]["do_sample"] is False


def test_a_text_may_end_with_several_tokens(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.folder, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 1]}')
    Bundle.create(folder, bundle.manifest)
    available_formats()[FORMAT]().package(Bundle.open(folder), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text(encoding="utf-8"))
    assert config["model"]["eos_token_id"] == [5, 1]
    assert config["model"]["pad_token_id"] == 1


@pytest.mark.parametrize(
    ("ends", "own", "expected"), [((7,), None, 7), ((), 3, 3), ((7, 3), 3, [7, 3])]
)
def test_an_end_that_the_tokenizer_does_not_name_is_one(
    ends: tuple[int, ...], own: int | None, expected: object
) -> None:
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=own, pad_token_id=None)
    found = _special_tokens(tokenizer, NextTokenAnswers(ends=ends))
    assert found["eos_token_id"] == expected
    assert found["pad_token_id"] == (own or 7)


def test_layers_of_other_heads_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    signature = bundle.manifest.signature
    first, *rest = signature.state
    batch, _, past, size = first.shape
    narrow = first.model_copy(update={"shape": (batch, 1, past, size)})
    changed = signature.model_copy(update={"state": (narrow, *rest)})
    pruned = Bundle(bundle.folder, bundle.manifest.model_copy(update={"signature": changed}))
    with pytest.raises(
        PackageError, match="keys and values of the same shape in all layers"
    ) as caught:
        available_formats()[FORMAT]().package(pruned, tmp_path / "out")
    assert "1 x 8, 2 x 8" in str(caught.value)
    assert "openvino_genai" in str(caught.value.fix)
    assert not (tmp_path / "out").exists()


def test_bundles_of_other_targets_and_without_a_state_are_refused(
    bundle: Bundle, tmp_path: Path
) -> None:
    plain = bundle.manifest.signature.model_copy(update={"state": ()})
    for update, message in (
        ({"target": "openvino"}, "does not run bundles of this target"),
        ({"signature": plain}, "runs language models that keep a state"),
    ):
        other = Bundle(bundle.folder, bundle.manifest.model_copy(update=update))
        with pytest.raises(PackageError, match=message):
            available_formats()[FORMAT]().package(other, tmp_path / "out")
