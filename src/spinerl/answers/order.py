"""In which order questions are adapted to, as far as their votes tell."""

from __future__ import annotations

from collections.abc import Sequence

from spinerl.types import Vote

__all__ = ["easy_to_hard"]


def easy_to_hard(votes: Sequence[Vote]) -> tuple[int, ...]:
    """The questions' places, from the largest majority fraction to the smallest.

    A question on which the responses agree is taken to be easy.  Equal fractions keep the given order, so that a
    shuffled list stays shuffled inside them; a question without answers comes last.
    Returns: a permutation of 0 .. len(votes) - 1.  Source: ours; the fraction is the vote's `majority_frac`, from
    responses of the model before adaptation.

    >>> hard, easy = Vote(("4", "5"), (0, 1), (1.0, 1.0), None, None, 0.5), Vote(("4",), (0,), (1.0,), 0, "4", 1.0)
    >>> easy_to_hard([hard, easy])
    (1, 0)
    """
    return tuple(sorted(range(len(votes)), key=lambda place: -votes[place].majority_frac))
