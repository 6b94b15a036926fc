"""The rewards of the family, counted by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinerl.answers import (
    empo_reward,
    evol_reward,
    evol_sides,
    frequency_reward,
    majority_reward,
    reference_reward,
    ttrv_reward,
    vote,
)
from spinerl.errors import InputError
from spinerl.types import Vote


def cast(classes: list[int | None], weights: list[float] | None = None) -> Vote:
    return vote([None if c is None else str(c) for c in classes], classes, weights=weights)


classes_of_groups = st.lists(st.sampled_from([None, 0, 1, 2]), min_size=1, max_size=10)
NO_VOTES = cast([None, None])


def test_empo_is_the_share_of_the_own_class() -> None:
    # 4 responses: shares 2/4, 1/4, and one abstainer
    assert empo_reward(cast([4, 4, 5, None])) == (0.5, 0.5, 0.25, 0.0)
    assert empo_reward(cast([4, 4, 4])) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 64])
def test_empo_gives_nothing_where_no_two_agree(size: int) -> None:
    assert empo_reward(cast(list(range(size)))) == (0.0,) * size
    assert empo_reward(cast([None] * size)) == (0.0,) * size
    if size > 1:  # the abstainers are answers of their own: still no two agree
        assert empo_reward(cast([3, *[None] * (size - 1)])) == (0.0,) * size


def test_empo_of_nothing() -> None:
    assert empo_reward(vote([], [])) == ()


def test_empo_thresholds() -> None:
    # shares 1/2, 1/4, 1/4: H = (1/2) ln 2 + 2 (1/4) ln 4 = 1.5 ln 2; of ln 4 = 2 ln 2 that is 0.75
    group = cast([4, 4, 5, 6])
    assert empo_reward(group, max_entropy_frac=0.76) == (0.5, 0.5, 0.25, 0.25)
    assert empo_reward(group, max_entropy_frac=0.75) == (0.0,) * 4
    assert empo_reward(group, min_entropy_frac=0.75) == (0.5, 0.5, 0.25, 0.25)
    assert empo_reward(group, min_entropy_frac=0.76) == (0.0,) * 4
    settled = cast([4, 4, 4, 4])
    assert empo_reward(settled, min_entropy_frac=0.1) == (0.0,) * 4
    for low, high in ((-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (math.nan, 1.0)):
        with pytest.raises(InputError, match="0 <= min <= max <= 1"):
            empo_reward(group, min_entropy_frac=low, max_entropy_frac=high)


def test_ttrv_by_hand() -> None:
    # two answers, shares 3/4 and 1/4: H = 0.562335, over ln 2 = 0.811278; 0.75 * 0.811278 = 0.608459
    assert ttrv_reward(cast([4, 4, 4, 5])) == pytest.approx((0.141541, 0.141541, 0.141541, -0.358459), abs=1e-6)
    assert ttrv_reward(cast([4, 4, 4, 5]), entropy_weight=0.0) == (0.75, 0.75, 0.75, 0.25)
    assert ttrv_reward(cast([4, 4])) == (1.0, 1.0)
    # no two agree: the entropy is maximal and none has a share
    assert ttrv_reward(NO_VOTES) == (-0.75, -0.75)
    # 4, 4 and two abstainers: three answers with shares 1/2, 1/4, 1/4: H = 1.5 ln 2 over ln 3 = 0.946395
    assert ttrv_reward(cast([4, 4, None, None])) == pytest.approx(
        (0.5 - 0.75 * 0.946395, 0.5 - 0.75 * 0.946395, -0.75 * 0.946395, -0.75 * 0.946395), abs=1e-6
    )
    # an answer whose votes weigh nothing is not there
    assert ttrv_reward(cast([4, 4, 5], weights=[1, 1, 0])) == (1.0, 1.0, 0.0)
    with pytest.raises(InputError, match="0 or more"):
        ttrv_reward(NO_VOTES, entropy_weight=-0.1)


@given(classes_of_groups)
def test_the_entropy_part_of_ttrv_is_the_same_for_the_whole_group(classes: list[int | None]) -> None:
    group = cast(classes)
    parts = [f - t for f, t in zip(frequency_reward(group), ttrv_reward(group), strict=True)]
    assert max(parts) - min(parts) < 1e-12
    assert -1e-12 <= parts[0] <= 0.75 + 1e-9


def test_evol_by_hand() -> None:
    # majority 4 with novelty 0.2, 0.3, 0.6: u = 0, 0.25, 1, so 0.5, 0.625, 1
    # others 5, 6 with novelty 0.9, 0.1: u = 1, 0, so -0.5, -1; no answer: -1 whatever its novelty
    group = cast([4, 4, 4, 5, 6, None])
    assert evol_sides(group) == (1, 1, 1, 0, 0, -1)
    assert evol_reward(group, [0.2, 0.3, 0.6, 0.9, 0.1, 5.0]) == pytest.approx((0.5, 0.625, 1.0, -0.5, -1.0, -1.0))
    # equals share the middle; a single one is as novel as can be
    assert evol_reward(cast([4, 4, 5]), [0.3, 0.3, 0.3]) == (0.75, 0.75, -0.5)
    assert evol_reward(cast([4, None]), [0.3, 0.3]) == (1.0, -1.0)


def test_evol_without_a_winner_rewards_no_one() -> None:
    tied = cast([4, 5, None])
    assert evol_sides(tied) == (0, 0, -1)
    assert evol_reward(tied, [0.1, 0.2, 0.3]) == (0.0, 0.0, 0.0)
    assert evol_reward(NO_VOTES, [0.0, 1.0]) == (0.0, 0.0)
    with pytest.raises(InputError, match="one novelty score per response"):
        evol_reward(tied, [0.1])
    with pytest.raises(InputError, match="finite"):
        evol_reward(tied, [0.1, math.nan, 0.2])


@given(st.lists(st.tuples(st.sampled_from([None, 0, 0, 1]), st.floats(0, 1)), min_size=1, max_size=10))
def test_evol_decides_by_the_majority_and_ranks_by_novelty(group: list[tuple[int | None, float]]) -> None:
    outcome = cast([c for c, _ in group])
    novelty = [n for _, n in group]
    rewards = evol_reward(outcome, novelty)
    if outcome.winner is None:
        assert set(rewards) == {0.0}
        return
    for reward, agrees in zip(rewards, majority_reward(outcome), strict=True):
        assert (0.5 <= reward <= 1.0) if agrees else (-1.0 <= reward <= -0.5)
    sides = evol_sides(outcome)
    for i, one in enumerate(sides):
        for j, other in enumerate(sides):
            if one == other >= 0 and novelty[i] > novelty[j]:
                assert rewards[i] >= rewards[j]


def test_reference() -> None:
    group = cast([4, 4, 5, None])
    assert reference_reward(group, 1) == (0.0, 0.0, 1.0, 0.0)  # the reference may side with the minority
    assert reference_reward(group, None) == (0.0,) * 4  # and an abstainer is not equivalent to no answer
    assert reference_reward(group, 9) == (0.0,) * 4
