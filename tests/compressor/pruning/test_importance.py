from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import PassError
from compressor.pruning.importance import magnitude_scores, random_scores, taylor_scores
from compressor.tasks import get_task
from targets.answers import IGNORED
from targets.encoder import encoder_layers

Inputs = dict[str, Tensor]
EPSILON = 1e-4
TASK = get_task("text-classification")


@pytest.fixture
def batch(inputs: Inputs) -> Inputs:
    return {**inputs, "labels": torch.tensor([2, 0])}


def loss(module: nn.Module, batch: Inputs) -> float:
    with torch.inference_mode():
        outputs = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return float(functional.cross_entropy(outputs.logits, batch["labels"]))


def gate_derivative(weights: list[Tensor], module: nn.Module, batch: Inputs) -> float:
    """By central difference: how the loss changes when a gate before the weights opens."""
    losses = []
    for factor in (1 + EPSILON, 1 - EPSILON):
        with torch.no_grad():
            for weight in weights:
                weight.mul_(factor)
            losses.append(loss(module, batch))
            for weight in weights:
                weight.div_(factor)
    return (losses[0] - losses[1]) / (2 * EPSILON)


def test_taylor_scores_are_squared_derivatives_of_gates(encoder: nn.Module, batch: Inputs) -> None:
    encoder = encoder.double()
    scores = taylor_scores(encoder, [batch], task=TASK)
    for number, layer in enumerate(encoder_layers(encoder)):
        head = layer.attention_output.weight.data[:, 8:16]
        neuron = layer.ffn_output.weight.data[:, 5]
        expected = gate_derivative([head], encoder, batch) ** 2
        assert scores.heads[number][1] == pytest.approx(expected, rel=1e-3)
        expected = gate_derivative([neuron], encoder, batch) ** 2
        assert scores.ffn[number][5] == pytest.approx(expected, rel=1e-3)
    norms = [
        part
        for part in encoder.modules()
        if isinstance(part, nn.LayerNorm) and part.normalized_shape == (32,)
    ]
    assert len(norms) in (4, 5)
    expected = sum(
        gate_derivative([each.weight.data[3:4], each.bias.data[3:4]], encoder, batch) ** 2
        for each in norms
    )
    assert scores.hidden[3] == pytest.approx(expected, rel=1e-3)


def test_taylor_scores_add_up_over_batches_and_never_cancel(
    encoder: nn.Module, batch: Inputs
) -> None:
    other = {**batch, "labels": torch.tensor([1, 1])}
    joint = taylor_scores(encoder, [batch, other], task=TASK)
    apart = [taylor_scores(encoder, [each], task=TASK) for each in (batch, other)]
    for layer in range(2):
        np.testing.assert_allclose(joint.ffn[layer], sum(each.ffn[layer] for each in apart))
    assert (joint.hidden >= apart[0].hidden).all()


def test_a_batch_in_which_nothing_is_judged_counts_for_nothing(
    encoder: nn.Module, batch: Inputs
) -> None:
    """Such as questions whose answers were all cut off."""
    nothing = {**batch, "labels": torch.tensor([IGNORED, IGNORED])}
    alone, joint = (taylor_scores(encoder, each, task=TASK) for each in ([batch], [batch, nothing]))
    for before, after in zip((*alone.heads, *alone.ffn), (*joint.heads, *joint.ffn), strict=True):
        np.testing.assert_array_equal(before, after)
    assert alone.hidden.max() > 0


def test_scores_that_are_not_finite_are_refused(encoder: nn.Module, batch: Inputs) -> None:
    with torch.no_grad():
        encoder_layers(encoder)[0].ffn_input.weight[3] = torch.nan
    with pytest.raises(PassError, match="a derivative of the loss is NaN or infinite") as caught:
        taylor_scores(encoder, [batch], task=TASK)
    assert "magnitude" in str(caught.value.fix)


@pytest.mark.parametrize("importance", ["taylor", "magnitude"])
def test_a_unit_that_does_nothing_has_no_importance(
    encoder: nn.Module, batch: Inputs, importance: str
) -> None:
    layer = encoder_layers(encoder)[0]
    with torch.no_grad():
        for part in (layer.query, layer.key, layer.value):
            part.weight[8:16] = 0
            part.bias[8:16] = 0
        layer.attention_output.weight[:, 8:16] = 0
        layer.ffn_input.weight[5] = 0
        layer.ffn_output.weight[:, 5] = 0
    scores = (
        taylor_scores(encoder, [batch], task=TASK)
        if importance == "taylor"
        else magnitude_scores(encoder)
    )
    assert scores.heads[0][1] == 0
    assert scores.ffn[0][5] == 0
    assert scores.heads[1].min() > 0


def test_magnitudes_of_all_layers_have_the_same_mean(encoder: nn.Module) -> None:
    with torch.no_grad():
        for parameter in encoder_layers(encoder)[1].ffn_input.parameters():
            parameter.mul_(100)
    scores = magnitude_scores(encoder)
    assert [each.mean() for each in (*scores.heads, *scores.ffn)] == pytest.approx([1.0] * 4)


def test_random_scores_repeat_under_a_seed(encoder: nn.Module) -> None:
    first, again, other = (random_scores(encoder, seed) for seed in (1, 1, 2))
    assert all(map(np.array_equal, first.ffn, again.ffn))
    assert not np.array_equal(first.hidden, other.hidden)
    assert [len(each) for each in (*first.heads, *first.ffn)] == [4, 4, 64, 64]


def test_scoring_leaves_the_module_as_it_was(encoder: nn.Module, batch: Inputs) -> None:
    encoder.train().requires_grad_(False)
    before, config = copy.deepcopy(encoder.state_dict()), encoder.config.to_dict()
    taylor_scores(encoder, [batch], task=TASK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert encoder.config.to_dict() == config
    assert encoder.training
    assert not any(each.requires_grad or each.grad is not None for each in encoder.parameters())


def test_a_wholly_frozen_module_is_scored_like_any_other_and_stays_frozen(
    encoder: nn.Module, batch: Inputs
) -> None:
    expected = taylor_scores(copy.deepcopy(encoder), [batch], task=TASK)
    scores = taylor_scores(encoder.requires_grad_(False), [batch], task=TASK)
    for found, wanted in zip(
        (*scores.heads, *scores.ffn, scores.hidden),
        (*expected.heads, *expected.ffn, expected.hidden),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
