"""Questions that share labels: against the formulas by loops, and by hand."""

from __future__ import annotations

import math
from random import Random

import pytest

from spinerl.answers import lame_labels, nearest, neighbor_labels
from spinerl.errors import InputError

LABELS = ("maybe", "no", "yes")


def made_up(seed, num):
    """(shares, similarities) of some questions."""
    random = Random(seed)
    shares = []
    for _ in range(num):
        counts = [random.randint(0, 4) for _ in LABELS]
        total = sum(counts) + random.randint(0, 2)  # some responses have no answer
        shares.append({a: n / total for a, n in zip(LABELS, counts, strict=True) if n} if total else {})
    similarities = [[1.0] * num for _ in range(num)]
    for i in range(num):
        for j in range(i):
            similarities[i][j] = similarities[j][i] = random.uniform(-0.3, 1.0)
    return shares, similarities


@pytest.mark.parametrize("seed", range(5))
def test_testnuc_by_loops(seed):
    shares, similarities = made_up(seed, 9)
    found = neighbor_labels(shares, nearest(similarities, 3))
    for i, label in enumerate(found):
        order = sorted((-similarities[i][j], j) for j in range(9) if j != i)[:3]
        sums = {}
        for a in LABELS:
            sums[a] = shares[i].get(a, 0.0)
            for negative, j in order:
                sums[a] += max(0.0, -negative) * shares[j].get(a, 0.0)
        assert sums[label] == pytest.approx(max(sums.values()))


@pytest.mark.parametrize("seed", range(5))
def test_lame_by_loops(seed):
    shares, similarities = made_up(seed, 7)
    near = nearest(similarities, 2)
    pairs = {(i, j) for i, own in enumerate(near) for j, _ in own}
    prior = []
    for own in shares:
        row = [own.get(a, 0.0) + 1e-3 for a in LABELS]
        prior.append([value / sum(row) for value in row])
    z = [list(row) for row in prior]
    for _ in range(100):
        new = []
        for i in range(7):
            row = []
            for a in range(3):
                pull = 0.0
                for j in range(7):
                    pull += (((i, j) in pairs) + ((j, i) in pairs)) / 2 * z[j][a]
                row.append(prior[i][a] * math.exp(pull))
            new.append([value / sum(row) for value in row])
        z = new
    for label, row in zip(lame_labels(shares, near), z, strict=True):
        assert row[LABELS.index(label)] == pytest.approx(max(row), abs=1e-5)


def test_neighbors_by_hand():
    shares = [{"yes": 0.5, "no": 0.25}, {"no": 1.0}, {}]
    near = [[(1, 0.5)], [(0, 0.5)], [(0, 0.2)]]
    # 0.25 + 0.5 for no against 0.5; 1 + 0.125; 0.2 * 0.5 for yes against 0.2 * 0.25
    assert neighbor_labels(shares, near) == ["no", "no", "yes"]
    assert neighbor_labels([{}], [[]]) == [None]
    assert lame_labels([{}], [[]]) == [None]
    assert neighbor_labels([{"b": 0.5, "a": 0.5}], [[]]) == ["a"], "equal: the alphabet"
    assert nearest([[1, 0.5, 0.5], [0.5, 1, 0], [0.5, 0, 1]], 1) == [[(1, 0.5)], [(0, 0.5)], [(0, 0.5)]]


def test_without_neighbors_every_question_keeps_its_vote():
    shares, _ = made_up(1, 8)
    single = [[] for _ in shares]
    for labels in (neighbor_labels(shares, single), lame_labels(shares, single)):
        for own, label in zip(shares, labels, strict=True):
            assert not own or own[label] == max(own.values())


@pytest.mark.parametrize("rule", [neighbor_labels, lame_labels])
def test_a_neighborhood_per_question(rule):
    with pytest.raises(InputError, match="one per question"):
        rule([{}], [])
