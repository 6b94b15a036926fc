"""The forecast of how many pseudo-labels are right, on votes whose truth is known."""

import random

import pytest

from spinerl.answers import vote
from spinerl.guard.forecast import forecast, reproducibility


def draw(num_questions, num_votes, chance_right, num_wrong, seed=0):
    """Votes in which class 0 is right and wrong answers are spread over `num_wrong` classes."""
    rng = random.Random(seed)
    votes = []
    for _ in range(num_questions):
        classes = [0 if rng.random() < chance_right else rng.randint(1, num_wrong) for _ in range(num_votes)]
        votes.append(vote([str(c) for c in classes], classes))
    return votes


def test_reproducibility_at_its_ends():
    assert reproducibility(vote(["1"] * 8, [0] * 8)) == 1.0
    assert reproducibility(vote([str(i) for i in range(8)], list(range(8)))) == 0.0
    assert reproducibility(vote([None] * 8, [None] * 8)) == 0.0


@pytest.mark.parametrize(("chance", "verdict"), [(0.7, "go"), (0.04, "no-go")])
def test_scattered_errors(chance, verdict):
    votes = draw(64, 16, chance, num_wrong=60)
    right = sum(one.pseudo_label == "0" for one in votes) / len(votes)
    found = forecast(votes, no_go=0.2, go=0.4)
    assert found.verdict == verdict
    assert found.label_accuracy_low - 0.05 <= right <= found.label_accuracy_high + 0.05
    assert found.label_accuracy_low <= found.label_accuracy <= found.label_accuracy_high
    assert (found.num_questions, found.num_votes) == (64, 16)


def test_no_readable_answers_is_a_no_go_for_another_reason():
    found = forecast([vote([None, None, "1", None], [None, None, 0, None])] * 4, 0.2, 0.4)
    assert found.verdict == "no-go"
    assert "answer.kind" in found.reason


def test_nothing_to_learn_where_all_agree():
    found = forecast([vote(["1"] * 8, [0] * 8)] * 10, 0.2, 0.4)
    assert found.verdict == "caution"
    assert "teaches nothing" in found.reason


def test_the_same_wrong_answer_again_and_again_deceives_it():
    """A limit that docs/guard.md names: nothing in the votes separates this from a model that is right."""
    votes = [vote(["7"] * 6 + ["1", "2"], [0] * 6 + [1, 2])] * 20
    assert forecast(votes, 0.2, 0.4).verdict == "go"
