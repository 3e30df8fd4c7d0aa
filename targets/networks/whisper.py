"""Whisper whose encoder takes spectrograms of any length up to its window.

The networks are those of transformers, whose encoder takes spectrograms of exactly its window. On
those it computes the same. Their names stay, so that transformers reads what they write.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForAudioClassification, AutoModelForSpeechSeq2Seq, WhisperConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

__all__ = ["WhisperForAudioClassification", "WhisperForConditionalGeneration", "register"]


class _AnyLengthEncoder(WhisperEncoder):  # type: ignore[misc]  # no types
    """Its positions are the first ones of the table, as many as there are frames."""

    def forward(self, input_features: Tensor, **options: Any) -> BaseModelOutput:
        """Hidden states of a spectrogram.

        Args:
            input_features: (N, mel bands, frames), at most two frames a position
            options: Of the base class; hidden states of layers are not given.

        Returns:
            `last_hidden_state` (N, ceil(frames / 2), width).
        """
        states = functional.gelu(self.conv1(input_features))
        states = functional.gelu(self.conv2(states)).transpose(1, 2)
        states = states + self.embed_positions.weight[: states.shape[1]]
        states = functional.dropout(states, p=self.dropout, training=self.training)
        for layer in self.layers:
            states = layer(states, None)
        return BaseModelOutput(last_hidden_state=self.layer_norm(states))


class WhisperForConditionalGeneration(
    transformers.WhisperForConditionalGeneration  # type: ignore[misc]  # no types
):
    """Writes what is said (Radford et al., 2022, arXiv 2212.04356)."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        _let_take_any_length(self)


class WhisperForAudioClassification(
    transformers.WhisperForAudioClassification  # type: ignore[misc]  # no types
):
    """The encoder, and classes from the mean of its hidden states."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        _let_take_any_length(self)


def register() -> None:
    """Let the Auto classes of transformers know the networks; a second call changes nothing."""
    AutoModelForSpeechSeq2Seq.register(
        WhisperConfig, WhisperForConditionalGeneration, exist_ok=True
    )
    AutoModelForAudioClassification.register(
        WhisperConfig, WhisperForAudioClassification, exist_ok=True
    )


def _let_take_any_length(network: nn.Module) -> None:
    for part in network.modules():
        if type(part) is WhisperEncoder:
            part.__class__ = _AnyLengthEncoder
