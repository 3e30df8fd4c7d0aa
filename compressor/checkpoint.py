"""Say what is wrong with a checkpoint that a user brings, before it is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from compressor.architecture import reads_sound
from compressor.data import Kind
from compressor.errors import CheckpointError, missing_path
from targets.shapes import tensor_shapes, weight_files

__all__ = [
    "check_checkpoint",
    "check_folder",
    "check_weights",
    "class_name",
    "label_names",
    "read_config",
    "read_settings_file",
]

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})  # as safetensors names them
_NUM_NAMED = 5  # tensors that an error names before it counts the rest

_ADAPTERS = "adapter_config.json"
_WRAPPER = "timm_wrapper"
_WRITES = ("ForConditionalGeneration", "ForCausalLM", "ForImageTextToText")
_OTHER_INPUTS = ("vision_config", "audio_config")
_OTHER_PROBLEMS = ("regression", "multi_label_classification")
_EXPECTED = "pass a Hugging Face folder with config.json, model.safetensors and tokenizer.json"
_CONVERT = (
    'convert it where you trust its origin: python -c "import json, sys, transformers; '
    "folder = sys.argv[1]; [name] = json.load(open(folder + '/config.json'))['architectures']; "
    'getattr(transformers, name).from_pretrained(folder).save_pretrained(folder)" FOLDER'
)


def check_checkpoint(folder: Path, *, head: str | tuple[str, ...], kind: Kind = "text") -> None:
    """Check a Hugging Face folder without loading its weights.

    Args:
        folder: The checkpoint.
        head: What the name of the model class has to end with, such as
            ``ForSequenceClassification``; one of several.
        kind: Of its inputs.

    Raises:
        CheckpointError: See :func:`check_folder`; or it has another task's head, or reads sound
            where it should not, or should.
    """
    config = check_folder(folder)
    heads = (head,) if isinstance(head, str) else head
    name = class_name(config)
    parts = [part for part in _OTHER_INPUTS if config.get(part)]
    if parts and str(name).endswith(_WRITES):
        raise CheckpointError(
            "the checkpoint reads other inputs beside texts (a multimodal model)",
            where=folder / "config.json",
            given=f"{name}, with {' and '.join(parts)}",
            fix="pass a checkpoint of its language model alone: load it with transformers, and "
            "save that part with its tokenizer",
        )
    if name is None or not name.endswith(heads):
        raise CheckpointError(
            f"the checkpoint has no head for this task ({heads[0].removeprefix('For')})",
            where=folder / "config.json, field architectures",
            given=name or "(none)",
            fix="fine-tune first: compressor finetune",
        )
    if reads_sound(config) != (kind == "audio"):
        raise CheckpointError(
            f"the checkpoint does not read the inputs of this task ({kind})",
            where=folder / "config.json",
            given=f"{name}, which reads {'sound' if reads_sound(config) else 'no sound'}",
            fix="name the task of the checkpoint, or pass another one",
        )
    problem = config.get("problem_type")
    if problem in _OTHER_PROBLEMS and name.endswith("Classification"):
        raise CheckpointError(
            "the checkpoint does not assign exactly one label to each input",
            where=f"{folder / 'config.json'}, field problem_type",
            given=problem,
            fix="train a single-label classifier: compressor finetune uses the network "
            "without its head",
        )


def class_name(config: Mapping[str, object]) -> str | None:
    """The class of transformers that a config says its weights are of; None where it does not."""
    found = config.get("architectures")
    return str(found[0]) if isinstance(found, list) and found else None


def check_folder(folder: Path) -> dict[str, object]:
    """Check that a folder holds a checkpoint, with or without a head, and give its config.

    Raises:
        CheckpointError: The folder or its config is missing, or its weights are a pickle, truncated
            or absent.
    """
    if not os.path.isdir(folder):
        exists = os.path.exists(folder)
        raise CheckpointError(
            "this is not a folder" if exists else "the checkpoint does not exist",
            where=folder,
            fix=_EXPECTED if exists else missing_path(folder, _EXPECTED),
        )
    config = read_config(folder / "config.json")
    if config.get("model_type") == _WRAPPER:
        raise CheckpointError(
            "the checkpoint wraps a network of the library timm",
            where=f"{folder / 'config.json'}, field model_type",
            given=config.get("architecture") or _WRAPPER,
            fix="use a network that is part of transformers, such as ViT, DeiT, DINOv2, ResNet or "
            "ConvNeXt",
        )
    if config.get("quantization_config"):
        raise CheckpointError(
            "the weights of the checkpoint are quantized already",
            where=f"{folder / 'config.json'}, field quantization_config",
            given=_quantizer(config["quantization_config"]),
            fix="save them as floats: load it with transformers, then "
            "model.dequantize().save_pretrained(folder); or pass the checkpoint in float",
        )
    _refuse_pickles(folder)
    tensor_shapes(folder)
    return config


def check_weights(folder: Path) -> None:
    """Check that all weights are finite; reads every byte of them, and imports no torch.

    Raises:
        CheckpointError: Names the tensors with NaN or infinite values.
    """
    import numpy as np
    from safetensors import safe_open

    with suppress(ImportError):
        import ml_dtypes  # noqa: F401  (teaches numpy the name bfloat16)
    broken = []
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as stream:
            for name in stream.keys():  # noqa: SIM118  (it is no dict: it has no iterator)
                is_float = stream.get_slice(name).get_dtype() in _FLOATS
                if is_float and not np.isfinite(stream.get_tensor(name)).all():
                    broken.append(name)
    if broken:
        rest = len(broken) - _NUM_NAMED
        raise CheckpointError(
            "the checkpoint has weights that are NaN or infinite",
            where=folder,
            given=", ".join(sorted(broken)[:_NUM_NAMED])
            + (f" and {rest} more" if rest > 0 else ""),
            fix="the training diverged: take an earlier checkpoint, or train with a lower rate",
        )


def read_config(path: Path) -> dict[str, object]:
    """The config of a checkpoint.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (path.parent / _ADAPTERS).is_file():
            raise CheckpointError(
                "the folder has the adapters of a model, but not the model itself",
                where=path.parent / _ADAPTERS,
                given="adapters, such as those of LoRA",
                fix="merge them into the weights of the model, and save it: "
                "model.merge_and_unload().save_pretrained(folder), with its tokenizer",
            ) from error
        raise CheckpointError(
            "the folder is not a checkpoint: it has no config.json",
            where=path,
            fix=f"{_EXPECTED}; for a network of your own see docs/add-a-network.md",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "the config of the checkpoint cannot be read",
            where=path,
            given=error,
            fix="copy the checkpoint again",
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            "the config is not a JSON object",
            where=path,
            given=type(config).__name__,
            fix="copy the checkpoint again",
        )
    return config


def read_settings_file(path: Path) -> dict[str, Any]:
    """What a file beside the config says; empty where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _quantizer(config: object) -> object:
    return config.get("quant_method", config) if isinstance(config, Mapping) else config


def _refuse_pickles(folder: Path) -> None:
    if list(folder.glob("model*.safetensors*")):
        return
    pickles = sorted(path.name for path in folder.glob("*.bin") if "model" in path.name)
    if pickles:
        raise CheckpointError(
            "the weights are a pickle, and loading a pickle runs whatever code it holds",
            where=folder / pickles[0],
            given="no safetensors beside it",
            fix=_CONVERT.replace("FOLDER", str(folder)),
        )


def label_names(folder: Path) -> tuple[str, ...]:
    """The class names of a checkpoint, in the order of the logits.

    Raises:
        CheckpointError: The config names none.
    """
    config = read_config(folder / "config.json")
    if "id2label" not in config:  # left out where they are those that transformers gives
        count = config.get("num_labels", 2)
        return tuple(f"LABEL_{number}" for number in range(count if isinstance(count, int) else 2))
    names: Any = config["id2label"] or None
    numbered = isinstance(names, dict) and all(str(key).isdecimal() for key in names)
    if not numbered:
        raise CheckpointError(
            "the config names no classes"
            if names is None
            else "the config does not map class numbers to names",
            where=f"{folder / 'config.json'}, field id2label",
            given=names,
            fix="save the model with id2label, or fine-tune first: compressor finetune",
        )
    return tuple(str(names[key]) for key in sorted(names, key=int))
