import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spinerl.maths import entropic_advantages, group_advantages, pass_k_advantages

groups = st.integers(2, 6).flatmap(
    lambda g: st.lists(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=g, max_size=g), min_size=1, max_size=5)
)


def test_standardised_by_hand():
    # rewards 1, 0, 0, 1: mean 1/2, sum of squares 4 * 1/4 = 1, std = sqrt(1 / 3) = 0.57735
    found = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), eps=1e-6)
    assert found[0].tolist() == pytest.approx([0.8660, -0.8660, -0.8660, 0.8660], abs=1e-4)


def test_centred_by_hand():
    assert group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), "none")[0].tolist() == [
        0.75,
        -0.25,
        -0.25,
        -0.25,
    ]


def test_eps_is_added_to_the_deviation():
    # mean 1/2, std = sqrt(1/2); with eps = sqrt(1/2) the result is half of the standardised one
    rewards = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    found = group_advantages(rewards, eps=0.5**0.5)
    assert found[0].tolist() == pytest.approx([0.5 / (2 * 0.5**0.5), -0.5 / (2 * 0.5**0.5)])


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_constant_group_is_exactly_zero(scale, value):
    assert (group_advantages(torch.full((2, 7), value), scale) == 0).all()


@pytest.mark.parametrize("scale", ["std", "none"])
def test_group_of_one_is_zero(scale):
    assert group_advantages(torch.tensor([[1.0]]), scale).tolist() == [[0.0]]


def test_raw_leaves_rewards_as_they_are():
    rewards = torch.tensor([[1.0, 0.0, 0.25], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert torch.equal(group_advantages(rewards, "raw", eps=0.5), rewards)
    assert group_advantages(torch.tensor([[1.0]]), "raw").tolist() == [[1.0]], "also of a group of one"


@given(groups)
def test_each_group_sums_to_zero_and_permutes_with_its_rewards(rewards):
    tensor = torch.tensor(rewards, dtype=torch.float64)
    found = group_advantages(tensor)
    assert torch.allclose(found.sum(1), torch.zeros(len(tensor), dtype=torch.float64), atol=1e-9)
    order = torch.randperm(tensor.shape[1])
    assert torch.allclose(group_advantages(tensor[:, order]), found[:, order])
    assert torch.allclose(group_advantages(tensor + 3.0), found)


@pytest.mark.parametrize("text", ["10000", "11000", "10101", "11110", "00000", "11111"])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_one_of_k_by_counting_all_subsets(text, k):
    """A response's part for one of k: the mean over the k-subsets with it of (does one hit? - rho) / s."""
    rewards = [float(one) for one in text]
    n, right = 5, int(sum(rewards))
    subsets = list(itertools.combinations(range(n), min(k, n)))
    hits = [any(rewards[i] > 0 for i in subset) for subset in subsets]
    rho = sum(hits) / len(hits)
    s = math.sqrt(rho * (1 - rho))
    plain = group_advantages(torch.tensor([rewards], dtype=torch.float64))[0].tolist()
    expected = []
    for i in range(n):
        with_it = [hit for subset, hit in zip(subsets, hits, strict=True) if i in subset]
        part = sum(hit - rho for hit in with_it) / len(with_it) / s if s else 0.0
        expected.append(right / n * part + (1 - right / n) * plain[i])
    found = pass_k_advantages(torch.tensor([rewards], dtype=torch.float64), k)[0].tolist()
    assert found == pytest.approx(expected, abs=1e-9)


def test_one_of_k_refuses_no_k():
    with pytest.raises(ValueError, match="k=0"):
        pass_k_advantages(torch.ones(1, 2), 0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-20, 20), min_size=3, max_size=9), st.floats(0.1, 50), st.floats(-9, 9))
def test_entropic_advantages_have_the_divergence_and_no_scale(rewards, scale, shift):
    given_ = torch.tensor([rewards], dtype=torch.float64)
    found = entropic_advantages(given_)[0]
    if len(set(rewards)) == 1:
        assert not found.any()
        return
    q = (found + 1) / len(rewards)
    assert q.sum().item() == pytest.approx(1.0)
    assert q.argmax() in [i for i, r in enumerate(rewards) if r == max(rewards)]
    best = rewards.count(max(rewards))
    if len(rewards) > 2 * best:
        divergence = sum(x * math.log(x * len(rewards)) for x in q.tolist() if x > 0)
        assert divergence == pytest.approx(math.log(2), abs=1e-6)
        again = entropic_advantages(given_ * scale + shift)[0].tolist()
        assert again == pytest.approx(found.tolist(), abs=1e-6)


def test_entropic_advantages_where_too_many_are_best():
    found = entropic_advantages(torch.tensor([[2.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, -1.0])
    assert found[1].tolist() == [0.0] * 4
    with pytest.raises(ValueError, match="divergence"):
        entropic_advantages(torch.ones(1, 2), 0.0)
