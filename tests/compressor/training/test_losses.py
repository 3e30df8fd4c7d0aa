import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from compressor.training.losses import hidden_mse, logits_kl, relation_kl, token_mask


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_logits_kl_of_two_classes_has_its_closed_form():
    student = torch.tensor([[0.0, 0.0]])
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert logits_kl(student, teacher, temperature=1.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_logits_kl_agrees_with_scipy(temperature):
    student, teacher = random(5, 7), random(5, 7, seed=1)
    target = softmax(teacher.numpy() / temperature, axis=1)
    difference = np.log(target) - log_softmax(student.numpy() / temperature, axis=1)
    expected = (target * difference).sum(axis=1).mean() * temperature**2
    found = logits_kl(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(expected)


def test_gradient_of_logits_kl_keeps_its_size_at_high_temperature():
    teacher = random(4, 6, seed=1)
    norms = []
    for temperature in (50.0, 100.0):
        student = random(4, 6).requires_grad_()
        logits_kl(student, teacher, temperature=temperature).backward()
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_hidden_mse_ignores_padding():
    student, teacher = random(2, 3, 4), random(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    teacher[1, 1:] = 1e6
    real = torch.cat([(student - teacher)[0], (student - teacher)[1, :1]])
    expected = real.square().mean().item()
    assert hidden_mse(student, teacher, mask).item() == pytest.approx(expected)


def relations(states: np.ndarray, num_heads: int) -> np.ndarray:
    """Log-relations of one unpadded row, (heads, L, L)."""
    heads = np.stack(np.split(states, num_heads, axis=1))
    return log_softmax(heads @ heads.transpose(0, 2, 1) / math.sqrt(heads.shape[2]), axis=-1)


def test_relation_kl_agrees_with_scipy_for_different_widths():
    student, teacher = random(1, 5, 6), random(1, 5, 12, seed=1)
    target, ours = relations(teacher[0].numpy(), 3), relations(student[0].numpy(), 3)
    expected = (np.exp(target) * (target - ours)).sum(axis=-1).mean()
    found = relation_kl(student, teacher, torch.ones(1, 5), num_heads=3)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_relation_kl_does_not_change_with_padding():
    student, teacher, mask = random(2, 4, 6), random(2, 4, 6, seed=1), torch.ones(2, 4)
    plain = relation_kl(student, teacher, mask, num_heads=2)
    padded = [torch.cat([part, 9 * random(2, 3, 6, seed=2)], dim=1) for part in (student, teacher)]
    longer = torch.cat([mask, torch.zeros(2, 3)], dim=1)
    assert relation_kl(*padded, longer, num_heads=2).item() == pytest.approx(plain.item())


@pytest.mark.parametrize("loss", ["logits", "hidden", "relation"])
def test_losses_vanish_for_equal_models(loss):
    states, mask = random(2, 3, 4), torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = {
        "logits": lambda: logits_kl(states[0], states[0], temperature=2.0),
        "hidden": lambda: hidden_mse(states, states, mask),
        "relation": lambda: relation_kl(states, states, mask, num_heads=2),
    }[loss]()
    assert abs(found.item()) < 1e-6


def test_states_of_words_are_masked_and_those_of_patches_are_not():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert token_mask(mask, random(2, 3, 4)) is mask
    for states, given in ((random(2, 5, 4), mask), (random(2, 5, 4), None)):
        found = token_mask(given, states)
        assert found.tolist() == [[1] * 5] * 2
        assert found.dtype == torch.long
