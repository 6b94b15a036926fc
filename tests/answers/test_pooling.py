"""One vote on all views of a question, against counting by loops."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinerl.answers import (
    REWARDS,
    Equivalence,
    frequency_reward,
    harmonic_shares,
    leave_one_out_reward,
    majority_reward,
    pool_votes,
    vote,
)

ANSWERS = st.lists(st.sampled_from(["3", "4", "5", "6", None]), min_size=3, max_size=3)


@pytest.fixture(scope="module")
def equivalence():
    with Equivalence() as one:
        yield one


def pooled(views, equivalence, pool, **rules):
    votes = [vote(own, equivalence.classes(own, "number")) for own in views]
    return pool_votes(votes, [[1.0] * len(own) for own in views], "number", equivalence, pool=pool, **rules)


@given(st.lists(ANSWERS, min_size=1, max_size=3))
def test_added_up_it_is_one_vote_over_all_responses(equivalence, views):
    together = [answer for own in views for answer in own]
    whole = vote(together, equivalence.classes(together, "number"))
    found = pooled(views, equivalence, "sum")
    for one, own in zip(found, views, strict=True):
        assert one.answers == tuple(own)
        assert (one.counts, one.winner, one.pseudo_label) == (whole.counts, whole.winner, whole.pseudo_label)
        assert one.majority_frac == pytest.approx(whole.majority_frac)
    assert tuple(c for one in found for c in one.classes) == whole.classes
    assert [r for one in found for r in majority_reward(one)] == list(majority_reward(whole))
    assert [r for one in found for r in frequency_reward(one)] == pytest.approx(list(frequency_reward(whole)))
    assert [r for one in found for r in leave_one_out_reward(one)] == list(leave_one_out_reward(whole))
    for name in ("empo", "ttrv"):
        assert [r for one in found for r in REWARDS[name](one)] == pytest.approx(list(REWARDS[name](whole))), name


@given(st.lists(ANSWERS, min_size=2, max_size=3))
def test_the_harmonic_label_is_that_of_the_formula(equivalence, views):
    shares = [{a: Fraction(own.count(a), 3) for a in own if a is not None} for own in views]
    common = set.intersection(*(set(own) for own in shares))
    means = {a: len(views) / sum(1 / own[a] for own in shares) for a in common}
    best = max(means.values(), default=None)
    leaders = [a for a in means if means[a] == best]
    label = leaders[0] if len(leaders) == 1 else None
    for one, own in zip(pooled(views, equivalence, "harmonic"), views, strict=True):
        assert one.pseudo_label == label
        assert one.majority_frac == pytest.approx(float(best or 0))
        assert majority_reward(one) == tuple(float(label is not None and a == label) for a in own)
        assert frequency_reward(one) == pytest.approx([float(means.get(a, 0)) for a in own])


def test_by_hand(equivalence):
    """Shares 3/4 and 1/4 in the question, 1/4 and 3/4 in its view: a tie, which the sum has too.  With 1/2 for the
    second answer in the question, 2 * 1/2 * 3/4 / (5/4) = 0.6 against 2 * 1/2 * 1/4 / (3/4) = 1/3."""
    tie = pooled([["1", "1", "1", "2"], ["2", "2", "2", "1"]], equivalence, "harmonic")
    assert (tie[0].winner, tie[0].majority_frac) == (None, 0.375)
    views = [["1", "1", "2", "2"], ["2", "2.0", "2", "1"]]
    first, second = pooled(views, equivalence, "harmonic")
    assert (first.pseudo_label, first.majority_frac) == ("2", pytest.approx(0.6))
    assert second.counts == pytest.approx((8 / 3, 4.8))
    assert second.classes == (1, 1, 1, 0)
    strict = pooled(views, equivalence, "harmonic", min_majority_frac=0.61)
    assert strict[0].winner is None
    assert harmonic_shares([[0.2, 0.5], [0.8, 0.0]]) == pytest.approx([0.32, 0.0])


def test_weights_and_abstentions(equivalence):
    """Views of unlike weight: shares are of a view's own weight, abstainers' included."""
    views = [["1", "2", None], ["2", "1", "1"]]
    votes = [vote(own, equivalence.classes(own, "number")) for own in views]
    weights = [[1.0, 2.0, 1.0], [30.0, 5.0, 5.0]]
    one = pool_votes(votes, weights, "number", equivalence, pool="harmonic")[0]
    harmonic = [2 * p * q / (p + q) for p, q in [(0.25, 0.25), (0.5, 0.75)]]
    assert one.counts == pytest.approx([44 * share for share in harmonic])
    assert one.pseudo_label == "2"
    assert (one.memory.weights, one.memory.abstained, one.memory.total) == ((1.0, 2.0, 1.0), 1.0, 44.0)
    added = pool_votes(votes, weights, "number", equivalence)[1]
    assert Counter(dict(enumerate(added.counts))) == Counter({0: 11.0, 1: 32.0})
