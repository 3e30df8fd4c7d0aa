"""What a size in a budget leaves for the embeddings and for the layers of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from compressor.architecture import Architecture
from compressor.errors import BudgetError
from compressor.gate.budget import Budget
from compressor.passes.quantize import TableBits
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.search.solver import Room, shapes_within
from targets.shapes import LayerShape

__all__ = ["Embeddings", "embeddings", "layer_bytes", "room"]


@dataclass(frozen=True)
class Embeddings:
    """What becomes of the embeddings: they cost size and no time.

    Attributes:
        trim: Which tokens stay.
        bits: Of the numbers of each, in int8.
    """

    trim: TrimVocabulary
    bits: TableBits


EMBEDDINGS = (
    Embeddings(TrimVocabulary(keep_first=20_000), 8),
    Embeddings(TrimVocabulary(keep_first=20_000), 4),
    Embeddings(TrimVocabulary(keep_first=15_000), 4),
    Embeddings(TrimVocabulary(keep_first=10_000), 4),
)
"""From the largest to the smallest. 4 bits lost 0 to 0.2 points on TREC-6 and 1.4 on Rotten
Tomatoes; 10,000 tokens lost 0.6 points more on TREC-6 than 20,000."""
FEWEST_TOKENS = 5_000
"""Where none of these is small enough, the most frequent tokens stay that there is room for, and
not fewer. Of much text nearly every token is somewhere in the training data."""
EMBEDDINGS_SHARE = 0.6
"""Of the size of a bundle; layers and tokenizer are the rest."""
TOKEN_BYTES = 17.0
"""Of a token in a file of the tokenizer."""
GRAPH_BYTES = 1e5
"""Of what a runtime's file says of a layer, without its weights; the rest of a network has as much
again."""
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 4}
"""Precision -> bytes of a weight in a file; one where it is none of these."""


def embeddings(
    architecture: Architecture, budget: Budget, num_tokens: Callable[[TrimVocabulary], int]
) -> Embeddings:
    """Which tokens to keep and the bits of their embeddings: the most that a size allows.

    Args:
        architecture: Of the untouched model.
        budget: May limit the size.
        num_tokens: How many a trimmed vocabulary has.
    """
    limit, width = budget.max_size_mb, architecture.embedding_size or architecture.hidden_size
    if limit is None or not architecture.vocabulary_size:
        return EMBEDDINGS[0]
    max_bytes = EMBEDDINGS_SHARE * limit * 1e6
    for each in EMBEDDINGS:
        if num_tokens(each.trim) * width * each.bits / 8 <= max_bytes:
            return each
    fitting = int(max_bytes / (width * each.bits / 8))
    trim = each.trim.model_copy(update={"max_tokens": max(FEWEST_TOKENS, fitting)})
    return replace(each, trim=trim)


def room(
    architecture: Architecture,
    budget: Budget,
    num_tokens: Callable[[], int],
    table_bits: TableBits,
    *,
    precision: str,
    multiple: int,
) -> Room | None:
    """What a size leaves for the layers of a model; None where none is asked for.

    Args:
        architecture: Of the untouched model.
        budget: May limit the size.
        num_tokens: How many tokens stay.
        table_bits: Of their embeddings, in int8.
        precision: Of the weights.
        multiple: Widths are multiples of it.

    Raises:
        BudgetError: The smallest layer takes more.
    """
    limit = budget.max_size_mb
    if limit is None:
        return None
    of_weight = WEIGHT_BYTES.get(precision, 1)
    outside = replace(architecture, layers=(), vocabulary_size=0).num_parameters
    rest = of_weight * outside + GRAPH_BYTES
    if architecture.vocabulary_size:
        width = architecture.embedding_size or architecture.hidden_size
        of_number = table_bits / 8 if of_weight == 1 else of_weight
        rest += num_tokens() * (width * of_number + TOKEN_BYTES)
    of_layer = partial(layer_bytes, architecture, precision=precision)
    least = min(
        of_layer(shape) for whole in architecture.layers for shape in shapes_within(whole, multiple)
    )
    if 1e6 * limit - rest < least:
        raise BudgetError(
            "no shape of this model is that small",
            where="max_size_mb",
            given=f"{limit:g} MB; one small layer, and what is outside of the layers, take "
            f"{(rest + least) / 1e6:.2g} MB in {precision}",
            fix="allow a larger size, or distil into a model of a smaller hidden size",
        )
    return Room(1e6 * limit - rest, of_layer)


def layer_bytes(architecture: Architecture, shape: LayerShape, precision: str) -> float:
    """What a layer of a network takes in a file, in bytes.

    Args:
        architecture: Of the network.
        shape: Of the layer.
        precision: Of its weights.
    """
    without, one = (replace(architecture, layers=each) for each in ((), (shape,)))
    weights = one.num_parameters - without.num_parameters
    return WEIGHT_BYTES.get(precision, 1) * weights + GRAPH_BYTES
