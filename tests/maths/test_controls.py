import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spinerl.maths import SELECTORS, low_entropy_mask, random_mask, top_entropy_mask

T = torch.tensor


def test_low_entropy_by_hand():
    # 5 tokens, rho 0.4: the two lowest, 0.1 and 0.2; the padding's 0.0 is none of them
    entropies = T([[0.1, 0.9, 0.2, 0.7, 0.3, 0.0]])
    mask = T([[True] * 5 + [False]])
    assert low_entropy_mask(entropies, mask, 0.4).tolist() == [[True, False, True, False, False, False]]
    assert low_entropy_mask(torch.zeros(1, 3), torch.ones(1, 3).bool(), 0.3).tolist() == [[True, False, False]]


@st.composite
def masks(draw):
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    return torch.arange(width) < T([draw(st.integers(0, width)) for _ in range(rows)]).unsqueeze(1)


@settings(deadline=None)
@given(masks(), st.sampled_from([0.1, 0.2, 0.5, 1.0]), st.sampled_from(["response", "batch"]))
@pytest.mark.parametrize("name", ["low-entropy", "random"])
def test_controls_choose_as_many_as_forks_within_the_mask(name, mask, fraction, scope):
    entropies = torch.rand(mask.shape) * mask
    chosen = SELECTORS[name](entropies, mask, fraction, scope)
    forks = top_entropy_mask(entropies, mask, fraction, scope)
    assert not (chosen & ~mask).any()
    assert chosen.sum() == forks.sum()
    if scope == "response":
        assert torch.equal(chosen.sum(dim=1), forks.sum(dim=1))
    wider = torch.nn.functional.pad(mask, (0, 3))
    again = SELECTORS[name](torch.nn.functional.pad(entropies, (0, 3)), wider, fraction, scope)
    assert torch.equal(again[:, : mask.shape[1]], chosen)


def test_random_does_not_look_and_repeats_itself():
    mask = torch.ones(2, 10, dtype=torch.bool)
    assert torch.equal(random_mask(torch.rand(2, 10), mask, 0.3), random_mask(torch.zeros(2, 10), mask, 0.3))


def test_random_has_no_favourite_place():
    # 2000 rows of 20 tokens, a fifth chosen: each column 400 times, standard deviation sqrt(2000 * 0.2 * 0.8) = 18
    counts = random_mask(torch.zeros(2000, 20), torch.ones(2000, 20).bool(), 0.2).sum(dim=0).double()
    assert (counts - 400).abs().max() < 5 * math.sqrt(2000 * 0.2 * 0.8)
    assert counts.std() < 2 * math.sqrt(2000 * 0.2 * 0.8)
