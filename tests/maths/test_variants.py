import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spinerl.maths import (
    budget_weights,
    cispo_surrogate,
    clipped_surrogate,
    group_advantages,
    nll_surrogate,
    response_means,
    row_means,
    sequence_surrogate,
    term_weights,
)

T = torch.tensor


def test_budget_by_hand():
    # budget 5 tokens, 2 responses: 1/10 each, whatever is used of it
    mask = T([[True, True, True], [True, False, False]])
    weights = budget_weights(mask, 5, 2)
    assert weights.tolist() == [[0.1, 0.1, 0.1], [0.1, 0.0, 0.0]]
    assert weights.sum().item() == pytest.approx(4 / 10)
    assert not budget_weights(torch.zeros(1, 2, dtype=torch.bool), 5, 2).any()
    for budget, responses in ((0, 2), (5, 0)):
        with pytest.raises(ValueError, match="1 or more"):
            budget_weights(mask, budget, responses)


def test_dr_grpo_by_hand():
    # rewards 1, 0, 0, 0: centred 3/4, -1/4, ...; lengths 2, 4, 1, 1; on-policy every term is A
    # (1/4) sum_i (1/4) sum_t A_i = (2 * 3/4 - 6 * 1/4) / 16 = 0
    mask = torch.arange(4) < T([[2], [4], [1], [1]])
    advantages = group_advantages(T([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64), "none").view(4, 1).expand(4, 4)
    assert (budget_weights(mask, 4, 4) * advantages).sum().item() == pytest.approx(0.0)
    # GRPO's mean over responses of means over tokens is 0 as well, DAPO's mean over tokens (6/4 - 6/4) / 8 too; with a
    # long good response they differ: lengths 4, 1, 1, 1 give (4 * 3/4 - 3/4) / 16 against 0
    mask = torch.arange(4) < T([[4], [1], [1], [1]])
    assert (budget_weights(mask, 4, 4) * advantages).sum().item() == pytest.approx(2.25 / 16)
    assert (term_weights(mask, "response") * advantages).sum().item() == pytest.approx(0.0)
    assert (term_weights(mask) * advantages).sum().item() == pytest.approx(2.25 / 7)


@pytest.mark.parametrize(
    ("ratio", "advantage", "factor"),
    [
        (1.0, 2.0, 1.0),
        (1.5, 1.0, 1.3),  # clipped, and still a gradient
        (0.5, 1.0, 0.8),
        (1.5, -1.0, 1.3),
        (0.5, -1.0, 0.8),
    ],
)
def test_cispo_by_hand(ratio, advantage, factor):
    old = T([0.25]).log()
    logprob = (T([0.25]) * ratio).log().requires_grad_()
    value = cispo_surrogate(logprob, old, T([advantage]), 0.2, 0.3)
    assert value.item() == pytest.approx(factor * advantage * math.log(0.25 * ratio), rel=1e-5)
    value.sum().backward()
    assert logprob.grad.item() == pytest.approx(factor * advantage, rel=1e-5)


def test_cispo_without_a_lower_edge_and_at_absurd_ratios():
    logprob = T([-500.0, 0.0]).requires_grad_()
    cispo_surrogate(logprob, T([0.0, -500.0]), T([1.0, 1.0])).sum().backward()
    assert logprob.grad.tolist() == pytest.approx([math.exp(-20), 1.2], rel=1e-4)


def test_nll_by_hand():
    logprobs = T([-1.0, -2.0, -0.5]).requires_grad_()
    value = nll_surrogate(logprobs, T([1.0, 0.0, -2.0]))
    assert value.tolist() == [-1.0, 0.0, 1.0]
    value.sum().backward()
    assert logprobs.grad.tolist() == [1.0, 0.0, -2.0]


def test_nll_with_weights_over_the_kept_is_the_mean_likelihood_of_their_tokens():
    # responses of 3, 1 and 2 tokens, the first two kept: (log-likelihoods of their four tokens) / 4
    mask = torch.arange(3) < T([[3], [1], [2]])
    logprobs = T([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0], [-50.0, -60.0, 0.0]])
    advantages = T([[1.0], [1.0], [0.0]]).expand(3, 3)
    weights = term_weights(mask & (advantages != 0))
    value = nll_surrogate(logprobs[mask], advantages[mask])
    assert (weights[mask] * value).sum().item() == pytest.approx(-(1 + 2 + 3 + 4) / 4)


def gspo(logprobs, old, advantages, row_of, num_rows, low=3e-4, high=4e-4):
    log_ratios = row_means((logprobs - old).detach(), row_of, num_rows)
    return sequence_surrogate(logprobs, log_ratios[row_of], advantages, low, high)


def test_gspo_by_hand():
    # log-ratios 0.3 and -0.1: mean 0.1, s = e^0.1 = 1.10517 for both tokens; a good response is kept under 1.2
    old = T([-1.0, -2.0], dtype=torch.float64)
    logprobs = (old + T([0.3, -0.1], dtype=torch.float64)).requires_grad_()
    value = gspo(logprobs, old, T([2.0, 2.0], dtype=torch.float64), T([0, 0]), 1, 0.2, 0.2)
    assert value.tolist() == pytest.approx([2 * math.exp(0.1)] * 2)
    value.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([2 * math.exp(0.1)] * 2)


@pytest.mark.parametrize(("advantage", "factor"), [(1.0, 0.0), (-1.0, math.exp(0.1))])
def test_gspo_drops_a_response_whole(advantage, factor):
    """A ratio of e^0.1 with the source's edges: good responses are clipped on both tokens, bad ones pulled back."""
    old = T([-1.0, -2.0], dtype=torch.float64)
    logprobs = (old + T([0.3, -0.1], dtype=torch.float64)).requires_grad_()
    value = gspo(logprobs, old, torch.full((2,), advantage, dtype=torch.float64), T([0, 0]), 1)
    assert value[0].item() == pytest.approx(1.0004 if factor == 0 else -math.exp(0.1))
    value.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([advantage * factor] * 2)


@st.composite
def batches(draw):
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    lengths = T([draw(st.integers(1, width)) for _ in range(rows)])
    mask = torch.arange(width) < lengths.unsqueeze(1)
    numbers = st.floats(-3, -0.1)
    logprobs, old = (
        T([[draw(numbers) for _ in range(width)] for _ in range(rows)], dtype=torch.float64) for _ in range(2)
    )
    advantages = T([draw(st.sampled_from([-1.0, 0.5, 2.0])) for _ in range(rows)], dtype=torch.float64)
    return logprobs, old, mask, advantages


@settings(deadline=None)
@given(batches(), st.sampled_from([(3e-4, 4e-4), (0.2, 0.2), (0.9, 9.0)]))
def test_gspo_equals_the_sequence_form_in_value_and_gradient(batch, edges):
    """The source's sequence objective, with the gradient through s, against the token form with s frozen."""
    logprobs, old, mask, advantages = batch
    dense = logprobs.clone().requires_grad_()
    s = response_means(dense - old, mask).exp()
    objective = (s * advantages).minimum(s.clamp(1 - edges[0], 1 + edges[1]) * advantages).mean()
    (expected,) = torch.autograd.grad(objective, dense)

    flat = logprobs[mask].requires_grad_()
    row_of = mask.nonzero()[:, 0]
    weights = term_weights(mask, "response")[mask]
    value = (weights * gspo(flat, old[mask], advantages[row_of], row_of, len(mask), *edges)).sum()
    (found,) = torch.autograd.grad(value, flat)
    assert value.item() == pytest.approx(objective.item())
    assert torch.allclose(found, expected[mask])


@settings(deadline=None)
@given(batches())
def test_gspo_does_not_depend_on_which_tokens_are_computed_together(batch):
    logprobs, old, mask, advantages = batch
    log_ratios = response_means(logprobs - old, mask)
    row_of = mask.nonzero()[:, 0]
    whole = sequence_surrogate(logprobs[mask], log_ratios[row_of], advantages[row_of], 0.2, 0.2)
    for part in range(int(mask.sum())):
        row = row_of[part : part + 1]
        single = sequence_surrogate(logprobs[mask][part : part + 1], log_ratios[row], advantages[row], 0.2, 0.2)
        assert single.item() == whole[part].item()


@settings(deadline=None)
@given(batches())
def test_on_policy_all_have_one_gradient(batch):
    logprobs, _, mask, advantages = batch
    row_of = mask.nonzero()[:, 0]
    found = []
    for term in (
        lambda x: clipped_surrogate(x, x.detach(), advantages[row_of]),
        lambda x: cispo_surrogate(x, x.detach(), advantages[row_of]),
        lambda x: sequence_surrogate(x, torch.zeros_like(x), advantages[row_of]),
        lambda x: nll_surrogate(x, advantages[row_of]),
    ):
        flat = logprobs[mask].requires_grad_()
        term(flat).sum().backward()
        found.append(flat.grad)
    assert all(torch.equal(found[0], other) for other in found[1:])
