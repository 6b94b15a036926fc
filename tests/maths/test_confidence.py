import pytest
import torch

from spinerl.maths import VOTE_WEIGHTS, mean_certainty, mean_probability

T = torch.tensor


def test_by_hand_padding_ignored():
    logprobs, entropies = torch.log(T([[0.5, 0.125], [0.25, 1.0]])), T([[1.0, 3.0], [0.5, 0.0]])
    mask = T([[True, True], [True, False]])
    assert mean_probability(logprobs, entropies, mask).tolist() == pytest.approx([0.25, 0.25])
    assert mean_certainty(logprobs, entropies, mask).tolist() == pytest.approx([0.1353353, 0.6065307])  # e^-2, e^-1/2


@pytest.mark.parametrize("name", VOTE_WEIGHTS)
def test_weights_are_finite_and_not_negative(name):
    more = {"margin": {"margins": torch.zeros(2, 3)}, "stepwise": {"line_ends": T([[True] * 3] * 2)}}.get(name, {})
    mask = T([[True] * 3, [False] * 3])
    weights = VOTE_WEIGHTS[name](torch.full((2, 3), -50.0), torch.full((2, 3), 9.0), mask, **more)
    assert weights.shape == (2,)
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
