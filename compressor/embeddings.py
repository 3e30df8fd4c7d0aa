"""Take rows out of a network's token embeddings, and out of everything that is as long as they."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.errors import PassError

__all__ = ["rows_that_stay", "trim_embeddings"]


def trim_embeddings(module: nn.Module, kept: NDArray[np.int64]) -> None:
    """Keep some rows of the token embeddings, in place.

    Output layers over the vocabulary (tied or not), their biases, ``config.vocab_size`` and every
    ``*_token_id`` of the config follow.

    Args:
        module: A Hugging Face model.
        kept: (K,) sorted token ids. Row ``kept[i]`` becomes row i.

    Raises:
        PassError: A kept token has no row.
    """
    network: Any = module  # the embedding methods of Hugging Face models are not typed
    embedding = network.get_input_embeddings()
    if int(kept.max()) >= embedding.num_embeddings:
        raise PassError(
            "the tokenizer has more tokens than the model has embeddings",
            where="token embeddings",
            given=f"token {int(kept.max())}, {embedding.num_embeddings} rows",
            fix="use the tokenizer that the model was trained with",
        )
    new_ids = {old: new for new, old in enumerate(kept.tolist())}
    rows = torch.from_numpy(kept)
    padding = embedding.padding_idx
    # Kept rows to the front, each shared tensor once; resizing then cuts off the rest.
    vocabulary = embedding.num_embeddings
    outputs = network.get_output_embeddings()
    tensors = [embedding.weight, *(() if outputs is None else outputs.parameters())]
    for tensor in {id(each): each for each in tensors}.values():
        if tensor.shape[0] == vocabulary:
            with torch.no_grad():
                tensor[: len(kept)] = tensor[rows]
    network.resize_token_embeddings(len(kept), mean_resizing=False)
    network.get_input_embeddings().padding_idx = None if padding is None else new_ids[padding]
    _remap_config(network.config, new_ids)


def rows_that_stay(module: nn.Module) -> list[int]:
    """Token ids that must be kept, and where a family counts on it, must keep their place."""
    network: Any = module
    ids = [index for _, index in _token_ids(network.config)]
    embedding = network.get_input_embeddings()
    padding = embedding.padding_idx
    if padding is None:
        return ids
    others = (each for each in network.modules() if isinstance(each, nn.Embedding))
    # RoBERTa counts positions from the padding token's id: it may not move.
    if any(each.padding_idx is not None for each in others if each is not embedding):
        ids += range(padding)
    return [*ids, padding]


def _token_ids(config: Any) -> list[tuple[str, int]]:
    return [
        (name, value)
        for name, value in config.to_dict().items()
        if name.endswith("_token_id") and isinstance(value, int) and value >= 0
    ]


def _remap_config(config: Any, new_ids: dict[int, int]) -> None:
    for name, value in _token_ids(config):
        if value in new_ids:
            setattr(config, name, new_ids[value])
