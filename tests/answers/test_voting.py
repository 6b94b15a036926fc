"""Votes, rewards and label metrics on cases small enough to count on one's fingers."""

from __future__ import annotations

import math

import pytest

from spinerl.answers import (
    REWARDS,
    frequency_reward,
    leave_one_out_reward,
    majority_reward,
    vote,
    vote_metrics,
)
from spinerl.errors import InputError


def test_the_example_of_the_record() -> None:
    result = vote(["12", "7", "12", None], [0, 1, 0, None])
    assert result.classes == (0, 1, 0, None)
    assert result.counts == (2.0, 1.0)
    assert (result.winner, result.pseudo_label, result.majority_frac) == (0, "12", 0.5)


def test_equivalent_spellings_pool_their_votes() -> None:
    # as strings "3" has 2 of 5 and would win; as classes one half has 3
    result = vote(["3", "0.5", "3", "1/2", "0.5"], [0, 1, 0, 1, 1])
    assert (result.winner, result.pseudo_label) == (1, "0.5")


def test_the_label_is_the_most_frequent_then_shortest_then_first_spelling() -> None:
    assert vote(["1/2", "0.5", "0.5"], [0, 0, 0]).pseudo_label == "0.5"
    assert vote(["0.50", "1/2"], [0, 0]).pseudo_label == "1/2"
    assert vote(["1/2", "0.5"], [0, 0]).pseudo_label == "0.5"


def test_no_one_voted() -> None:
    result = vote([None, None], [None, None])
    assert (result.winner, result.pseudo_label, result.majority_frac, result.counts) == (None, None, 0.0, ())
    assert majority_reward(result) == leave_one_out_reward(result) == frequency_reward(result) == (0.0, 0.0)


def test_no_responses() -> None:
    result = vote([], [])
    assert (result.winner, result.majority_frac) == (None, 0.0)
    assert majority_reward(result) == leave_one_out_reward(result) == frequency_reward(result) == ()


def test_ties() -> None:
    answers, classes = ["b", "a", "a", "b", "c"], [7, 3, 3, 7, 5]
    assert vote(answers, classes).winner is None
    assert vote(answers, classes).majority_frac == 2 / 5
    assert vote(answers, classes, tie="first").pseudo_label == "b"
    drawn = {vote(answers, classes, tie="random", seed=seed).pseudo_label for seed in range(20)}
    assert drawn == {"a", "b"}
    swapped = vote(["a", "b", "b", "a", "c"], [0, 1, 1, 0, 2], tie="random", seed=3)
    assert swapped.pseudo_label == vote(answers, classes, tie="random", seed=3).pseudo_label


def test_a_small_majority_yields_no_label() -> None:
    answers, classes = ["a", "a", "b", None, None], [0, 0, 1, None, None]
    assert vote(answers, classes, min_majority_frac=0.4).winner == 0  # 2 of all 5 responses
    assert vote(answers, classes, min_majority_frac=0.41).winner is None
    assert vote(answers, classes, min_majority_frac=0.41).majority_frac == 0.4


def test_weights() -> None:
    result = vote(["a", "a", "b"], [0, 0, 1], weights=[1, 1, 3])
    assert (result.winner, result.counts, result.majority_frac) == (1, (2.0, 3.0), 0.6)
    assert frequency_reward(result) == pytest.approx((0.4, 0.4, 0.6))
    nothing = vote(["a"], [0], weights=[0])
    assert (nothing.winner, nothing.majority_frac) == (None, 0.0)
    assert vote(["a", "b"], [0, 1], weights=[0.1 + 0.2, 0.3]).winner is None  # equal but for rounding: a tie


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tie": "frist"}, 'did you mean "first"'),
        ({"min_majority_frac": 1.5}, "between 0 and 1"),
        ({"weights": [1.0]}, "one weight per answer"),
        ({"weights": [1.0, -1.0]}, "not negative"),
        ({"weights": [1.0, math.nan]}, "finite"),
    ],
)
def test_refused_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        vote(["a", "b"], [0, 1], **options)


def test_refused_records() -> None:
    with pytest.raises(InputError, match="one class per answer"):
        vote(["a"], [0, 1])
    with pytest.raises(InputError, match="must be None"):
        vote([None], [0])
    with pytest.raises(InputError, match="tie rule"):
        leave_one_out_reward(vote(["a"], [0]), tie="none")


def test_majority_reward() -> None:
    assert majority_reward(vote(["4", "4", "5", None], [0, 0, 1, None])) == (1.0, 1.0, 0.0, 0.0)
    assert majority_reward(vote(["4", "5"], [0, 1])) == (0.0, 0.0)


def test_leave_one_out_reward() -> None:
    # 4 4 4 5 5: without one of the 4s the rest is 2 against 2, a tie; without a 5 the 4s win, but 5 is not 4
    five = vote(["4", "4", "4", "5", "5"], [0, 0, 0, 1, 1])
    assert leave_one_out_reward(five) == (0.0,) * 5
    # "first" among the others: removing any 4 leaves a 4 in front
    assert leave_one_out_reward(five, tie="first") == (1.0, 1.0, 1.0, 0.0, 0.0)
    # 5 4 4 4 5: the first of the others is a 5 unless the leading 5 itself is left out
    assert leave_one_out_reward(vote(list("54445"), [0, 1, 1, 1, 0]), tie="first") == (0.0,) * 5
    four = vote(["4", "4", "4", "5"], [0, 0, 0, 1])
    assert leave_one_out_reward(four) == (1.0, 1.0, 1.0, 0.0)  # 2 of the 3 others
    assert leave_one_out_reward(four, min_majority_frac=0.7) == (0.0,) * 4
    assert leave_one_out_reward(vote(["4"], [0])) == (0.0,)
    assert leave_one_out_reward(vote(["4", None, "4"], [0, None, 0])) == (1.0, 0.0, 1.0)


def test_frequency_reward_pays_both_sides_of_a_tie() -> None:
    assert frequency_reward(vote(["4", "4", "5", "5"], [0, 0, 1, 1])) == (0.5,) * 4


def test_rewards_by_name() -> None:
    assert list(REWARDS) == ["majority", "leave-one-out", "frequency", "empo", "ttrv", "pairs"]
    for name, reward in REWARDS.items():
        expected = 0.0 if name == "pairs" else 1.0  # an answer that all gave has no other to be paired with
        assert reward(vote(["4", "4", "4"], [0, 0, 0])) == (expected,) * 3


def test_metrics() -> None:
    votes = [
        vote(["4", "4", "5", None], [0, 0, 1, None]),  # majority 1/2, abstained 1/4, entropy of (2/3, 1/3)
        vote(["1", "1"], [0, 0]),  # unanimous
        vote(["1", "2"], [0, 1]),  # a tie: no label, entropy log 2
        vote([None], [None]),
    ]
    entropy = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert vote_metrics(votes) == pytest.approx(
        {
            "label/majority_frac": (0.5 + 1 + 0.5 + 0) / 4,
            "label/abstained_frac": (0.25 + 0 + 0 + 1) / 4,
            "label/labelled_frac": 2 / 4,
            "label/num_classes": (2 + 1 + 2 + 0) / 4,
            "label/answer_entropy": (entropy + 0 + math.log(2) + 0) / 4,
            "label/unanimous_frac": 1 / 4,
        }
    )
    assert set(vote_metrics([]).values()) == {0.0}
