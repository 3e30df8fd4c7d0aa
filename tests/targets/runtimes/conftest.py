"""Lower a model with a target and open what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.quantization import quantize_static
from targets import Arrays, Bundle, Manifest, Signature, Source, Target
from targets.bundle import SCHEMA_VERSION
from targets.preprocessing import TextPreprocessing


@pytest.fixture
def int8_path(encoder_path: Path, tmp_path: Path, make_feeds: Callable[..., Arrays]) -> Path:
    """The small encoder in the portable int8 form."""
    path = tmp_path / "int8.onnx"
    quantize_static(encoder_path, path, [make_feeds(seed=seed) for seed in range(3)])
    return path


@pytest.fixture
def lower(
    tmp_path: Path, encoder_signature: Signature, write_tokenizer: Callable[[Path], None]
) -> Callable[..., Bundle]:
    """Make a bundle of a model with the inputs and outputs of the small encoder."""

    def make(
        target: Target,
        path: Path,
        precision: str = "fp32",
        name: str = "bundle",
        *,
        signature: Signature = encoder_signature,
        longest: int = 0,
    ) -> Bundle:
        folder = tmp_path / name
        folder.mkdir()
        ranges = {"sequence": (1, longest, longest)} if longest else {}
        source = Source(path, signature, precision, ranges)  # type: ignore[arg-type]
        target.requires(source)
        lowered = target.lower(source, folder)
        write_tokenizer(folder)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=name,
            task="text-classification",
            target=target.name,
            target_settings=target.settings(),
            precision=source.precision,
            signature=signature,
            model=lowered.model,
            options=dict(lowered.options),
            cpu_features=lowered.cpu_features,
            notes=lowered.notes,
            labels=("a", "b", "c"),
            preprocessing=TextPreprocessing(max_length=16, pad_token_id=0),
            files={},
        )
        Bundle.create(folder, manifest)
        return Bundle.open(folder)

    return make
