"""Log-probabilities and entropies, with their joint gradient."""

from __future__ import annotations

import math

import pytest
import torch

from spinerl.maths import kept_log_mass, log_distribution, pick_logprobs, shannon_entropies, token_figures


def test_token_figures_by_hand():
    # logits (0, log 3), T = 1: p = (1/4, 3/4); log p(1) = log 0.75; H = 1/4 log 4 + 3/4 log(4/3)
    logprobs, entropies = token_figures(torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([1]))
    assert logprobs.item() == pytest.approx(math.log(0.75))
    assert entropies.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))


def test_token_figures_gradient_by_hand():
    # d log p(1) / dz = onehot - p = (-1/4, 1/4); dH/dz_v = -p_v (log p_v + H), and the two entries cancel
    z = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64, requires_grad=True)
    logprobs, entropies = token_figures(z, torch.tensor([1]))
    (towards_token,) = torch.autograd.grad(logprobs.sum(), z, retain_graph=True)
    assert towards_token[0].tolist() == pytest.approx([-0.25, 0.25])
    (towards_entropy,) = torch.autograd.grad(entropies.sum(), z)
    grad = -0.75 * (math.log(0.75) + entropies.item())
    assert towards_entropy[0].tolist() == pytest.approx([-grad, grad])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_figures_gradcheck(temperature):
    torch.manual_seed(0)
    logits = (3 * torch.randn(5, 7, dtype=torch.float64)).requires_grad_()
    tokens = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda z: token_figures(z, tokens, temperature), (logits,))


def test_token_figures_equal_the_plain_functions_where_vocabulary_is_masked():
    torch.manual_seed(1)
    logits = torch.randn(4, 9)
    logits[:, 5:] = -torch.inf
    logits.requires_grad_()
    tokens = torch.tensor([0, 1, 2, 3])
    log_dist = log_distribution(logits, 0.7)
    plain = (pick_logprobs(log_dist, tokens), shannon_entropies(log_dist))
    fast = token_figures(logits, tokens, 0.7)
    for a, b in zip(plain, fast, strict=True):
        assert torch.equal(a, b)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    (expected,) = torch.autograd.grad((weights * plain[0]).sum() + (weights * plain[1]).sum(), logits)
    (found,) = torch.autograd.grad((weights * fast[0]).sum() + (weights * fast[1]).sum(), logits)
    assert torch.allclose(found, expected, atol=1e-6)
    assert found[:, 5:].abs().max() == 0


def test_kept_log_mass_by_hand():
    log_dist = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    kept = torch.tensor([[True, True, False], [True, True, True], [False, False, True]])
    assert kept_log_mass(log_dist, kept).tolist() == pytest.approx([math.log(0.8), 0.0, math.log(0.8)], abs=1e-6)


def test_kept_log_mass_is_the_distance_of_the_truncated_distribution():
    # q = pi / S on the kept tokens sums to 1, and KL(q || pi) = - log S
    torch.manual_seed(2)
    log_dist = log_distribution(torch.randn(20, 9, dtype=torch.float64), 0.7)
    kept = torch.rand(20, 9) < 0.5
    kept[:, 0] = True
    mass = kept_log_mass(log_dist, kept)
    for row in range(20):
        q = [(log_dist[row, v] - mass[row]).item() for v in range(9) if kept[row, v]]
        assert sum(map(math.exp, q)) == pytest.approx(1.0)
        full = [log_dist[row, v].item() for v in range(9) if kept[row, v]]
        kl = sum(math.exp(a) * (a - b) for a, b in zip(q, full, strict=True))
        assert kl == pytest.approx(-mass[row].item(), abs=1e-12)


def test_kept_log_mass_gradcheck():
    torch.manual_seed(3)
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([[True] * 6, [True] + [False] * 5, [False, True] * 3, [False] * 4 + [True] * 2])
    assert torch.autograd.gradcheck(lambda z: kept_log_mass(log_distribution(z, 0.6), kept), (logits,))
    # d log S / dz = q - p over temperature: with all tokens kept there is none
    (grad,) = torch.autograd.grad(kept_log_mass(log_distribution(logits), kept).sum(), logits)
    p = torch.softmax(logits.detach(), -1)
    q = p * kept / (p * kept).sum(1, keepdim=True)
    assert torch.allclose(grad, q - p)


def test_token_figures_of_a_bfloat16_head_are_float32():
    logits = torch.randn(3, 8).bfloat16().requires_grad_()
    logprobs, entropies = token_figures(logits, torch.tensor([1, 2, 3]))
    assert logprobs.dtype == entropies.dtype == torch.float32
    (logprobs.sum() + entropies.sum()).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
