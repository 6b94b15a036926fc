"""One vote from the votes on several views of a question.  Plain functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from spinerl.answers.equivalence import Equivalence
from spinerl.answers.votes import break_tie, by_appearance, choose_class, spelling_of
from spinerl.types import Remembered, Vote

__all__ = ["harmonic_shares", "pool_votes"]


def harmonic_shares(shares: Sequence[Sequence[float]]) -> list[float]:
    """Of each class the harmonic mean of its shares in the views, k / sum_v (1 / p_v); 0.0 where one of them is 0.

    Args: `shares`, of each view a share per class.
    Source: Self-Harmony (arXiv 2511.01191), 2 p0 p1 / (p0 + p1); of more than two views, ours.

    >>> harmonic_shares([[0.5, 0.25], [0.25, 0.0]])
    [0.3333333333333333, 0.0]
    """
    return [
        0.0 if min(own) <= 0.0 else len(own) / math.fsum(1.0 / share for share in own)
        for own in zip(*shares, strict=True)
    ]


def pool_votes(
    votes: Sequence[Vote],
    weights: Sequence[Sequence[float]],
    kind: str,
    equivalence: Equivalence,
    *,
    pool: Literal["sum", "harmonic"] = "sum",
    tie: str = "abstain",
    min_majority_frac: float = 0.0,
    min_margin: float = 0.0,
    seed: int = 0,
) -> tuple[Vote, ...]:
    """The votes on a question's views, each with the counts, winner and label of all of them.

    sum: counts are the weights of all responses to all views.  harmonic: with p_v(c) the share of class c in the weight
    of all responses to view v (those that abstained included), counts are the weight of all responses times
    `harmonic_shares`: an answer that a view never gives counts nothing.  Rules are those of `vote`, shares of the
    weight of all responses.

    Args:
        weights: what each response's vote weighs, by view.
        kind: how the answers are read.

    Returns: a vote per view: its own answers, their classes among all views' (numbered by first appearance), and
    `memory` with what is counted besides its own responses.  Source: Self-Harmony (arXiv 2511.01191).
    """
    answers = [answer for one in votes for answer in one.answers]
    flat = [weight for own in weights for weight in own]
    classes = equivalence.classes(answers, kind)
    _, renumbered, members = by_appearance(classes)
    ends = [0]
    for one in votes:
        ends.append(ends[-1] + len(one.answers))
    views = [range(start, end) for start, end in pairwise(ends)]
    total = math.fsum(flat)
    if pool == "sum":
        counts = [math.fsum(flat[i] for i in group) for group in members]
    else:
        shares = []
        for view in views:
            own = math.fsum(flat[i] for i in view)
            held = [math.fsum(flat[i] for i in group if i in view) for group in members]
            shares.append([count / own if own > 0 else 0.0 for count in held])
        counts = [total * share for share in harmonic_shares(shares)]

    def label_of(number: int) -> str:
        return spelling_of(members[number], answers, flat)

    winner = choose_class(
        counts,
        total,
        lambda tied: break_tie(tied, label_of, tie, seed),
        min_majority_frac=min_majority_frac,
        min_margin=min_margin,
    )
    label = None if winner is None else label_of(winner)
    shown = max(counts, default=0.0) if winner is None else counts[winner]
    frac = shown / total if total > 0 else 0.0
    labels = tuple(map(label_of, range(len(members))))
    abstained = math.fsum(weight for weight, c in zip(flat, renumbered, strict=True) if c is None)
    return tuple(
        Vote(
            one.answers,
            tuple(renumbered[i] for i in view),
            tuple(counts),
            winner,
            label,
            frac,
            Remembered(tuple(flat[i] for i in view), abstained, total, None, labels),
            one.readings,
        )
        for one, view in zip(votes, views, strict=True)
    )
