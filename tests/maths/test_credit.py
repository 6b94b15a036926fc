import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spinerl.answers import frequency_reward, ttrv_reward, vote
from spinerl.maths import (
    batch_advantages,
    bounded_advantages,
    entropy_advantages,
    group_advantages,
    prefix_tree_advantages,
)

T = torch.tensor


def test_over_the_batch_by_hand():
    # 1 1 0 0 0 1: mean 1/2, squares sum to 6/4, std = sqrt(1.5 / 5) = 0.547723
    found = batch_advantages(T([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), eps=1e-6)
    expected = 0.5 / 0.547723
    assert found[0].tolist() == pytest.approx([expected, expected, -expected], rel=1e-4)
    assert batch_advantages(T([[1.0, 1.0], [0.0, 1.0]]), "none").tolist() == [[0.25, 0.25], [-0.75, 0.25]]
    assert not batch_advantages(torch.full((3, 4), 0.1)).any()
    assert batch_advantages(T([[1.0]])).tolist() == [[0.0]]
    assert batch_advantages(T([[1.0, 0.3], [0.0, 1.0]]), "raw").tolist() == T([[1.0, 0.3], [0.0, 1.0]]).tolist()


def test_the_entropy_part_of_ttrv_acts_over_the_batch_and_cancels_in_the_group():
    """Same shares for the leading answer, different scatter: only the batch form separates the questions."""
    votes = [vote(list("aabb"), [0, 0, 1, 1]), vote(list("aabc"), [0, 0, 1, 2])]
    ttrv = T([ttrv_reward(one) for one in votes], dtype=torch.float64)
    frequency = T([frequency_reward(one) for one in votes], dtype=torch.float64)
    for scale in ("std", "none"):
        assert torch.allclose(group_advantages(ttrv, scale), group_advantages(frequency, scale))
        assert not torch.allclose(batch_advantages(ttrv, scale), batch_advantages(frequency, scale))
    # H / log M is 1 for (1/2, 1/2) and 1.5 ln 2 / ln 3 = 0.9464 for (1/2, 1/4, 1/4)
    assert ttrv[0].tolist() == pytest.approx([0.5 - 0.75] * 4)
    assert ttrv[1, 0].item() == pytest.approx(0.5 - 0.75 * 1.5 * math.log(2) / math.log(3))


def test_reshaped_by_hand():
    # H = 1, 2, 6: mean 3; factors 2 - 1/3, 2 - 2/3, 2 - 2 = 0
    found = entropy_advantages(T([[1.0, -1.0, 0.5]]), T([[1.0, 2.0, 6.0]]))
    assert found[0].tolist() == pytest.approx([5 / 3, -4 / 3, 0.0])
    # H = 0, 0, 3: mean 1; the third factor is 2 - 3 = -1, which would turn the advantage around
    entropies = T([[0.0, 0.0, 3.0]])
    assert entropy_advantages(T([[1.0, 1.0, -2.0]]), entropies).tolist() == [[2.0, 2.0, 0.0]]
    assert entropy_advantages(T([[1.0, 1.0, -2.0]]), entropies, -math.inf).tolist() == [[2.0, 2.0, 2.0]]
    assert entropy_advantages(T([[1.0, -1.0]]), torch.zeros(1, 2)).tolist() == [[1.0, -1.0]]
    kept = entropy_advantages(T([[1.0, -1.0]], dtype=torch.float64), torch.ones(1, 2))
    assert (kept.dtype, kept.tolist()) == (torch.float64, [[1.0, -1.0]])


@given(st.lists(st.lists(st.floats(0, 4, allow_subnormal=False), min_size=3, max_size=3), min_size=1, max_size=4))
def test_reshaping_keeps_every_sign_and_the_mean_factor(rows):
    entropies = T(rows, dtype=torch.float64)
    factors = entropy_advantages(torch.ones_like(entropies), entropies)
    assert ((factors >= 0) & (factors <= 2)).all()
    bare = entropy_advantages(torch.ones_like(entropies), entropies, -math.inf)
    assert torch.allclose(bare.mean(dim=1), torch.ones(len(rows), dtype=torch.float64))


def test_reshaped_within_a_range_by_hand():
    # H = 1, 2, 6: mean 3; factors 5/3, 4/3, 0 are kept within 1 +- 0.2; H = 0.9, 1.1: 1.1 and 0.9 are within
    found = entropy_advantages(T([[1.0, -1.0, 0.5]]), T([[1.0, 2.0, 6.0]]), 0.8, 1.2)
    assert found[0].tolist() == pytest.approx([1.2, -1.2, 0.4])
    found = entropy_advantages(T([[1.0, -2.0]]), T([[0.9, 1.1]]), 0.8, 1.2)
    assert found[0].tolist() == pytest.approx([1.1, -1.8])
    # of a group without entropy, and of one where only some have none: mean 1, factors 2 and 0
    assert entropy_advantages(T([[1.0, -1.0]]), torch.zeros(1, 2), 0.8, 1.2).tolist() == [[1.0, -1.0]]
    assert entropy_advantages(T([[1.0, -1.0]]), T([[0.0, 2.0]]), 0.8, 1.2)[0].tolist() == pytest.approx([1.2, -0.8])


def test_bounded():
    assert bounded_advantages(T([[2.5, -3.0, 0.5]]), 1.5).tolist() == [[1.5, -1.5, 0.5]]
    for bound in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="bound > 0"):
            bounded_advantages(T([1.0]), bound)


def test_prefix_tree_by_hand():
    # rewards 1, 1, 0; mean 2/3.  Tokens: 7 8 | 7 9 | 7 9, the last one goes on with 5
    #   token 0: all share it, V stays 2/3
    #   token 1: the first is by itself, V = 1, change 1/3; the others share 7 9, V = (1 + 0) / 2, change -1/6
    #   token 2: only the third has one, V = 0, change -1/2
    # centred rewards 1/3, 1/3, -2/3
    tokens = T([[7, 8, 0], [7, 9, 0], [7, 9, 5]])
    mask = T([[True, True, False], [True, True, False], [True, True, True]])
    found = prefix_tree_advantages(T([[1.0, 1.0, 0.0]], dtype=torch.float64), tokens, mask, "none")
    expected = [[1 / 3, 2 / 3, 0.0], [1 / 3, 1 / 6, 0.0], [-2 / 3, -2 / 3 - 1 / 6, -2 / 3 - 1 / 2]]
    assert torch.allclose(found, T(expected, dtype=torch.float64))
    # std = sqrt((1/9 + 1/9 + 4/9) / 2) = sqrt(1/3), and eps is added to it
    scaled = prefix_tree_advantages(T([[1.0, 1.0, 0.0]], dtype=torch.float64), tokens, mask, eps=0.1)
    assert torch.allclose(scaled, found / (math.sqrt(1 / 3) + 0.1))


@st.composite
def rollouts(draw):
    groups, size, width = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(0, 6))
    rows = groups * size
    tokens = [[draw(st.integers(0, 1)) for _ in range(width)] for _ in range(rows)]  # two tokens: much is shared
    lengths = [draw(st.integers(0, width)) for _ in range(rows)]
    rewards = [[draw(st.sampled_from([0.0, 0.3, 1.0])) for _ in range(size)] for _ in range(groups)]
    mask = torch.arange(width) < T(lengths).unsqueeze(1)
    return T(rewards, dtype=torch.float64), T(tokens, dtype=torch.int64).view(rows, width), mask


@settings(deadline=None)
@given(rollouts(), st.sampled_from(["std", "none"]))
def test_prefix_tree_equals_the_definition(rollout, scale):
    rewards, tokens, mask = rollout
    size = rewards.shape[1]
    found = prefix_tree_advantages(rewards, tokens, mask, scale)
    lists = [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
    flat = rewards.flatten().tolist()
    for i, own in enumerate(lists):
        group = range(i // size * size, (i // size + 1) * size)
        rewards_here = T([flat[j] for j in group], dtype=torch.float64)
        mean = rewards_here.mean().item()
        spread = rewards_here.std().item() + 1e-6 if scale == "std" and size > 1 else 1.0

        def value(t: int, own: list[int] = own, group: range = group) -> float:
            sharing = [flat[j] for j in group if lists[j][:t] == own[:t]]
            return sum(sharing) / len(sharing)

        for t in range(len(own)):
            expected = (flat[i] - mean + value(t + 1) - value(t)) / spread
            if len(set(rewards_here.tolist())) == 1:
                expected = 0.0
            assert found[i, t].item() == pytest.approx(expected, abs=1e-9)
    assert not found[~mask].any()


@settings(deadline=None)
@given(rollouts())
def test_prefix_tree_reduces_to_the_group_where_no_response_parts(rollout):
    rewards, tokens, mask = rollout
    group = group_advantages(rewards, "none").flatten()
    same = prefix_tree_advantages(rewards, torch.zeros_like(tokens), torch.ones_like(mask), "none")
    assert torch.allclose(same, group.unsqueeze(1).expand_as(same))
    # where all part at the first token, its value change is the whole of the centred reward, and later ones are 0
    apart = tokens.clone()
    apart[:, :1] = torch.arange(len(tokens)).unsqueeze(1)[:, : tokens.shape[1]]
    found = prefix_tree_advantages(rewards, apart, torch.ones_like(mask), "none")
    assert torch.allclose(found[:, 1:], group.unsqueeze(1).expand_as(found)[:, 1:])
    assert torch.allclose(found[:, :1], 2 * group.unsqueeze(1).expand_as(found)[:, :1])


def test_prefix_tree_refuses_other_numbers_of_rows():
    with pytest.raises(ValueError, match="give 4"):
        prefix_tree_advantages(torch.zeros(2, 2), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1).bool())
