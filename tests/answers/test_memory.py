"""The arithmetic of remembered votes, by hand and against one vote over everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinerl.answers import (
    Equivalence,
    VoteMemory,
    empo_reward,
    frequency_reward,
    leave_one_out_reward,
    majority_reward,
    ttrv_reward,
    vote,
    vote_from_memory,
)
from spinerl.errors import InputError
from spinerl.types import Vote


@pytest.fixture(scope="module")
def equivalence() -> Iterator[Equivalence]:
    with Equivalence() as one:
        yield one


def fresh_vote(answers: Sequence[str | None], equivalence: Equivalence) -> Vote:
    return vote(answers, equivalence.classes(answers, "math"))


def visits(
    groups: Sequence[Sequence[str | None]], equivalence: Equivalence, kind: str = "sum", **options: object
) -> list[Vote]:
    """The vote of each visit, one after the other."""
    memory, found = VoteMemory(), []
    for step, answers in enumerate(groups, 1):
        weights = options.get("weights") or [1.0] * len(answers)
        rest = {key: value for key, value in options.items() if key != "weights"}
        one, memory = vote_from_memory(
            memory,
            fresh_vote(answers, equivalence),
            weights,  # type: ignore[arg-type]
            step,
            kind,
            equivalence,
            "math",
            **rest,  # type: ignore[arg-type]
        )
        found.append(one)
    return found


def test_one_answer_in_two_spellings_is_one_class_across_visits(equivalence: Equivalence):
    first, second = visits([["1/2", "1/2", "7"], ["0.5", r"\frac{1}{2}", "7"]], equivalence)
    assert first.counts == (2.0, 1.0)
    assert second.classes == (0, 0, 1)
    assert second.counts == (4.0, 2.0)
    assert second.pseudo_label == "1/2"  # the spelling with most votes, though no fresh response has it
    assert second.majority_frac == 4 / 6


def test_sum_adds_and_ema_fades_by_age_and_fixed_stays(equivalence: Equivalence):
    groups = [["a", "a", "a", None], ["b", "b", "b", "b"], ["b", "b", "a", "a"]]
    added = visits(groups, equivalence)
    assert [one.pseudo_label for one in added] == ["a", "b", "b"]
    assert added[1].counts == (4.0, 3.0)  # b is the fresh responses' class, a is only in the memory
    assert added[2].counts == (6.0, 5.0)
    assert added[2].memory is not None
    assert (added[2].memory.abstained, added[2].memory.total) == (1.0, 12.0)
    faded = visits(groups, equivalence, "ema", decay=0.5)
    assert faded[2].counts == (2.0 + 4.0 * 0.5, 2.0 + 3.0 * 0.25)
    assert faded[2].majority_frac == 4.0 / (4.0 + 2.75 + 0.25)
    held = visits(groups, equivalence, "fixed")
    assert [one.pseudo_label for one in held] == ["a", "a", "a"]
    assert held[1].classes == (0, 0, 0, 0)
    assert held[1].counts == (0.0, 3.0)
    assert held[1].winner == 1
    assert majority_reward(held[1]) == (0.0,) * 4  # no response said it
    assert majority_reward(held[2]) == (0.0, 0.0, 1.0, 1.0)


def test_a_fixed_memory_waits_for_an_answer(equivalence: Equivalence):
    held = visits([[None, None], ["a", None], ["b", "b"]], equivalence, "fixed")
    assert [one.pseudo_label for one in held] == [None, "a", "a"]
    assert held[2].memory is not None
    assert (held[2].memory.abstained, held[2].memory.total) == (3.0, 4.0)


def test_a_label_falls_only_to_an_answer_that_leads_it(equivalence: Equivalence):
    tied = visits([["a", "a", "b"], ["b"]], equivalence)
    assert tied[1].counts == (2.0, 2.0)
    assert tied[1].pseudo_label == "a"  # a tie is no evidence
    assert visits([["a", "b"], ["b", "a"]], equivalence)[1].pseudo_label is None  # and none where there was no label
    groups = [["a"] * 6, ["b"] * 8, ["b"] * 2]
    assert [one.pseudo_label for one in visits(groups, equivalence)] == ["a", "b", "b"]
    slow = visits(groups, equivalence, flip_margin=0.2)
    assert [one.pseudo_label for one in slow] == ["a", "a", "b"]  # 2/14 ahead, then 4/16
    assert slow[1].majority_frac == 6 / 14  # the share of the label, not of the largest class


def test_a_share_and_a_margin_may_be_needed(equivalence: Equivalence):
    groups = [["a"] * 5 + ["b"] * 4 + [None]]
    assert visits(groups, equivalence, min_majority_frac=0.5)[0].pseudo_label == "a"
    assert visits(groups, equivalence, min_majority_frac=0.51)[0].pseudo_label is None
    assert visits(groups, equivalence, min_margin=0.1)[0].pseudo_label == "a"
    none = visits(groups, equivalence, min_margin=0.11)[0]
    assert (none.pseudo_label, none.winner, none.majority_frac) == (None, None, 0.5)


def test_responses_seen_again_count_once(equivalence: Equivalence):
    """Several steps may learn from one rollout."""
    memory = VoteMemory()
    one = fresh_vote(["a", "a", "b"], equivalence)
    for _ in range(3):
        found, memory = vote_from_memory(memory, one, [1.0] * 3, 4, "sum", equivalence, "math")
        assert found.counts == (2.0, 1.0)
        assert found.memory is not None
        assert found.memory.weights == (1.0,) * 3


def test_rewards_read_the_memory(equivalence: Equivalence):
    now = visits([["a"] * 3 + ["b"] * 2 + [None], ["b", "b", "c", None]], equivalence)[1]
    assert now.counts == (4.0, 1.0, 3.0)  # b, c, a of 10
    assert majority_reward(now) == (1.0, 1.0, 0.0, 0.0)
    assert frequency_reward(now) == (0.4, 0.4, 0.1, 0.0)
    # Without one of its own votes b has 3 and a 3: a was the label before, and keeps it.
    assert leave_one_out_reward(now) == (0.0,) * 4
    assert leave_one_out_reward(visits([["a", "b", "b"], ["b", "b"]], equivalence)[1]) == (1.0, 1.0)
    assert empo_reward(now) == (0.4, 0.4, 0.1, 0.0)
    scatter = ttrv_reward(now)[2] - 0.1
    assert ttrv_reward(now) == pytest.approx([0.4 + scatter, 0.4 + scatter, 0.1 + scatter, scatter])
    shares = [0.4, 0.3, 0.1, 0.1, 0.1]  # the two that abstained are answers of their own
    import math

    assert scatter == pytest.approx(0.75 * sum(p * math.log(p) for p in shares) / math.log(5))


def test_leave_one_out_of_a_fixed_memory_takes_nothing_away(equivalence: Equivalence):
    now = visits([["a", "a", "b"], ["b", "b", "a"]], equivalence, "fixed")[1]
    assert leave_one_out_reward(now) == majority_reward(now) == (0.0, 0.0, 1.0)


def test_weighted_votes_keep_their_weights(equivalence: Equivalence):
    now = visits([["a", "b"], ["a", "b"]], equivalence, weights=[0.25, 0.5])[1]
    assert now.counts == (0.5, 1.0)
    assert now.memory is not None
    assert now.memory.total == 1.5


def test_an_unknown_kind_is_refused(equivalence: Equivalence):
    with pytest.raises(InputError, match=r"vote\.memory='mean'"):
        visits([["a"]], equivalence, "mean")


spellings = st.sampled_from(["1/2", "0.5", "2", "2.0", "3", None])


@given(st.lists(st.lists(spellings, min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_sum_is_one_vote_over_all_responses(groups: list[list[str | None]]):
    """Whatever the visits; but for ties, which keep the label there was."""
    with Equivalence() as equivalence:
        now = visits(groups, equivalence)[-1]
        pooled = [answer for answers in groups for answer in answers]
        all_at_once = fresh_vote(pooled, equivalence)
    assert sorted(now.counts) == sorted(all_at_once.counts)
    ranked = sorted(all_at_once.counts, reverse=True)
    if all_at_once.winner is not None:
        assert now.pseudo_label == all_at_once.pseudo_label
        assert now.majority_frac == all_at_once.majority_frac
    else:
        assert not ranked or any(a == b for a, b in pairwise(ranked))
    for number, own in enumerate(now.classes):
        answer = groups[-1][number]
        assert (own is None) == (answer is None)
        if own is not None:
            same = sum(a is not None and equals(a, answer) for a in pooled)
            assert now.counts[own] == same


def equals(a: str | None, b: str | None) -> bool:
    value = {"1/2": 0.5, "0.5": 0.5, "2": 2.0, "2.0": 2.0, "3": 3.0}
    return a is not None and b is not None and value[a] == value[b]


@given(st.lists(st.lists(spellings, min_size=1, max_size=5), min_size=1, max_size=4))
def test_leave_one_out_equals_a_memory_without_the_response(groups: list[list[str | None]]):
    with Equivalence() as equivalence:
        rewards = leave_one_out_reward(visits(groups, equivalence)[-1])
        for i, answer in enumerate(groups[-1]):
            without = visits([*groups[:-1], [a for j, a in enumerate(groups[-1]) if j != i]], equivalence)[-1]
            expected = answer is not None and without.pseudo_label is not None and equals(answer, without.pseudo_label)
            assert rewards[i] == float(expected)
