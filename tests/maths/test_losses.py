import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spinerl.maths import (
    clipped_surrogate,
    exact_kl,
    log_distribution,
    masked_mean,
    pick_logprobs,
    sampled_kl,
    shannon_entropies,
    share_weights,
    term_weights,
)

T = torch.tensor
logit_rows = st.lists(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4), min_size=1, max_size=4)


def test_entropy_by_hand():
    # p = (1/2, 1/4, 1/4): H = 1/2 ln 2 + 2 * 1/4 ln 4 = 1.5 ln 2
    log_dist = torch.log(T([[0.5, 0.25, 0.25]]))
    assert shannon_entropies(log_dist).tolist() == pytest.approx([1.5 * math.log(2)])
    assert pick_logprobs(log_dist, T([2])).tolist() == pytest.approx([math.log(0.25)])


def test_entropy_and_gradient_survive_masked_vocabulary():
    logits = T([[0.0, 0.0, -math.inf]], requires_grad=True)
    entropy = shannon_entropies(log_distribution(logits))
    entropy.sum().backward()
    assert entropy.item() == pytest.approx(math.log(2))
    assert torch.isfinite(logits.grad).all()


def test_temperature_divides_logits():
    logits = T([[2.0, 0.0]])
    assert torch.allclose(log_distribution(logits, 2.0), torch.log_softmax(T([[1.0, 0.0]]), -1))
    assert log_distribution(logits.bfloat16()).dtype == torch.float32


def test_entropy_gradcheck():
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: shannon_entropies(log_distribution(x, 0.7)), logits)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, 2.0),
        (1.5, 1.0, 1.3),  # clipped at 1 + 0.3
        (0.5, 1.0, 0.5),  # a good token that lost probability: never clipped
        (0.5, -1.0, -0.8),  # clipped at 1 - 0.2
        (1.5, -1.0, -1.5),  # a bad token that gained: never clipped
        (0.9, -1.0, -0.9),
    ],
)
def test_surrogate_by_hand(ratio, advantage, expected):
    old = T([0.25]).log()
    logprob = (T([0.25]) * ratio).log().requires_grad_()
    value = clipped_surrogate(logprob, old, T([advantage]), 0.2, 0.3)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.sum().backward()
    clipped = expected != pytest.approx(ratio * advantage)
    assert logprob.grad.item() == pytest.approx(0.0 if clipped else ratio * advantage, rel=1e-5)


def test_surrogate_stays_finite_at_absurd_ratios():
    value = clipped_surrogate(T([0.0]), T([-500.0]), T([-1.0]))
    assert torch.isfinite(value).all()


def test_kl_estimators_by_hand():
    # d = ln 2: k1 = ln 2, k2 = (ln 2)^2 / 2, k3 = 1/2 - 1 + ln 2
    logprob, anchor, d = T([0.5]).log(), T([0.25]).log(), math.log(2)
    assert sampled_kl(logprob, anchor, "k1").item() == pytest.approx(d)
    assert sampled_kl(logprob, anchor, "k2").item() == pytest.approx(d * d / 2)
    assert sampled_kl(logprob, anchor, "k3").item() == pytest.approx(d - 0.5)


def test_exact_kl_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2
    found = exact_kl(torch.log(T([[0.75, 0.25]])), torch.zeros(1, 2))
    assert found.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)


@given(logit_rows, logit_rows)
def test_kl_is_never_negative_and_zero_at_equality(a, b):
    n = min(len(a), len(b))
    p, q = T(a[:n], dtype=torch.float64), T(b[:n], dtype=torch.float64)
    assert (exact_kl(log_distribution(p), q) >= -1e-9).all()
    assert exact_kl(log_distribution(p), p).abs().max() < 1e-9
    for estimator in ("k2", "k3"):
        assert (sampled_kl(log_distribution(p)[:, 0], log_distribution(q)[:, 0], estimator) >= 0).all()
        assert (sampled_kl(log_distribution(p)[:, 0], log_distribution(p)[:, 0], estimator) == 0).all()


def test_estimators_agree_with_the_exact_kl_in_expectation():
    p, q = torch.softmax(T([0.3, -0.2, 1.0]), 0), torch.softmax(T([0.0, 0.4, 0.2]), 0)
    exact = exact_kl(p.log()[None], q.log()[None]).item()
    for estimator in ("k1", "k3"):  # unbiased: their mean under p is the KL itself
        assert (p * sampled_kl(p.log(), q.log(), estimator)).sum().item() == pytest.approx(exact, abs=1e-6)


def test_gradients_of_the_estimators():
    """In expectation under p: k1's gradient vanishes, k2's is that of KL(p || q)."""
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    q = torch.log_softmax(T([0.0, 0.4, 0.2], dtype=torch.float64), 0)
    (expected,) = torch.autograd.grad(exact_kl(torch.log_softmax(logits, 0)[None], q[None]).sum(), logits)
    found = {}
    for estimator in ("k1", "k2"):
        p = torch.log_softmax(logits, 0)
        (found[estimator],) = torch.autograd.grad((p.exp().detach() * sampled_kl(p, q, estimator)).sum(), logits)
    assert found["k1"].abs().max() < 1e-12
    assert torch.allclose(found["k2"], expected)


def test_weights_by_hand():
    mask = T([[True, True, False], [True, False, False], [False, False, False]])
    assert term_weights(mask).tolist() == [[1 / 3, 1 / 3, 0], [1 / 3, 0, 0], [0, 0, 0]]
    assert term_weights(mask, "response").tolist() == [[0.25, 0.25, 0], [0.5, 0, 0], [0, 0, 0]]


@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5),
    st.sampled_from(["token", "response"]),
)
def test_weights_sum_to_one_or_are_all_zero(rows, normalizer):
    mask = T(rows)
    weights = term_weights(mask, normalizer)
    assert weights.sum().item() == pytest.approx(1.0 if mask.any() else 0.0)
    assert (weights[~mask] == 0).all()


def test_share_weights_by_hand():
    # two of the update's five tokens are forks: a mean over all five with the mask inside
    mask = T([[True, False, False], [True, False, False]])
    weights = share_weights(mask, 5)
    assert weights.tolist() == [[0.2, 0.0, 0.0], [0.2, 0.0, 0.0]]
    assert weights.dtype == torch.float64
    assert not share_weights(torch.zeros(2, 3, dtype=torch.bool), 0).any()


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 7))
def test_share_weights_are_term_weights_times_the_selected_share(rows, followers):
    mask = T(rows)
    num_tokens = int(mask.sum()) + followers
    rho = int(mask.sum()) / max(1, num_tokens)
    assert torch.allclose(share_weights(mask, num_tokens), rho * term_weights(mask), rtol=1e-12, atol=0)


def test_masked_mean():
    assert masked_mean(T([1.0, 2.0, 30.0]), T([True, True, False])) == 1.5
    assert masked_mean(T([1.0, math.nan]), T([True, False])) == 1.0
    assert masked_mean(T([1.0]), T([False])) == 0.0
