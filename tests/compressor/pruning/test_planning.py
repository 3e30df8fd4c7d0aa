from __future__ import annotations

from dataclasses import replace

import pytest

from compressor.architecture import Architecture, LayerShape
from compressor.errors import PassError
from compressor.pruning.planning import Ratios, plan_sizes

MINILM = Architecture(
    family="bert",
    layers=(LayerShape(12, 1536),) * 6,
    head_size=32,
    hidden_size=384,
    vocabulary_size=30522,
    num_labels=6,
    max_positions=512,
)


def test_every_layer_loses_the_same_share() -> None:
    planned = plan_sizes(MINILM, Ratios(0.5, 0.75, 0.25), multiple=8)
    assert planned == replace(MINILM, layers=(LayerShape(6, 384),) * 6, hidden_size=288)


def test_widths_are_rounded_to_the_multiple() -> None:
    planned = plan_sizes(MINILM, Ratios(0.3, 0.3, 0.3), multiple=64)
    assert planned.layers[0] == LayerShape(8, 1088)
    assert planned.hidden_size == 256


def test_a_ratio_that_leaves_no_head_names_layer_heads_and_the_largest_ratio() -> None:
    uneven = replace(MINILM, layers=(LayerShape(12, 1536), LayerShape(4, 1536)))
    with pytest.raises(PassError, match="layer 1 has 4 heads, and pruning would leave none") as e:
        plan_sizes(uneven, Ratios(0.9, 0.0, 0.0), multiple=8)
    assert (e.value.given, e.value.fix) == ("heads 0.9", "use at most 0.75")
    single = replace(MINILM, layers=(LayerShape(1, 1536),))
    with pytest.raises(PassError, match="layer 0 has 1 heads") as e:
        plan_sizes(single, Ratios(0.9, 0.0, 0.0), multiple=8)
    assert "leave its heads alone" in str(e.value.fix)


def test_competing_layers_keep_at_least_one_head() -> None:
    planned = plan_sizes(MINILM, Ratios(0.99, 0.99, 0.0), multiple=8, at_least_one_head=True)
    assert planned.layers == (LayerShape(1, 16),) * 6


def test_a_stream_as_wide_as_separate_embeddings_is_refused() -> None:
    electra = replace(MINILM, family="electra", embedding_size=192)
    assert plan_sizes(electra, Ratios(0.0, 0.0, 0.4), multiple=8).hidden_size == 232
    with pytest.raises(PassError, match="as wide as the embeddings"):
        plan_sizes(electra, Ratios(0.0, 0.0, 0.5), multiple=8)
