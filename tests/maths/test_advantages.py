import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spinerl.maths import group_advantages

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
