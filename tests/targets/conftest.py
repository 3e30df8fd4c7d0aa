"""A target that misbehaves on demand, announced as another distribution would announce it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from targets import Bundle, Manifest, Signature, TensorSpec, registry
from targets.bundle import SCHEMA_VERSION
from targets.preprocessing import TextPreprocessing

FAKE = '''
import ctypes, os, signal, time
import numpy as np
from pydantic import BaseModel
from targets.base import Alternative, Lowered, Session, Target
from targets.errors import TargetError, UnsupportedModelError

class Fake(Target):
    """Adds up token ids."""
    name = "fake"
    extra = "fake"
    fault: str = ""
    delay_ms: float = 0.0
    def cannot_lower(self): return None
    def cannot_run(self): return None
    def native_precisions(self): return ("fp32",)
    def requires(self, source):
        if self.fault == "requires":
            raise UnsupportedModelError("no", where="node 7", given="Foo", fix="leave Foo out")
    def lower(self, source, folder):
        (folder / "model.bin").write_bytes(b"fake")
        options = {
            "precision": source.precision,
            "ranges": dict(source.ranges),
            "task": source.task,
        }
        return Lowered("model.bin", options, ("a note",))
    def alternatives(self, *, threads, batch_size):
        return {
            "fast": Alternative({"fake": {"delay_ms": self.delay_ms / 4}}),
            "slow": Alternative({"fake": {"delay_ms": self.delay_ms * 2}}),
            "wrong": Alternative(
                {"fake": {"delay_ms": self.delay_ms / 8, "flip": True}}, keeps_outputs=False
            ),
            "broken": Alternative({"fake": {"fault": "crash"}}),
        }
    def load(self, bundle, *, threads):
        if self.fault == "load":
            raise TargetError("the runtime refused it", where="model.bin")
        if self.fault == "print":
            os.write(1, b"native noise on stdout\\n")
            print("python noise on stdout")
        return FakeSession(bundle.manifest.signature, self, bundle.manifest.options)

class FakeSession(Session):
    def __init__(self, signature, target, options):
        super().__init__(signature)
        self.count = 0
        self.options = {"fault": target.fault, "delay_ms": target.delay_ms}
        self.options |= options.get("fake", {})
    def _run(self, feeds):
        self.count += 1
        fault, _, at = self.options["fault"].partition("@")
        if self.count > int(at or 0):
            if fault == "crash":
                ctypes.string_at(0)
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "hang":
                time.sleep(60)
            if fault == "exit":
                os._exit(3)
            if fault == "python":
                raise KeyError("a bug")
            if fault == "big" and len(feeds["input_ids"]) > 1:
                raise TargetError("static shape", given=str(feeds["input_ids"].shape))
        if self.options["delay_ms"]:
            end = time.perf_counter() + self.options["delay_ms"] / 1e3
            while time.perf_counter() < end: pass
        ids = feeds["input_ids"] * feeds["attention_mask"]
        total = ids.sum(axis=1) * (-1 if self.options.get("flip") else 1)
        return {"logits": np.stack([total, -total], axis=1).astype(np.float32),
                "tokens": ids.astype(np.float32)}
'''

SIGNATURE = Signature(
    inputs=tuple(
        TensorSpec(name=name, dtype="int64", shape=("batch", "sequence"))
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ),
    outputs=(
        TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),
        TensorSpec(name="tokens", dtype="float32", shape=("batch", "sequence")),
    ),
)

MakeBundle = Callable[..., Path]


def write_bundle(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write a bundle that no runtime looks into, with `model.bin` among its files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    shape = ("batch", "sequence")
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="half",
        task="text-classification",
        target="onnxruntime",
        target_settings={},
        precision="int8",
        signature=Signature(
            inputs=(TensorSpec(name="input_ids", dtype="int64", shape=shape),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
        ),
        model="model.bin",
        labels=("no", "yes"),
        preprocessing=TextPreprocessing(max_length=16, pad_token_id=0),
        files={},
    )
    Bundle.create(folder, manifest)
    return folder


@pytest.fixture
def fake_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that announces the target ``fake`` here and in worker processes."""
    folder = tmp_path / "site"
    info = folder / "fake_target-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "fake_target.py").write_text(FAKE, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-target\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[compressor.targets]\nfake = fake_target:Fake\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    registry.available.cache_clear()
    yield folder
    registry.available.cache_clear()


@pytest.fixture
def write_tokenizer() -> Callable[[Path], None]:
    """Write a small BERT-like tokenizer of 20 words into a folder."""

    def write(folder: Path) -> None:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{index}" for index in range(16))]
        tokenizer = Tokenizer(
            models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")  # noqa: S106  (a token of text)
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer.save(str(folder / "tokenizer.json"))

    return write


@pytest.fixture
def make_bundle(
    tmp_path: Path, fake_target: Path, write_tokenizer: Callable[[Path], None]
) -> MakeBundle:
    """Make a bundle of the target ``fake`` with the given settings."""

    def make(name: str = "bundle", **settings: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.bin").write_bytes(json.dumps(settings).encode())
        write_tokenizer(folder)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=name,
            task="text-classification",
            target="fake",
            target_settings=settings,
            precision="fp32",
            signature=SIGNATURE,
            model="model.bin",
            labels=("negative", "positive"),
            preprocessing=TextPreprocessing(max_length=16, pad_token_id=0),
            files={},
        )
        Bundle.create(folder, manifest)
        return folder

    return make
