"""Signals without labels, counted by hand."""

import pytest

from spinerl.answers import Equivalence, vote
from spinerl.guard.signals import PERTURBATIONS, certainty_auc, concentration, halves_agree, kept_labels, winner_of


def count(*classes):
    return vote([None if c is None else str(c) for c in classes], classes)


def test_perturbations_hold_the_question():
    for name, perturb in PERTURBATIONS.items():
        assert "2 + 3" in perturb("2 + 3"), name
    assert PERTURBATIONS["none"]("x") == "x" != PERTURBATIONS["reread"]("x")


def test_concentration_counts_pairs():
    assert concentration([0, 0, 1, 1]) == pytest.approx(2 * 2 / 12)
    assert concentration([0, 0, 0]) == 1.0
    assert concentration([None, None, None]) == 0.0  # no answer is not the same answer
    assert concentration([0]) == concentration([]) == 0.0


def test_halves_are_every_second_response():
    assert halves_agree(count(0, 0, 0, 0))
    assert not halves_agree(count(0, 1, 0, 1))  # 0 wins one half, 1 the other
    assert not halves_agree(count(0, 0, 1, 0))  # 0 and 1 tie in the first half
    assert halves_agree(count(0, 0, 1, None, 0, 0))


def test_a_tie_has_no_winner():
    assert winner_of([0, 1]) is None
    assert winner_of([None]) is None
    assert winner_of([1, None, 1, 0]) == 1


def test_kept_labels_are_those_of_questions_met_before():
    first = {"a": "12", "b": "7", "c": None}
    with Equivalence() as equivalence:
        assert kept_labels(["a", "b", "new"], ["12.0", "8", "1"], first, equivalence) == 0.5
        assert kept_labels(["c"], [None], first, equivalence) == 0.0  # it had none and has none: nothing was kept
        assert kept_labels(["new"], ["1"], first, equivalence) is None


def test_certainty_auc_counts_pairs():
    one = count(0, 0, 1, None)
    assert certainty_auc(one, [-1.0, -3.0, -2.0, -4.0]) == pytest.approx(3 / 4)  # of the four pairs one is lost
    assert certainty_auc(one, [-1.0] * 4) == 0.5
    assert certainty_auc(count(0, 0), [-1.0, -2.0]) is None
