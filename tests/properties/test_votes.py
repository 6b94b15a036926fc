"""Properties of votes, rewards and equivalence classes over random groups."""
# ruff: noqa: E501  (a table)

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from spinerl.answers import (
    Equivalence,
    frequency_reward,
    leave_one_out_reward,
    majority_reward,
    vote,
)
from spinerl.answers.votes import TIES

# three classes with several spellings each; the number is the class
SPELLINGS = [("0.5", 0), ("1/2", 0), ("\\frac12", 0), ("7", 1), ("7.0", 1), ("x", 2), (None, None)]

groups = st.lists(st.sampled_from(SPELLINGS), max_size=12)
ties = st.sampled_from(TIES)
fractions = st.sampled_from([0.0, 0.25, 0.5, 2 / 3, 1.0])


def _split(group: list[tuple[str | None, int | None]]) -> tuple[list[str | None], list[int | None]]:
    return [a for a, _ in group], [c for _, c in group]


@given(
    groups,
    st.randoms(use_true_random=False),
    st.sampled_from(["abstain", "random"]),
    fractions,
    st.integers(0, 3),
)
def test_the_vote_does_not_depend_on_the_order(
    group: list[tuple[str | None, int | None]], rng: random.Random, tie: str, frac: float, seed: int
) -> None:
    shuffled = list(group)
    rng.shuffle(shuffled)
    one = vote(*_split(group), tie=tie, min_majority_frac=frac, seed=seed)
    two = vote(*_split(shuffled), tie=tie, min_majority_frac=frac, seed=seed)
    assert one.pseudo_label == two.pseudo_label
    assert one.majority_frac == two.majority_frac
    assert sorted(one.counts) == sorted(two.counts)


@given(groups, ties, fractions)
def test_abstainers_never_win_and_are_never_rewarded(
    group: list[tuple[str | None, int | None]], tie: str, frac: float
) -> None:
    answers, classes = _split(group)
    result = vote(answers, classes, tie=tie, min_majority_frac=frac)
    assert result.pseudo_label is None or result.pseudo_label in [a for a in answers if a is not None]
    for reward in (majority_reward(result), leave_one_out_reward(result, tie=tie), frequency_reward(result)):
        assert len(reward) == len(answers)
        assert all(r == 0.0 for r, c in zip(reward, classes, strict=True) if c is None)


@given(groups, ties, fractions, st.integers(0, 3))
def test_leave_one_out_equals_a_vote_without_the_response(
    group: list[tuple[str | None, int | None]], tie: str, frac: float, seed: int
) -> None:
    answers, classes = _split(group)
    expected = []
    for i, own in enumerate(classes):
        others = vote(
            answers[:i] + answers[i + 1 :],
            classes[:i] + classes[i + 1 :],
            tie=tie,
            min_majority_frac=frac,
            seed=seed,
        )
        winners = {c for a, c in group if a is not None and a == others.pseudo_label}
        expected.append(float(own is not None and winners == {own}))
    result = vote(answers, classes)
    assert leave_one_out_reward(result, tie=tie, min_majority_frac=frac, seed=seed) == tuple(expected)


@given(groups)
def test_frequencies_of_the_voters_are_the_class_shares(group: list[tuple[str | None, int | None]]) -> None:
    answers, classes = _split(group)
    rewards = frequency_reward(vote(answers, classes))
    for reward, own in zip(rewards, classes, strict=True):
        share = 0.0 if own is None else sum(c == own for c in classes) / len(classes)
        assert abs(reward - share) < 1e-12


POOL = [
    "1/2", "0.5", r"\frac12", "50", r"50\%", "x+1", "1+x", "x<2", "2>x", r"(-\infty,2)", r"\{1,2\}", "2,1", "(1,2)", "B", "(B)",
    "None", "", None, r"\int_0^1 x dx", r"\sum_{k=1}^{3} k", "6", r"x \geq 1", r"[1,\infty)", "east", r"\text{East}",
]  # fmt: skip

shared = Equivalence(cpu_s=5.0, budget_s=60.0)


def teardown_module() -> None:
    shared.close()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(POOL), max_size=10), st.randoms(use_true_random=False))
def test_classes_are_an_equivalence_relation(answers: list[str | None], rng: random.Random) -> None:
    classes = shared.classes(answers)
    assert len(classes) == len(answers)
    seen = [c for c in classes if c is not None]
    assert list(dict.fromkeys(seen)) == list(range(len(set(seen))))  # numbered by first appearance
    by_answer: dict[str | None, int | None] = {}
    for answer, number in zip(answers, classes, strict=True):
        assert by_answer.setdefault(answer, number) == number  # reflexive: equal strings, equal classes
    order = list(range(len(answers)))
    rng.shuffle(order)
    shuffled = shared.classes([answers[i] for i in order])
    for i, a in enumerate(order):  # independent of the order; symmetry and transitivity are those of "="
        for j, b in enumerate(order):
            assert (classes[a] == classes[b]) == (shuffled[i] == shuffled[j])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(POOL), st.sampled_from(POOL))
def test_equivalent_is_symmetric_and_what_classes_says(a: str | None, b: str | None) -> None:
    first, second = shared.classes([a, b])
    assert shared.equivalent(a, b) == shared.equivalent(b, a) == (first is not None and first == second)
