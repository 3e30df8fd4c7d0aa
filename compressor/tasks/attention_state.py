"""What a decoder keeps from token to token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from targets.signature import PAST, StateSpec

__all__ = ["attention_state"]


def attention_state(layers: Iterable[Any]) -> tuple[StateSpec, ...]:
    """The keys and values of the layers of a decoder.

    Args:
        layers: Of the cache of transformers, after one run: `keys` and `values`, each (batch,
            heads, tokens, size).
    """
    return tuple(
        StateSpec(
            name=f"past_key_values.{number}.{part}",
            output=f"present.{number}.{part}",
            dtype="float32",
            shape=("batch", heads, PAST, size),
        )
        for number, layer in enumerate(layers)
        for part, kept in (("key", layer.keys), ("value", layer.values))
        for _, heads, _, size in [kept.shape]
    )
