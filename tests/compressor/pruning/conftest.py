"""Tiny encoders of several families, with biases that are not zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SMALL = {"vocab_size": 50, "num_labels": 3, "max_position_embeddings": 20, "pad_token_id": 1}
CONFIGS: dict[str, Callable[[], object]] = {
    "bert": lambda: BertConfig(**SIZES, **SMALL),
    "roberta": lambda: RobertaConfig(**SIZES, **SMALL),
    "electra": lambda: ElectraConfig(**SIZES, **SMALL, embedding_size=16),
    "distilbert": lambda: DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **SMALL),
}


@pytest.fixture(params=CONFIGS)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: nn.Module = AutoModelForSequenceClassification.from_config(
            CONFIGS[request.param](), attn_implementation="eager"
        )
        for parameter in module.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return module.eval()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Two rows, of which one is padded."""
    return {
        "input_ids": torch.tensor([[5, 9, 30, 7, 8], [6, 40, 3, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }
