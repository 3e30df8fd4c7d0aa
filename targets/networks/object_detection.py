"""Networks that find the objects of an image, with one output.

Those of transformers give the logits and the boxes of their queries apart. These are classes of the
same names and with the same weights, so that transformers reads what they write, which give both
together.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from transformers.utils import ModelOutput

from targets.networks.one_output import OneOutput

__all__ = ["AutoModelForObjectDetection", "DetectionOutput", "detector"]


@dataclass
class DetectionOutput(ModelOutput):  # type: ignore[misc]  # transformers has no types
    """What a network gives.

    Attributes:
        logits: Of each query those of the classes and of no object, and behind them the middle,
            width and height of its box, (N, queries, classes + 1 + 4).
        hidden_states: As of the network that it is made of.
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@functools.cache
def detector(name: str) -> type:
    """A class of transformers, such as ``YolosForObjectDetection``, with one output."""
    base: Any = getattr(transformers, name)

    class Detector(base):  # type: ignore[misc]  # transformers has no types
        @functools.wraps(base.forward)
        def forward(self, pixel_values: Tensor, **options: Any) -> DetectionOutput:
            outputs = super().forward(pixel_values, **options)
            return DetectionOutput(
                logits=torch.cat((outputs.logits, outputs.pred_boxes), dim=-1),
                hidden_states=outputs.get("hidden_states"),
            )

    Detector.__name__ = Detector.__qualname__ = name
    return Detector


class AutoModelForObjectDetection(OneOutput):
    """Loads these networks."""

    problem: ClassVar[str] = "object detection"
    known: ClassVar[str] = "AutoModelForObjectDetection"
    made = staticmethod(detector)


def __getattr__(name: str) -> type:
    """The classes by their names, so that networks can be sent to other processes."""
    if name.startswith("__") or not hasattr(transformers, name):
        raise AttributeError(name)
    return detector(name)
