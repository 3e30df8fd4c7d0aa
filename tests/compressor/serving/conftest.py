"""Real bundles of a small classifier, in milliseconds, and published packages to check against."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import targets
from compressor.serving import Packaged, available_formats
from targets import Bundle, Manifest, Signature, Source
from targets.base import Precision
from targets.bundle import SCHEMA_VERSION
from targets.preprocessing import TextPreprocessing

LABELS = ("person", "place", "time")
MAX_LENGTH = 24
TEXTS = (
    "w1 w2 w3",
    "",
    "w7",
    "unseen w1 ünseen 日本",
    " ".join(f"w{number}" for number in range(60)),
    "w5 w4 w3 w2 w1 w9 w8",
)
# How pip says that it reached no index, as opposed to an index without the package.
UNREACHABLE = ("NewConnectionError", "ConnectTimeoutError", "Name or service not known")


def write_tokenizer(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(600))]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")  # noqa: S106  (a token of text)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def make_bundle(
    tmp_path: Path,
    encoder_path: Path,
    encoder_signature: Signature,
    make_feeds: Callable[..., Any],
) -> Callable[..., Bundle]:
    """Lower the encoder: make_bundle("openvino", precision="int8", settings={}, name="small").

    What is named beyond that goes into the manifest as it is.
    """

    def make(
        target: str = "onnxruntime",
        *,
        precision: Precision = "fp32",
        settings: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Bundle:
        from compressor import quantization

        folder = tmp_path / f"bundle-{len(list(tmp_path.glob('bundle-*')))}"
        folder.mkdir()
        path = encoder_path
        if precision == "int8":
            path = tmp_path / "int8.onnx"
            calibration = [make_feeds(4, 12, seed=seed) for seed in range(4)]
            quantization.quantize_static(encoder_path, path, calibration)
        opened = targets.get(target)
        lowered = opened.lower(Source(path, encoder_signature, precision), folder)
        write_tokenizer(folder)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name="small",
            task="text-classification",
            target=target,
            target_settings=opened.settings() | (settings or {}),
            precision=precision,
            signature=encoder_signature,
            model=lowered.model,
            options=dict(lowered.options),
            labels=LABELS,
            preprocessing=TextPreprocessing(max_length=MAX_LENGTH, pad_token_id=0),
            provenance={"libraries": opened.versions()},
            files={},
        )
        return Bundle.create(folder, manifest.model_copy(update=changes))

    return make


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., tuple[Path, Packaged]]:
    """Package a bundle: package(bundle, "triton", max_batch_size=4) -> folder, what was written."""

    def run(bundle: Bundle, name: str, **options: Any) -> tuple[Path, Packaged]:
        folder = tmp_path / f"packaged-{len(list(tmp_path.glob('packaged-*')))}"
        return folder, available_formats()[name](**options).package(bundle, folder)

    return run


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Stands for the wheel of this toolkit where nobody installs it."""
    path = tmp_path / "compressor-0.1.0-py3-none-any.whl"
    path.write_bytes(b"a wheel")
    return path


@pytest.fixture
def required(wheel: Path) -> dict[str, dict[str, Any]]:
    """Format -> the options that have no default."""
    return {"docker": {"wheel": wheel}, "kserve": {"storage_uri": "s3://bucket/models/small"}}


@pytest.fixture
def digests() -> Callable[[Path], dict[str, str]]:
    """Path -> content hash of every file below a folder."""

    def read(folder: Path) -> dict[str, str]:
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read


@pytest.fixture
def texts() -> tuple[str, ...]:
    """Short, empty, unknown and too long."""
    return TEXTS


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Install distributions into a folder of their own, without what they need.

    They conflict with what this project needs, or are large: no extra of this project has them.
    """
    found: dict[tuple[str, ...], Path] = {}

    def install(*requirements: str) -> Path:
        if requirements not in found:
            folder = tmp_path_factory.mktemp("published")
            options = ("--quiet", "--no-deps", "--no-compile", "--target", str(folder))
            command = [sys.executable, "-m", "pip", "install", *options, *requirements]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode and any(sign in done.stdout + done.stderr for sign in UNREACHABLE):
                pytest.skip("pip reaches no package index here")
            assert done.returncode == 0, done.stdout + done.stderr
            found[requirements] = folder
        return found[requirements]

    return install
