"""Networks that find the answer to a question in a text, with one output.

Those of transformers give the logits of the first and of the last token apart. These are classes
of the same names and with the same weights, so that transformers reads what they write, which give
both together.
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

__all__ = ["AutoModelForQuestionAnswering", "SpanOutput", "answerer"]


@dataclass
class SpanOutput(ModelOutput):  # type: ignore[misc]  # transformers has no types
    """What a network gives.

    Attributes:
        logits: Of an answer that begins, and of one that ends at each token, (N, L, 2).
        hidden_states: As of the network that it is made of.
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@functools.cache
def answerer(name: str) -> type:
    """A class of transformers, such as ``BertForQuestionAnswering``, with one output."""
    base: Any = getattr(transformers, name)

    class Answerer(base):  # type: ignore[misc]  # transformers has no types
        @functools.wraps(base.forward)
        def forward(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> SpanOutput:
            outputs = super().forward(input_ids, attention_mask=attention_mask, **options)
            return SpanOutput(
                logits=torch.stack((outputs.start_logits, outputs.end_logits), dim=-1),
                hidden_states=outputs.get("hidden_states"),
            )

    Answerer.__name__ = Answerer.__qualname__ = name
    return Answerer


class AutoModelForQuestionAnswering(OneOutput):
    """Loads these networks."""

    problem: ClassVar[str] = "question answering"
    known: ClassVar[str] = "AutoModelForQuestionAnswering"
    made = staticmethod(answerer)


def __getattr__(name: str) -> type:
    """The classes by their names, so that networks can be sent to other processes."""
    if name.startswith("__") or not hasattr(transformers, name):
        raise AttributeError(name)
    return answerer(name)
