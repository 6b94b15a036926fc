import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spinerl.maths import (
    log_distribution,
    low_entropy_reward,
    response_means,
    row_means,
    self_certainty,
    self_certainty_reward,
    shannon_entropies,
    term_weights,
)

T = torch.tensor
MASK = T([[True, True, False], [True, False, False], [False, False, False]])


def test_means_by_hand():
    # (1 + 4) / 2 = 2.5; 7 / 1; no tokens: 0.  Padding may hold anything
    values = T([[1.0, 4.0, math.nan], [7.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    assert response_means(values, MASK).tolist() == [2.5, 7.0, 0.0]
    assert low_entropy_reward(values, MASK).tolist() == [-2.5, -7.0, 0.0]
    assert self_certainty_reward(values, MASK).tolist() == [2.5, 7.0, 0.0]


def test_means_of_vectors_and_their_gradient():
    # row 1 has (1, 2) and (3, 6): mean (2, 4); row 0 has none; row 2 has (5, 5)
    values = T([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]], requires_grad=True)
    means = row_means(values, T([1, 1, 2]), 4)
    assert means.tolist() == [[0.0, 0.0], [2.0, 4.0], [5.0, 5.0], [0.0, 0.0]]
    means[1, 0].backward()
    assert values.grad.tolist() == [[0.5, 0.0], [0.5, 0.0], [0.0, 0.0]]


@given(st.lists(st.lists(st.floats(-5, 5, width=32), max_size=4), min_size=1, max_size=5))
def test_flat_and_padded_tokens_have_the_same_means(rows):
    values = torch.zeros(len(rows), 4)
    mask = torch.arange(4) < T([len(row) for row in rows]).unsqueeze(1)
    values[mask] = T([x for row in rows for x in row], dtype=torch.float32)
    flat = row_means(values[mask].double(), mask.nonzero()[:, 0], len(rows))
    assert torch.allclose(response_means(values.double(), mask), flat)


def test_self_certainty_by_hand():
    # p = (3/4, 1/4): - ln 2 - (ln 3/4 + ln 1/4) / 2 = ln(1 / (2 sqrt(3/16))) = ln(2 / sqrt 3)
    found = self_certainty(torch.log(T([[0.75, 0.25], [0.5, 0.5]])))
    assert found.tolist() == pytest.approx([math.log(2 / math.sqrt(3)), 0.0], abs=1e-6)


def test_masked_vocabulary_leaves_self_certainty_finite():
    # masked to -inf: what is left is (3/4, 1/4); one possible token: nothing is known better than for sure
    found = self_certainty(T([[math.log(0.75), math.log(0.25), -math.inf], [0.0, -math.inf, -math.inf]]))
    assert found.tolist() == pytest.approx([math.log(2 / math.sqrt(3)), 0.0], abs=1e-6)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6))
def test_self_certainty_is_the_divergence_from_uniform(logits):
    log_dist = log_distribution(T(logits, dtype=torch.float64))
    uniform = torch.full((len(logits),), 1 / len(logits), dtype=torch.float64)
    expected = (uniform * (uniform.log() - log_dist)).sum().item()
    found = self_certainty(log_dist).item()
    assert found == pytest.approx(expected, abs=1e-9)
    assert found >= 0.0


def test_entropy_minimisation_as_a_loss_needs_no_new_function():
    """The mean entropy is a term with weights of its own; descending it makes the likeliest token likelier."""
    logits = T([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [5.0, 5.0]]], dtype=torch.float64, requires_grad=True)
    mask = T([[True, True], [True, False]])
    entropies = shannon_entropies(log_distribution(logits))
    loss = (term_weights(mask) * entropies).sum()
    assert loss.item() == pytest.approx(entropies[mask].mean().item())
    loss.backward()
    assert logits.grad[0, 0, 0] < 0 < logits.grad[0, 0, 1]
    assert not logits.grad[1, 1].any()
