"""A folder for openvino.genai: a language model that keeps a state, and its tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from compressor.serving.base import Format, tuning_notes, version_notes
from compressor.tasks import get_task
from targets.bundle import Bundle, Manifest
from targets.runtimes._openvino_tokenizer import write_tokenizer
from targets.runtimes.openvino import OpenVINO

__all__ = ["OpenVINOGenAI"]

_PRECISION = "INFERENCE_PRECISION_HINT"
_HONEST: Mapping[str, str | int] = {
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}
"""Without these openvino.genai rounds more on a CPU than the bundle does that was measured."""


class OpenVINOGenAI(Format):
    """openvino.genai: a folder for its LLMPipeline."""

    name = "openvino_genai"
    targets: ClassVar[tuple[str, ...]] = (OpenVINO.name,)
    keeps_state: ClassVar[bool] = True
    needs_state: ClassVar[bool] = True

    def write(self, bundle: Bundle, folder: Path, name: str) -> Sequence[str]:
        """Write ``openvino_model.xml``, both tokenizers, and the files of transformers."""
        manifest = bundle.manifest
        for path in (bundle.model_path, bundle.model_path.with_suffix(".bin")):
            shutil.copyfile(path, folder / f"openvino_model{path.suffix}")
        task = get_task(manifest.task)
        tokenizer = task.load_processor(bundle.folder)
        task.save_processor(tokenizer, folder)
        write_tokenizer(tokenizer, folder)
        settings = ", ".join(f"{key}={value}" for key, value in _settings(manifest).items())
        return (
            f"the bundle was measured with {settings}; without it, it is computed less exactly",
            *tuning_notes(manifest),
            *version_notes(manifest),
        )

    def command(self, output: Path, name: str, manifest: Manifest) -> str:
        """How it is tried on the folder, for people."""
        settings = ", ".join(f"{key}={value!r}" for key, value in _settings(manifest).items())
        device = manifest.target_settings.get("device", "CPU")
        return (
            'python -c "import openvino_genai as g; '
            f"p = g.LLMPipeline({str(output)!r}, {device!r}, {settings}); "
            "print(p.generate('Once upon a time', max_new_tokens=64))\""
        )


def _settings(manifest: Manifest) -> dict[str, str | int]:
    """Properties of the runtime with which the bundle was measured."""
    is_on_cpu = manifest.target_settings.get("device", "CPU") == "CPU"
    precision = str(manifest.options.get(_PRECISION, "f32"))
    return {_PRECISION: precision, **(_HONEST if is_on_cpu else {})}
