import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spinerl.maths import SELECTORS, all_tokens_mask, first_tokens_mask, otsu_mask, top_entropy_mask

T = torch.tensor


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
    assert set(SELECTORS) == {"top-entropy", "otsu", "all", "first", "low-entropy", "random"}


@pytest.mark.parametrize("fraction", [1e-12, 0.001, 0.2])
@pytest.mark.parametrize("name", ["top-entropy", "low-entropy", "random"])
def test_every_response_with_tokens_has_a_fork(name, fraction):
    entropies = T([[0.0, 0.0, 0.0], [0.3, 0.9, 0.5], [0.0, 0.0, 0.0]])
    mask = T([[True, False, False], [True, True, True], [False, False, False]])
    assert SELECTORS[name](entropies, mask, fraction).sum(dim=1).tolist() == [1, 1, 0]
    assert int(SELECTORS[name](entropies, mask, fraction, "batch").sum()) == 1
    assert not SELECTORS[name](entropies, torch.zeros_like(mask), fraction, "batch").any()


def test_first_tokens():
    mask = T([[True] * 4, [True, True, False, False], [False] * 4])
    entropies = T([[0.0, 0.1, 0.9, 0.8], [0.0, 0.5, 0.0, 0.0], [0.0] * 4])
    expected = [[True, True, True, False], [True, True, False, False], [False] * 4]
    for scope in ("response", "batch"):
        assert first_tokens_mask(entropies, mask, 0.1, scope, num_tokens=3).tolist() == expected
    assert first_tokens_mask(torch.zeros(1, 12), torch.ones(1, 12).bool(), 0.2).tolist() == [[True] * 8 + [False] * 4]


def test_otsu_by_hand():
    # bins of 1/100: 0, 0, 50, 99.  Variance w0 w1 (m1 - m0)^2 of the two cuts there are:
    #   0 0 | 50 99: 2 * 2 * 74.5^2 = 22201        0 0 50 | 99: 3 * 1 * (99 - 50/3)^2 = 20337
    assert otsu_mask(T([[0.0, 0.5, 0.0, 1.0]]), torch.ones(1, 4).bool(), 0.2).tolist() == [[False, True, False, True]]
    # 0, 50, 50, 50, 99: 1 * 4 * (249/4)^2 = 15500 against 4 * 1 * (99 - 150/4)^2 = 15129: the lower cut
    assert otsu_mask(T([[1.0, 1.5, 1.5, 1.5, 2.0]]), torch.ones(1, 5).bool(), 0.2).tolist() == [[False] + [True] * 4]


def test_otsu_without_a_spread_takes_all_tokens():
    # one token; all equal (the padding's 0.0 is none of them); no token at all
    entropies = T([[0.7, 0.0, 0.0], [0.7, 0.7, 0.0], [0.0, 0.0, 0.0]])
    mask = T([[True, False, False], [True, True, False], [False, False, False]])
    assert torch.equal(otsu_mask(entropies, mask, 0.2), mask)
    assert torch.equal(otsu_mask(torch.zeros(2, 3), torch.ones(2, 3).bool(), 0.2, "batch"), torch.ones(2, 3).bool())


def brute_otsu(values):
    """The selection among these numbers, by every threshold there is."""
    counts, edges = np.histogram(values, bins=100)
    centers = (edges[:-1] + edges[1:]) / 2
    variances = []
    for k in range(100):
        w0, w1 = counts[:k].sum(), counts[k:].sum()
        m0 = (counts[:k] * centers[:k]).sum() / w0 if w0 else 0.0
        m1 = (counts[k:] * centers[k:]).sum() / w1 if w1 else 0.0
        variances.append(w0 * w1 * (m0 - m1) ** 2)
    best = next(k for k in range(100) if variances[k] >= max(variances) * (1 - 1e-12))
    return values >= edges[best]


def like_entropies(rows, width, seed):
    """Numbers spread as entropies are: most near 0, some far off; and lengths."""
    generator = torch.Generator().manual_seed(seed)
    values = -torch.rand(rows, width, generator=generator).log() * 0.2
    values += 2 * torch.rand(rows, width, generator=generator) * (torch.rand(rows, width, generator=generator) < 0.3)
    lengths = torch.randint(2, width + 1, (rows, 1), generator=generator)
    return values, torch.arange(width) < lengths


def test_otsu_equals_every_threshold_tried():
    entropies, mask = like_entropies(80, 50, 0)
    found = otsu_mask(entropies.masked_fill(~mask, 99.0), mask, 0.2)  # what stands in the padding is not looked at
    for row in range(80):
        values = entropies[row][mask[row]].double().numpy()
        assert found[row][mask[row]].tolist() == brute_otsu(values).tolist()
    assert not found[~mask].any()
    shares = found.sum(dim=1) / mask.sum(dim=1)
    assert shares.min() < 0.1, "the share is an outcome"
    assert shares.max() > 0.4
    whole = otsu_mask(entropies.masked_fill(~mask, -1.0), mask, 0.2, "batch")
    assert whole[mask].tolist() == brute_otsu(entropies[mask].double().numpy()).tolist()
    assert not whole[~mask].any()


@settings(deadline=None)
@given(batches(), st.sampled_from(["response", "batch"]))
def test_otsu_is_a_threshold_that_padding_and_fraction_do_not_move(batch, scope):
    entropies, mask = batch
    forks = otsu_mask(entropies, mask, 0.2, scope)
    assert not (forks & ~mask).any()
    groups = [slice(i, i + 1) for i in range(len(mask))] if scope == "response" else [slice(None)]
    for rows in groups:
        values, present, chosen = entropies[rows], mask[rows], forks[rows]
        assert chosen.any() == present.any()
        if present.any():
            assert torch.equal(chosen, present & (values >= values[chosen].min()))
            uniform = values[present].min() == values[present].max()
            assert uniform == torch.equal(chosen, present)
    wider = torch.nn.functional.pad(entropies, (0, 3), value=7.0), torch.nn.functional.pad(mask, (0, 3))
    assert torch.equal(otsu_mask(*wider, 0.9, scope)[:, : mask.shape[1]], forks)
