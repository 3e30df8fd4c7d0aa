"""The device half: load, run, measure and check bundles, with the runtime as the only need.

Imports no torch, transformers, onnx or datasets; importing it loads no runtime either.
"""

from targets.base import Lowered, Precision, Session, Source, Target
from targets.bundle import Bundle, Manifest
from targets.errors import ToolkitError
from targets.predictor import Prediction, Predictor, load
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
