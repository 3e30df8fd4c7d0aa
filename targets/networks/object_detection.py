"""Networks that find the objects of an image, with one output.

Those of transformers give the logits and the boxes of their queries apart. These are classes of the
same names and with the same weights, so that transformers reads what they write, which give both
together.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import ModelOutput

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


class AutoModelForObjectDetection:
    """Loads these networks, as the Auto classes of transformers load others."""

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> Any:
        """Read a checkpoint folder.

        Args:
            folder: Of a network with such a head.
            options: Of ``from_pretrained`` of transformers.

        Raises:
            ValueError: transformers has no such head for this kind of network.
        """
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        del options["trust_remote_code"]  # the class is known
        return _class_for(config).from_pretrained(folder, config=config, **options)

    @classmethod
    def from_config(cls, config: Any, *, trust_remote_code: bool = False, **options: Any) -> Any:
        """Make a network without weights.

        Raises:
            ValueError: transformers has no such head for this kind of network.
        """
        return _class_for(config)._from_config(config, **options)


def _class_for(config: Any) -> Any:
    known = transformers.AutoModelForObjectDetection._model_mapping
    if type(config) not in known:
        raise ValueError(f"no head for object detection is known for {config.model_type}")
    return detector(known[type(config)].__name__)


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


def __getattr__(name: str) -> type:
    """The classes by their names, so that networks can be sent to other processes."""
    if name.startswith("__") or not hasattr(transformers, name):
        raise AttributeError(name)
    return detector(name)
