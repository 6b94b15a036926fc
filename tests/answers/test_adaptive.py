"""Decisions that weigh by confidence or sample as many as a question needs: by hand, and against brute force."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinerl.answers import Decision, early_exit, routed_sizes, share_stopped_majority, vote, weighted_majority
from spinerl.errors import InputError
from spinerl.types import Vote


def cast(classes: list[int | None]) -> Vote:
    return vote([None if c is None else "abcdef"[c] for c in classes], classes)


@st.composite
def groups(draw):
    """(classes by first appearance, weights in eighths, lengths) of up to 10 responses; sums of eighths are exact."""
    raw = draw(st.lists(st.sampled_from([None, 0, 0, 1, 2]), max_size=10))
    numbers: dict[int, int] = {}
    classes = [None if c is None else numbers.setdefault(c, len(numbers)) for c in raw]
    size = len(classes)
    weights = draw(st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=size, max_size=size))
    lengths = draw(st.lists(st.integers(1, 9), min_size=size, max_size=size))
    return classes, weights, lengths


def leader(classes: list[int | None], weights: list[float]) -> int | None:
    """The only class of the largest weight, by summing each one's; None if it weighs nothing or is tied."""
    sums = {c: sum(w for own, w in zip(classes, weights, strict=True) if own == c) for c in set(classes) - {None}}
    best = [c for c in sums if sums[c] == max(sums.values()) > 0]
    return best[0] if len(best) == 1 else None


def test_weighted_majority() -> None:
    # a has two votes of 0.3, b one of 0.7: 0.6 against 0.7
    group = cast([0, 0, 1, None])
    assert weighted_majority(group, [0.3, 0.3, 0.7, 9.0], [1, 2, 3, 4]) == Decision("b", 1, 4, 10)
    assert weighted_majority(group, [0.3, 0.5, 0.7, 9.0], [1, 2, 3, 4]) == Decision("a", 0, 4, 10)
    # 0.25 + 0.25 against 0.5: tied
    assert weighted_majority(group, [0.25, 0.25, 0.5, 0.0], [1, 2, 3, 4]) == Decision(None, None, 4, 10)
    assert weighted_majority(group, [0.25, 0.25, 0.5, 0.0], [1, 2, 3, 4], tie="first").answer == "a"
    assert weighted_majority(cast([0]), [0.0], [5]) == Decision(None, None, 1, 5)
    assert weighted_majority(cast([]), [], []) == Decision(None, None, 0, 0)


@given(groups())
def test_weighted_majority_is_the_heaviest_class(group) -> None:
    classes, weights, lengths = group
    found = weighted_majority(cast(classes), weights, lengths)
    assert (found.winner, found.num_tokens) == (leader(classes, weights), sum(lengths))
    plain = cast(classes)
    assert weighted_majority(plain, [1.0] * len(classes), lengths).winner == plain.winner


def test_stopped_at_a_share() -> None:
    # a a b a a: 2 of 3, 3 of 4, then 4 of 5 = 0.8
    assert share_stopped_majority(cast([0, 0, 1, 0, 0, 1, 1]), [10] * 7) == Decision("a", 0, 5, 50)
    # where one response is enough, the first decides
    assert share_stopped_majority(cast([0, 0, 1, 0, 0]), [10] * 5, least=1) == Decision("a", 0, 1, 10)
    # one without an answer is drawn too: a - a a a has 4 of 5
    assert share_stopped_majority(cast([0, None, 0, 0, 0, 1]), [1] * 6) == Decision("a", 0, 5, 5)
    # never 0.8: the majority of all
    assert share_stopped_majority(cast([0, 1, 1, 0, 1]), [1, 2, 3, 4, 5]) == Decision("b", 1, 5, 15)
    assert share_stopped_majority(cast([None] * 4), [2] * 4) == Decision(None, None, 4, 8)
    assert share_stopped_majority(cast([0, 0]), [2] * 2) == Decision("a", 0, 2, 4)
    assert share_stopped_majority(cast([]), []) == Decision(None, None, 0, 0)


def test_stopped_at_a_weighted_share() -> None:
    # b a a: the a's have 0.9 + 0.9 of 2.0 = 0.9 with b at 0.2, and 0.6 + 0.6 of 2.0 = 0.6 with b at 0.8
    group = cast([0, 1, 1, 1])
    assert share_stopped_majority(group, [10] * 4, weights=[0.2, 0.9, 0.9, 0.9]) == Decision("b", 1, 3, 30)
    # then 1.8 of 2.6 = 0.69: all four
    assert share_stopped_majority(group, [10] * 4, weights=[0.8, 0.6, 0.6, 0.6]) == Decision("b", 1, 4, 40)
    assert share_stopped_majority(cast([0] * 4), [1] * 4, weights=[0.0] * 4) == Decision(None, None, 4, 4)


@given(groups(), st.sampled_from([0.625, 0.75, 1.0]), st.integers(1, 4), st.booleans())
def test_stopped_at_the_first_prefix_with_such_a_share(group, share: float, least: int, weighted: bool) -> None:
    classes, weights, lengths = group
    weights = weights if weighted else [1.0] * len(classes)
    end = len(classes)
    for n in range(least, len(classes) + 1):
        first = leader(classes[:n], weights[:n])
        if first is not None:
            led = sum(w for c, w in zip(classes[:n], weights[:n], strict=True) if c == first)
            if led >= share * sum(weights[:n]):
                end = n
                break
    found = share_stopped_majority(
        cast(classes), lengths, share=share, weights=weights if weighted else None, least=least
    )
    assert found.winner == leader(classes[:end], weights[:end])
    assert (found.num_responses, found.num_tokens) == (end, sum(lengths[:end]))


def test_early_exit() -> None:
    group = cast([0, None, 1, 2])
    confidences, lengths = [0.4, 0.9, 0.6, 0.8], [1, 2, 3, 4]
    # the second has no answer, the third reaches 0.5
    assert early_exit(group, confidences, lengths, 0.5) == Decision("b", 1, 3, 6)
    assert early_exit(group, confidences, lengths, 0.4) == Decision("a", 0, 1, 1)
    # none with an answer reaches 0.9: the most confident, and all are paid for
    assert early_exit(group, confidences, lengths, 0.9) == Decision("c", 2, 4, 10)
    assert early_exit(cast([None]), [1.0], [7], 0.5) == Decision(None, None, 1, 7)
    assert early_exit(cast([]), [], [], 0.5) == Decision(None, None, 0, 0)


@given(groups(), st.integers(0, 9).map(lambda n: n / 8))
def test_early_exit_against_brute_force(group, threshold: float) -> None:
    classes, confidences, lengths = group
    found = early_exit(cast(classes), confidences, lengths, threshold)
    answered = [i for i, c in enumerate(classes) if c is not None]
    over = [i for i in answered if confidences[i] >= threshold]
    chosen = over[0] if over else max(answered, key=lambda i: (confidences[i], -i), default=None)
    assert found.winner == (None if chosen is None else classes[chosen])
    assert found.num_responses == (over[0] + 1 if over else len(classes))
    assert found.num_tokens == sum(lengths[: found.num_responses])


def test_routed_sizes() -> None:
    lengths = [[10] * 6, [10] * 6, [10] * 6]
    # two each are 60; of the 50 left the third, which agrees least, gets 10 first, then the second, and so on
    assert routed_sizes([1.0, 0.75, 0.5], lengths, 2, 110) == [2, 4, 5]
    # the response that reaches the total is the last: 60 + 30 < 95 <= 60 + 40
    assert routed_sizes([1.0, 0.75, 0.5], lengths, 2, 95) == [2, 4, 4]
    # no more than there are, and none for those that agree
    assert routed_sizes([1.0, 0.75, 0.5], lengths, 2, 10_000) == [2, 6, 6]
    # equal agreement: the earlier question
    assert routed_sizes([0.5, 0.5, 1.0], lengths, 2, 70) == [3, 2, 2]
    # the first few are sampled whatever the total
    assert routed_sizes([0.5, 0.5, 1.0], lengths, 2, 0) == [2, 2, 2]
    assert routed_sizes([0.0], [[3]], 2, 50) == [1]
    assert routed_sizes([], [], 2, 50) == []


@given(st.data())
def test_routing_against_brute_force(data) -> None:
    """A queue of (round, agreement, question) from which responses are taken until the tokens are spent."""
    num = data.draw(st.integers(0, 5))
    lengths = [data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6)) for _ in range(num)]
    agreements = [data.draw(st.sampled_from([0.0, 0.5, 0.75, 1.0])) for _ in range(num)]
    few, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 60))
    queue = sorted((j, agreements[i], i) for i in range(num) for j in range(few, len(lengths[i])) if agreements[i] < 1)
    sizes = [min(few, len(own)) for own in lengths]
    spent = sum(sum(own[:few]) for own in lengths)
    for j, _, i in queue:
        if spent >= tokens:
            break
        spent += lengths[i][j]
        sizes[i] += 1
    assert routed_sizes(agreements, lengths, few, tokens) == sizes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: weighted_majority(v, [1.0], [1, 1]), "1 weights"),
        (lambda v: weighted_majority(v, [1.0, -1.0], [1, 1]), "not negative"),
        (lambda v: weighted_majority(v, [1.0, math.nan], [1, 1]), "finite"),
        (lambda v: share_stopped_majority(v, [1]), "1 lengths"),
        (lambda v: share_stopped_majority(v, [1, 1], weights=[1.0]), "1 weights"),
        (lambda v: share_stopped_majority(v, [1, 1], weights=[1.0, math.inf]), "finite"),
        (lambda v: share_stopped_majority(v, [1, 1], share=0.5), "above 0.5"),
        (lambda v: share_stopped_majority(v, [1, 1], least=0), "1 or more"),
        (lambda v: early_exit(v, [1.0, math.nan], [1, 1], 0.5), "finite"),
        (lambda v: early_exit(v, [1.0], [1, 1], 0.5), "1 scores"),
        (lambda _: routed_sizes([1.0], [[1], [1]], 1, 5), "2 questions but 1 agreements"),
        (lambda _: routed_sizes([1.0], [[1]], 0, 5), "1 or more"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(cast([0, 1]))
