import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spinerl.maths import SELECTORS, all_tokens_mask, top_entropy_mask


@st.composite
def batches(draw):
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    values = st.sampled_from([0.0, 0.1, 0.5, 0.5, 1.0, 2.0])  # ties are common
    entropies = [[draw(values) for _ in range(width)] for _ in range(rows)]
    lengths = [draw(st.integers(0, width)) for _ in range(rows)]
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return torch.tensor(entropies) * mask, mask


def test_by_hand():
    # 5 tokens, rho 0.4: ceil(2) = 2 forks, the entropies 0.9 and 0.7
    entropies = torch.tensor([[0.1, 0.9, 0.2, 0.7, 0.3]])
    assert top_entropy_mask(entropies, torch.ones(1, 5, dtype=torch.bool), 0.4).tolist() == [
        [False, True, False, True, False]
    ]


def test_per_batch_takes_them_where_they_are():
    entropies = torch.tensor([[0.9, 0.8, 0.7], [0.1, 0.2, 0.3]])
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert top_entropy_mask(entropies, everything, 0.5, "batch").tolist() == [[True] * 3, [False] * 3]
    assert top_entropy_mask(entropies, everything, 0.34).sum(1).tolist() == [2, 2]


def test_ties_go_to_the_earlier_token():
    assert top_entropy_mask(torch.full((1, 5), 0.5), torch.ones(1, 5, dtype=torch.bool), 0.4).tolist() == [
        [True, True, False, False, False]
    ]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_refuses_other_fractions(fraction):
    with pytest.raises(ValueError, match=r"forks\.fraction"):
        top_entropy_mask(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), fraction)


@given(batches(), st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.5, 1.0]), st.sampled_from(["response", "batch"]))
def test_count_membership_and_threshold(batch, fraction, scope):
    entropies, mask = batch
    forks = top_entropy_mask(entropies, mask, fraction, scope)
    assert not (forks & ~mask).any()
    sets = (
        [(entropies[i], mask[i], forks[i]) for i in range(len(mask))]
        if scope == "response"
        else [(entropies.flatten(), mask.flatten(), forks.flatten())]
    )
    for values, present, chosen in sets:
        n = int(present.sum())
        assert int(chosen.sum()) == math.ceil(round(fraction * n, 6))
        left_out = values[present & ~chosen]
        if chosen.any() and len(left_out):
            assert values[chosen].min() >= left_out.max()


@given(batches(), st.sampled_from([0.1, 0.2, 0.5]), st.sampled_from(["response", "batch"]))
def test_padding_changes_nothing_and_rows_permute(batch, fraction, scope):
    entropies, mask = batch
    forks = top_entropy_mask(entropies, mask, fraction, scope)
    wider = torch.nn.functional.pad(entropies, (0, 3)), torch.nn.functional.pad(mask, (0, 3))
    assert torch.equal(top_entropy_mask(*wider, fraction, scope)[:, : mask.shape[1]], forks)
    if scope == "response":
        order = torch.arange(len(mask)).flip(0)
        assert torch.equal(top_entropy_mask(entropies[order], mask[order], fraction), forks[order])


def test_all_tokens():
    mask = torch.tensor([[True, False]])
    assert torch.equal(all_tokens_mask(torch.zeros(1, 2), mask, 0.2), mask)
    assert set(SELECTORS) == {"top-entropy", "all", "low-entropy", "random"}
