"""Classifiers of time series, which transformers has without an Auto class of their own.

They are those of transformers, with two habits of all other classifiers: they count their classes
by `num_labels` of the config, and call their output `logits`. Their names stay, so that
transformers reads what they write.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PatchTSMixerConfig, PatchTSTConfig
from transformers.modeling_outputs import SequenceClassifierOutput

__all__ = [
    "PatchTSMixerForTimeSeriesClassification",
    "PatchTSTForClassification",
    "register",
]


class PatchTSTForClassification(transformers.PatchTSTForClassification):  # type: ignore[misc]  # no types
    """Patches of each channel go through a transformer encoder (Nie et al., ICLR 2023)."""

    def __init__(self, config: PatchTSTConfig) -> None:
        config.num_targets = config.num_labels
        super().__init__(config)

    def forward(self, past_values: Tensor, **options: Any) -> SequenceClassifierOutput:
        """Classify signals.

        Args:
            past_values: (N, length, channels)
            options: See the base class.

        Returns:
            `logits` (N, labels).
        """
        outputs = super().forward(past_values, **options)
        return SequenceClassifierOutput(
            logits=outputs.prediction_logits, hidden_states=outputs.hidden_states
        )


class PatchTSMixerForTimeSeriesClassification(
    transformers.PatchTSMixerForTimeSeriesClassification  # type: ignore[misc]  # as above
):
    """Patches of each channel go through mixing perceptrons (Ekambaram et al., KDD 2023)."""

    def __init__(self, config: PatchTSMixerConfig) -> None:
        config.num_targets = config.num_labels
        super().__init__(config)

    def forward(self, past_values: Tensor, **options: Any) -> SequenceClassifierOutput:
        """Classify signals.

        Args:
            past_values: (N, length, channels)
            options: See the base class.

        Returns:
            `logits` (N, labels).
        """
        outputs = super().forward(past_values, **options)
        return SequenceClassifierOutput(
            logits=outputs.prediction_outputs, hidden_states=outputs.hidden_states
        )


def register() -> None:
    """Let the Auto class of sequences know the networks; a second call changes nothing."""
    for config, network in (
        (PatchTSTConfig, PatchTSTForClassification),
        (PatchTSMixerConfig, PatchTSMixerForTimeSeriesClassification),
    ):
        AutoModelForSequenceClassification.register(config, network, exist_ok=True)
