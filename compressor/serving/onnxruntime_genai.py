"""A folder for onnxruntime-genai: a language model that keeps a state, and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from compressor.errors import PackageError
from compressor.serving.base import Format, copy_model, tuning_notes, version_notes
from compressor.tasks import get_task
from targets.answers import AnyAnswers, NextTokenAnswers
from targets.bundle import Bundle, Manifest
from targets.preprocessing.text import IDS, MASK
from targets.runtimes.onnxruntime import OnnxRuntime

__all__ = ["OnnxRuntimeGenAI"]


class OnnxRuntimeGenAI(Format):
    """onnxruntime-genai: a folder for its Model."""

    name = "onnxruntime_genai"
    targets: ClassVar[tuple[str, ...]] = (OnnxRuntime.name,)
    keeps_state: ClassVar[bool] = True
    needs_state: ClassVar[bool] = True

    def write(self, bundle: Bundle, folder: Path, name: str) -> Sequence[str]:
        """Write ``genai_config.json`` beside the model and the tokenizer's files."""
        manifest = bundle.manifest
        num_layers, heads, size = _uniform_layers(bundle)
        model = copy_model(bundle, folder / "model")
        task = get_task(manifest.task)
        tokenizer = task.load_processor(bundle.folder)
        task.save_processor(tokenizer, folder)
        config = {
            "model": {
                "type": "decoder",
                "context_length": manifest.preprocessing.longest,
                "vocab_size": manifest.signature.outputs[0].shape[-1],
                **_special_tokens(tokenizer, task.answers_with(tokenizer)),
                "decoder": {
                    "filename": f"model/{model}",
                    "num_hidden_layers": num_layers,
                    "num_attention_heads": heads,
                    "num_key_value_heads": heads,
                    "head_size": size,
                    "hidden_size": heads * size,
                    "session_options": {"log_id": name, **_session_options(manifest)},
                    "inputs": {
                        "input_ids": IDS,
                        "attention_mask": MASK,
                        "past_key_names": "past_key_values.%d.key",
                        "past_value_names": "past_key_values.%d.value",
                    },
                    "outputs": {
                        "logits": manifest.signature.outputs[0].name,
                        "present_key_names": "present.%d.key",
                        "present_value_names": "present.%d.value",
                    },
                },
            },
            "search": {
                "do_sample": False,
                "max_length": manifest.preprocessing.longest,
                "past_present_share_buffer": False,
            },
        }
        text = json.dumps(config, indent=2) + "\n"
        (folder / "genai_config.json").write_text(text, encoding="utf-8")
        return (*tuning_notes(manifest), *version_notes(manifest))

    def command(self, output: Path, name: str, manifest: Manifest) -> str:
        """How it is tried on the folder, for people."""
        return (
            'python -c "import onnxruntime_genai as g; '
            f"m = g.Model({str(output)!r}); t = g.Tokenizer(m); p = g.GeneratorParams(m); "
            "w = g.Generator(m, p); w.append_tokens(t.encode('Once upon a time')); "
            '[w.generate_next_token() for _ in range(64)]; print(t.decode(w.get_sequence(0)))"'
        )


def _session_options(manifest: Manifest) -> dict[str, Any]:
    """The entries of the session with which the bundle was measured, and its device."""
    entries = dict(manifest.options.get("session") or {})
    if manifest.target_settings.get("device", "cpu") == "cpu":
        return entries
    return {**entries, "provider_options": [{str(manifest.target_settings["device"]): {}}]}


def _uniform_layers(bundle: Bundle) -> tuple[int, int, int]:
    """Number of layers, and the heads of keys and the size of each in all of them.

    Raises:
        PackageError: Layers differ, as after pruning by importance.
    """
    shapes = [spec.shape for spec in bundle.manifest.signature.state]
    different = sorted({(int(shape[1]), int(shape[3])) for shape in shapes})
    if len(different) > 1:
        raise PackageError(
            "onnxruntime-genai needs keys and values of the same shape in all layers",
            where=bundle.source,
            given="heads x size: " + ", ".join(f"{heads} x {size}" for heads, size in different),
            fix="prune the heads of all layers alike, or package for openvino_genai",
        )
    [(heads, size)] = different
    return len(shapes) // 2, heads, size


def _special_tokens(tokenizer: Any, answers: AnyAnswers) -> dict[str, int | list[int]]:
    """The ids of the tokens that begin, end and pad a text; those that there are."""
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    ends = answers.ends if isinstance(answers, NextTokenAnswers) else ()
    end = next(iter(ends), None) if end is None else end
    several = list(ends) if len(ends) > 1 else end
    found = {"bos": begin, "eos": several, "pad": end if pad is None else pad}
    return {f"{name}_token_id": value for name, value in found.items() if value is not None}
