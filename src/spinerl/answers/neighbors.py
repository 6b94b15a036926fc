"""Questions that share labels decide together: each hears what was said to those most like it.  Plain functions.

Only where an answer means the same in every question, as in classification: yes or no, or one list of classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from spinerl.errors import InputError

__all__ = ["lame_labels", "nearest", "neighbor_labels"]

Neighbors = Sequence[Sequence[tuple[int, float]]]
"""For each question, the questions most like it, each with its similarity."""


def nearest(similarities: Sequence[Sequence[float]], num: int) -> list[list[tuple[int, float]]]:
    """The `num` other questions with the largest similarity to each, the largest first; equal: the earlier one.

    A similarity under 0 counts as 0.

    >>> nearest([[1.0, 0.9, -0.2], [0.9, 1.0, 0.3], [-0.2, 0.3, 1.0]], 1)
    [[(1, 0.9)], [(0, 0.9)], [(1, 0.3)]]
    """
    found = []
    for i, row in enumerate(similarities):
        others = sorted((j for j in range(len(row)) if j != i), key=lambda j: (-row[j], j))[:num]
        found.append([(j, max(0.0, row[j])) for j in others])
    return found


def neighbor_labels(shares: Sequence[Mapping[str, float]], neighbors: Neighbors) -> list[str | None]:
    """TestNUC: argmax_a p_i(a) + sum over the neighbors j of i of s_ij p_j(a).

    p_i(a) is the share of the responses to question i that say a, s_ij a similarity.  Equal sums go to the label with
    the larger own share, then to the earlier in the alphabet; None where neither a question nor its neighbors have one.

    Raises: `InputError` for other numbers of neighborhoods than of questions.
    Source: TestNUC (arXiv 2502.19163), its votes weighted by similarity; there each neighbor has one greedy answer.

    >>> neighbor_labels([{"yes": 0.6, "no": 0.4}, {"no": 1.0}], [[(1, 0.9)], [(0, 0.9)]])
    ['no', 'no']
    """
    _check(shares, neighbors)
    found: list[str | None] = []
    for own, near in zip(shares, neighbors, strict=True):
        sums = dict(own)
        for j, similarity in near:
            for label, share in shares[j].items():
                sums[label] = sums.get(label, 0.0) + similarity * share
        found.append(_best(sums, own))
    return found


def lame_labels(
    shares: Sequence[Mapping[str, float]], neighbors: Neighbors, *, rounds: int = 100, floor: float = 1e-3
) -> list[str | None]:
    """LAME: the labels of the distributions z that stay near the shares p and near those of their neighbors.

    z_i(a) proportional to p_i(a) exp(sum_j w_ij z_j(a)), all i at once, from z = p, until no z moves by 1e-6 or more,
    or `rounds` times.  w_ij = (1[j near i] + 1[i near j]) / 2: which questions are neighbors counts, not how similar.
    p is raised by `floor` for every label and scaled to 1, so that a label no response gave can still win.

    Raises: `InputError` for other numbers of neighborhoods than of questions.
    Source: LAME (arXiv 2201.05718) with k-nearest-neighbor affinities, vote shares in place of a classifier's
    probabilities; the floor is ours.

    >>> lame_labels([{"yes": 0.6, "no": 0.4}, {"no": 1.0}, {"no": 1.0}], [[(1, 1.0), (2, 1.0)], [(0, 1.0)], [(0, 1.0)]])
    ['no', 'no', 'no']
    """
    _check(shares, neighbors)
    labels = sorted({label for own in shares for label in own})
    if not labels:
        return [None] * len(shares)
    prior = [[own.get(label, 0.0) + floor for label in labels] for own in shares]
    prior = [[value / math.fsum(row) for value in row] for row in prior]
    weights: list[dict[int, float]] = [{} for _ in shares]
    for i, near in enumerate(neighbors):
        for j, _ in near:
            weights[i][j] = weights[i].get(j, 0.0) + 0.5
            weights[j][i] = weights[j].get(i, 0.0) + 0.5
    z = prior
    for _ in range(rounds):
        new = []
        for row, near in zip(prior, weights, strict=True):
            pulled = [p * math.exp(sum(w * z[j][a] for j, w in near.items())) for a, p in enumerate(row)]
            total = math.fsum(pulled)
            new.append([value / total for value in pulled])
        moved = max(abs(x - y) for a, b in zip(z, new, strict=True) for x, y in zip(a, b, strict=True))
        z = new
        if moved < 1e-6:
            break
    return [_best(dict(zip(labels, row, strict=True)), own) for row, own in zip(z, shares, strict=True)]


def _best(sums: Mapping[str, float], own: Mapping[str, float]) -> str | None:
    if not sums:
        return None
    return min(sums, key=lambda label: (-round(sums[label], 12), -own.get(label, 0.0), label))


def _check(shares: Sequence[object], neighbors: Sequence[object]) -> None:
    if len(shares) != len(neighbors):
        raise InputError(f"{len(shares)} questions but {len(neighbors)} neighborhoods; give one per question")
