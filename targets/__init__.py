"""The device half: load, run, measure and check bundles, with the runtime as the only need.

Imports no torch, transformers, onnx or datasets. Importing it loads nothing at all: each name is
imported when it is first used, so that a command line starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from targets.answers import Prediction
    from targets.base import Lowered, Precision, Session, Source, Target
    from targets.bundle import Bundle, Manifest
    from targets.errors import ToolkitError
    from targets.predictor import Predictor, load
    from targets.registry import available, get, open_session
    from targets.signature import Arrays, Signature, TensorSpec

__all__ = [
    "Arrays",
    "Bundle",
    "Lowered",
    "Manifest",
    "Precision",
    "Prediction",
    "Predictor",
    "Session",
    "Signature",
    "Source",
    "Target",
    "TensorSpec",
    "ToolkitError",
    "available",
    "get",
    "load",
    "open_session",
]

_MODULES = {
    "answers": ("Prediction",),
    "base": ("Lowered", "Precision", "Session", "Source", "Target"),
    "bundle": ("Bundle", "Manifest"),
    "errors": ("ToolkitError",),
    "predictor": ("Predictor", "load"),
    "registry": ("available", "get", "open_session"),
    "signature": ("Arrays", "Signature", "TensorSpec"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"targets.{module}"), name)
    raise AttributeError(f"module 'targets' has no attribute {name!r}")
