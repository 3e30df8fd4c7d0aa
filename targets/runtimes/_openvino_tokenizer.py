"""Tokenizers in OpenVINO's own form, as openvino.genai runs them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from targets.errors import MissingLibraryError

__all__ = ["write_tokenizer"]


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write ``openvino_tokenizer.xml`` and ``openvino_detokenizer.xml`` with their weights.

    Args:
        tokenizer: Of transformers.
        folder: Exists already.

    Raises:
        MissingLibraryError: openvino-tokenizers is not installed.
    """
    try:
        import openvino
        from openvino_tokenizers import convert_tokenizer
    except ImportError as error:
        raise MissingLibraryError.for_extra(
            "openvino-tokenizers", "genai", "this format"
        ) from error
    pair = convert_tokenizer(tokenizer, with_detokenizer=True)
    for model, name in zip(pair, ("openvino_tokenizer", "openvino_detokenizer"), strict=True):
        openvino.save_model(model, os.fspath(folder / f"{name}.xml"))
