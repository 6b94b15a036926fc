"""Baselines without updates: which answer, and at what price."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from spinerl.answers import (
    Decision,
    best_of,
    early_stopped_majority,
    first_finish,
    lead_probability,
    vote,
)
from spinerl.errors import InputError
from spinerl.types import Vote


def cast(classes: list[int | None]) -> Vote:
    return vote([None if c is None else "abcdef"[c] for c in classes], classes)


def test_best_of() -> None:
    group = cast([0, 1, None, 1])
    assert best_of(group, [-1.0, -0.5, 0.0, -0.5], [10, 20, 30, 40]) == Decision("b", 1, 4, 100)
    assert best_of(group, [-0.2, -0.5, 9.0, -0.5], [10, 20, 30, 40]).answer == "a"  # the best gave no answer
    assert best_of(cast([0, 1]), [1.0, 1.0], [1, 1]).answer == "a"  # equal scores: the first drawn
    assert best_of(cast([None, None]), [1.0, 2.0], [5, 6]) == Decision(None, None, 2, 11)
    assert best_of(cast([]), [], []) == Decision(None, None, 0, 0)


def test_first_finish() -> None:
    group = cast([0, 1, 1, 0])
    lengths, finished = [50, 20, 99, 30], [True, True, False, True]
    # the second stops first, at 20: all four have written 20
    assert first_finish(group, lengths, finished) == Decision("b", 1, 4, 80)
    # three voters: 20 (b), 30 (a), 50 (a): a, with 50 + 20 + 50 + 30 written
    assert first_finish(group, lengths, finished, 3) == Decision("a", 0, 4, 150)
    # two voters b and a tie: the one that came first
    assert first_finish(group, lengths, finished, 2) == Decision("b", 1, 4, 20 + 30 + 30 + 30)
    # four voters, but one never finishes: everything is paid for
    assert first_finish(group, lengths, finished, 4) == Decision("a", 0, 4, 199)


def test_first_finish_without_an_answer() -> None:
    assert first_finish(cast([None, 0]), [5, 9], [True, True]) == Decision(None, None, 2, 10)
    assert first_finish(cast([None, None]), [5, 9], [False, False]) == Decision(None, None, 2, 14)
    assert first_finish(cast([]), [], []) == Decision(None, None, 0, 0)


def test_majority_that_stops_when_nothing_can_change() -> None:
    # 6 votes: after a a b a the lead is 3 to 1 with 2 left, which could make a tie; after a a b a a, 4 to 1 with 1
    assert early_stopped_majority(cast([0, 0, 1, 0, 0, 1]), [10] * 6) == Decision("a", 0, 5, 50)
    # 3 of 5 alike are enough, and 4 of 5 abstaining cost their tokens too
    assert early_stopped_majority(cast([1, 1, 1, 0, 0]), [1, 2, 3, 4, 5]) == Decision("b", 0, 3, 6)
    assert early_stopped_majority(cast([None, None, None, None, 0]), [1, 2, 3, 4, 5]) == Decision("a", 0, 5, 15)
    assert early_stopped_majority(cast([0, 1]), [1, 1]) == Decision(None, None, 2, 2)
    assert early_stopped_majority(cast([0, 1]), [1, 1], tie="first") == Decision("a", 0, 2, 2)
    assert early_stopped_majority(cast([]), []) == Decision(None, None, 0, 0)


def test_majority_that_stops_when_it_is_likely() -> None:
    # unanimous: 15/16 = 0.9375 after three votes, 31/32 = 0.96875 after four
    group = cast([0] * 16)
    assert early_stopped_majority(group, [10] * 16, confidence=0.95) == Decision("a", 0, 4, 40)
    assert early_stopped_majority(group, [10] * 16, confidence=0.93) == Decision("a", 0, 3, 30)
    # it may be wrong: a a a a, then twelve times b
    wrong = cast([0] * 4 + [1] * 12)
    assert early_stopped_majority(wrong, [1] * 16, confidence=0.95).answer == "a"
    assert early_stopped_majority(wrong, [1] * 16).answer == "b"


def test_lead_probability_by_hand() -> None:
    # 2 votes to 1: Beta(3, 2) has the density 12 p^2 (1 - p), whose integral is 4 p^3 - 3 p^4;
    # from 1/2 to 1 that is 1 - (4/8 - 3/16) = 11/16
    assert lead_probability(2, 1) == 11 / 16
    assert lead_probability(0, 0) == lead_probability(5, 5) == 0.5
    with pytest.raises(InputError, match="0 or more"):
        lead_probability(-1, 0)


@given(st.integers(0, 40), st.integers(0, 40))
def test_lead_probability_is_a_beta_tail(first: int, second: int) -> None:
    assert lead_probability(first, second) == pytest.approx(beta.sf(0.5, first + 1, second + 1), abs=1e-12)
    assert lead_probability(first, second) + lead_probability(second, first) == pytest.approx(1.0)


@given(st.lists(st.sampled_from([None, 0, 0, 1, 2]), max_size=12), st.sampled_from(["abstain", "first", "random"]))
def test_the_certain_rule_is_never_wrong(classes: list[int | None], tie: str) -> None:
    group = vote([None if c is None else str(c) for c in classes], classes, tie=tie, seed=3)
    stopped = early_stopped_majority(group, [1] * len(classes), tie=tie, seed=3)
    assert stopped.winner == group.winner
    assert stopped.answer == group.pseudo_label
    assert stopped.num_tokens == stopped.num_responses <= len(classes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: best_of(v, [1.0], [1, 1]), "2 responses but 1 scores"),
        (lambda v: best_of(v, [1.0, 2.0], [1]), "1 lengths"),
        (lambda v: best_of(v, [1.0, math.inf], [1, 1]), "finite"),
        (lambda v: first_finish(v, [1, 1], [True]), "1 flags"),
        (lambda v: first_finish(v, [1, 1], [True, True], 0), "1 or more"),
        (lambda v: early_stopped_majority(v, [1]), "1 lengths"),
        (lambda v: early_stopped_majority(v, [1, 1], confidence=0.5), "between 0.5 and 1"),
        (lambda v: early_stopped_majority(v, [1, 1], tie="frist"), 'did you mean "first"'),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(cast([0, 1]))
