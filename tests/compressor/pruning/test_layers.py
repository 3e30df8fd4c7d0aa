from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.pruning.layers import (
    check_layers,
    first_layers,
    layer_map,
    select_layers,
    spread_layers,
)
from targets.encoder import encoder_layers

IDS = torch.tensor([[2, 6, 9, 12, 3]])


def test_layers_are_spread_with_the_last_among_them() -> None:
    assert spread_layers(3, 6) == (1, 3, 5)
    assert spread_layers(4, 6) == (0, 2, 3, 5)
    assert spread_layers(1, 6) == (5,)
    assert spread_layers(6, 6) == (0, 1, 2, 3, 4, 5)
    assert first_layers(2) == (0, 1)


@pytest.mark.parametrize("num_layers", range(1, 25))
def test_spread_layers_hold_for_every_depth(num_layers: int) -> None:
    for num_keep in range(1, num_layers + 1):
        keep = spread_layers(num_keep, num_layers)
        check_layers(keep, num_layers)
        assert len(keep) == num_keep
        assert keep[-1] == num_layers - 1


def test_student_layers_learn_from_evenly_spread_teacher_layers() -> None:
    assert layer_map(3, 6) == ((0, 1), (1, 3), (2, 5))
    assert layer_map(2, 2) == ((0, 0), (1, 1))
    assert layer_map(4, 2) == ((1, 0), (3, 1))


def test_selected_layers_compute_what_the_chosen_ones_compute(
    word_model: Callable[..., TorchModel],
) -> None:
    module = word_model(num_layers=4).module
    selected = select_layers(module, (1, 3))
    hidden = module.bert.embeddings(IDS)
    for layer in (1, 3):
        hidden = module.bert.encoder.layer[layer](hidden)
    expected = module.classifier(module.bert.pooler(hidden))
    assert torch.equal(selected(input_ids=IDS).logits, expected)
    assert selected.config.num_hidden_layers == 2
    assert [each.attention.layer_idx for each in encoder_layers(selected)] == [0, 1]


def test_selecting_shares_nothing_and_leaves_the_input_alone(
    word_model: Callable[..., TorchModel],
) -> None:
    module = word_model(num_layers=3).module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    selected = select_layers(module, (0, 2))
    with torch.no_grad():
        for parameter in selected.parameters():
            parameter.fill_(7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.config.num_hidden_layers == 3
    assert len(encoder_layers(module)) == 3


def test_layers_of_distilbert_are_selected() -> None:
    config = DistilBertConfig(vocab_size=20, dim=16, n_layers=3, n_heads=2, hidden_dim=32)
    selected = select_layers(DistilBertForSequenceClassification(config), (2,))
    assert len(encoder_layers(selected)) == selected.config.n_layers == 1


@pytest.mark.parametrize("keep", [(), (2, 1), (1, 1), (0, 3), (-1, 1)])
def test_layers_that_do_not_exist_are_named(keep: Sequence[int]) -> None:
    with pytest.raises(PassError, match="layers") as error:
        check_layers(keep, 3)
    assert error.value.given == f"keep {list(keep)}"
    assert "from 0 to 2" in str(error.value.fix)


def test_a_module_without_layers_is_refused() -> None:
    with pytest.raises(PassError, match="not a BERT-like encoder"):
        select_layers(nn.Sequential(nn.Linear(2, 2)), (0,))
