import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spinerl.maths import band_edges, band_penalty, blend_edges, median_mad_edges

T = torch.tensor


def test_edges_by_hand():
    # fork entropies 1, 2, 3, 4, 5 (the 9 is no fork): quantile 0.1 at position 0.4 -> 1.4; 0.5 at position 2 -> 3
    entropies = T([[3.0, 1.0, 9.0, 5.0, 2.0, 4.0]])
    forks = T([[True, True, False, True, True, True]])
    low, high = band_edges(entropies, forks, 0.1, 0.5)
    assert low.tolist() == pytest.approx([1.4])
    assert high.tolist() == pytest.approx([3.0])


@given(st.lists(st.floats(0, 5, width=32), min_size=1, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_edges_equal_numpy_quantiles(values, a, b):
    a, b = sorted((a, b))
    low, high = band_edges(T([values]), torch.ones(1, len(values), dtype=torch.bool), a, b)
    exact = np.array(values, dtype=np.float64)
    assert low.item() == pytest.approx(np.quantile(exact, a), abs=1e-9)
    assert high.item() == pytest.approx(np.quantile(exact, b), abs=1e-9)


def test_edges_of_a_response_without_forks_are_zero_and_carry_no_gradient():
    entropies = torch.rand(2, 3, requires_grad=True)
    low, high = band_edges(entropies, T([[False] * 3, [True] * 3]), 0.1, 0.5)
    assert (low[0], high[0]) == (0, 0)
    assert not low.requires_grad
    assert not high.requires_grad


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.5), (-0.1, 0.5), (0.1, 1.5)])
def test_refuses_edges_out_of_order(low, high):
    with pytest.raises(ValueError, match=r"band\.low"):
        band_edges(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), low, high)


def test_median_mad_by_hand():
    # 1, 2, 4, 8 (the 9 is no fork): median 3; deviations 2, 1, 1, 5: median 1.5; 3 - 1.4826 * 1.5 = 0.7761
    # 2, 3, 3.5: median 3; deviations 1, 0, 0.5: median 0.5; 3 - 0.7413 = 2.2587
    entropies = T([[8.0, 1.0, 9.0, 2.0, 4.0], [3.5, 2.0, 3.0, 0.0, 0.0]])
    forks = T([[True, True, False, True, True], [True, True, True, False, False]])
    low, high = median_mad_edges(entropies, forks)
    assert high.tolist() == pytest.approx([3.0, 3.0])
    assert low.tolist() == pytest.approx([0.7761, 2.2587])


def test_median_mad_at_its_limits():
    # a majority of equal ones: the deviation is floored at 1e-6; 0.1, 0.2, 3, 4: 1.6 - 1.4826 * 1.45 is under 0
    entropies = T([[0.5, 0.5, 0.5, 2.0], [0.1, 0.2, 3.0, 4.0], [0.7, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    forks = T([[True] * 4, [True] * 4, [True] + [False] * 3, [False] * 4])
    low, high = median_mad_edges(entropies.double().requires_grad_(), forks)
    assert high.tolist() == pytest.approx([0.5, 1.6, 0.7, 0.0])
    assert (high - low).tolist() == pytest.approx([1.4826e-6, 1.6, 1.4826e-6, 0.0], rel=1e-6)
    assert not low.requires_grad
    assert not high.requires_grad


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5, width=32), st.booleans()), min_size=1, max_size=15))
def test_median_mad_equals_numpys_medians(cells):
    low, high = median_mad_edges(T([[value for value, _ in cells]]), T([[fork for _, fork in cells]]))
    forks = np.array([value for value, fork in cells if fork], dtype=np.float64)
    median = np.median(forks) if len(forks) else 0.0
    mad = max(1e-6, np.median(np.abs(forks - median))) if len(forks) else 0.0
    assert high.item() == pytest.approx(median, abs=1e-12)
    assert low.item() == pytest.approx(max(0.0, median - 1.4826 * mad), abs=1e-12)


def test_penalty_by_hand():
    entropies, low, high = T([0.1, 0.3, 0.5, 1.0]), torch.full((4,), 0.3), torch.full((4,), 0.6)
    assert band_penalty(entropies, low, high).tolist() == pytest.approx([0.2, 0.0, 0.0, 0.4])
    assert band_penalty(entropies, low, high, "squared").tolist() == pytest.approx([0.04, 0.0, 0.0, 0.16])


def test_each_side_of_the_band_has_a_weight_by_hand():
    entropies, low, high = T([0.1, 0.3, 0.5, 1.0]), torch.full((4,), 0.3), torch.full((4,), 0.6)
    assert band_penalty(entropies, low, high, "hinge", 2.0, 0.5).tolist() == pytest.approx([0.4, 0.0, 0.0, 0.2])
    assert band_penalty(entropies, low, high, "squared", 2.0, 0.5).tolist() == pytest.approx([0.08, 0.0, 0.0, 0.08])
    assert band_penalty(entropies, low, high, weight_low=0.0).tolist() == pytest.approx([0.0, 0.0, 0.0, 0.4])
    assert band_penalty(entropies, low, high, weight_high=0.0).tolist() == pytest.approx([0.2, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(("shape", "grads"), [("hinge", [-3.0, 0.0, 0.25]), ("squared", [-1.2, 0.0, 0.2])])
def test_gradients_of_two_weights(shape, grads):
    # squared: -2 * 3 * 0.2 and 2 * 0.25 * 0.4
    low, high = (torch.full((3,), edge, dtype=torch.float64) for edge in (0.3, 0.6))
    entropies = T([0.1, 0.5, 1.0], dtype=torch.float64).requires_grad_()
    band_penalty(entropies, low, high, shape, 3.0, 0.25).sum().backward()
    assert entropies.grad.tolist() == pytest.approx(grads)
    apart = T([0.05, 0.25, 0.45, 0.65, 2.0], dtype=torch.float64).requires_grad_()
    low, high = (torch.full((5,), edge, dtype=torch.float64) for edge in (0.3, 0.6))
    assert torch.autograd.gradcheck(lambda h: band_penalty(h, low, high, shape, 3.0, 0.25), apart)


@pytest.mark.parametrize("shape", ["hinge", "squared"])
def test_gradient_points_back_into_the_band(shape):
    entropies = T([0.1, 0.5, 1.0], dtype=torch.float64).requires_grad_()
    low, high = torch.full((3,), 0.3, dtype=torch.float64), torch.full((3,), 0.6, dtype=torch.float64)
    band_penalty(entropies, low, high, shape).sum().backward()
    under, inside, over = entropies.grad
    assert under < 0  # descending the loss raises an entropy that is too low
    assert inside == 0
    assert over > 0
    assert torch.autograd.gradcheck(lambda h: band_penalty(h, low, high, shape), entropies.detach().requires_grad_())


def test_a_token_that_is_the_edge_has_no_gradient_whatever_the_last_bit():
    edge = T([0.5])
    for nudge in (-3e-7, 0.0, 3e-7):
        entropy = T([0.5 + nudge]).requires_grad_()
        band_penalty(entropy, edge, edge).sum().backward()
        assert entropy.grad.item() == 0.0


def test_edges_carry_no_gradient_in_the_penalty():
    edge = T([0.5], requires_grad=True)
    band_penalty(T([1.0], requires_grad=True), edge, edge).sum().backward()
    assert edge.grad is None


def test_moving_average():
    assert blend_edges(None, (0.2, 0.8), 0.9) == (0.2, 0.8)
    # 0.9 * 0.2 + 0.1 * 0.4 = 0.22; 0.9 * 0.8 + 0.1 * 1.0 = 0.82
    assert blend_edges((0.2, 0.8), (0.4, 1.0), 0.9) == pytest.approx((0.22, 0.82))
