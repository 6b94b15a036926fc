import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spinerl.answers import evol_reward, evol_sides, vote
from spinerl.maths import consensus_scores, nearest_first, novelty_scores, sift_order
from spinerl.maths.novelty import cosine_similarities

T = torch.tensor


def at(*degrees: float) -> torch.Tensor:
    """Unit vectors of the plane."""
    return T([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], dtype=torch.float64)


def test_cosines():
    found = cosine_similarities(T([[2.0, 0.0], [0.0, 0.0]]), T([[1.0, 0.0], [-3.0, 0.0], [0.0, 1.0]]))
    assert found.tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


def test_novelty_by_hand():
    # side 1: at 0, 60, 60 degrees; side 0: at 0
    # first: own side (1/2 + 1/2) / 2 = 1/2, maximum 1 (the copy on the other side): 1 - (1/2 + 1) / 2 = 1/4
    # second: own side (1/2 + 1) / 2 = 3/4, maximum 1: 1 - 7/8 = 1/8; third the same
    # fourth: by itself on its side, so the mean of all others (1 + 1/2 + 1/2) / 3 = 2/3, maximum 1: 1 - 5/6 = 1/6
    scores = novelty_scores(at(0, 60, 60, 0), T([1, 1, 1, 0]))
    assert scores.tolist() == pytest.approx([1 / 4, 1 / 8, 1 / 8, 1 / 6])


def test_consensus_by_hand():
    # at 0, 60 and 60 degrees: (1 + 1/2 + 1/2) / 3 and twice (1/2 + 1 + 1) / 3; lengths do not count
    lengths = T([[1.0], [5.0], [0.2]], dtype=torch.float64)
    assert consensus_scores(at(0, 60, 60) * lengths).tolist() == pytest.approx([2 / 3, 5 / 6, 5 / 6])
    # opposite directions count against each other, a vector of nothing agrees with none, not even itself
    assert consensus_scores(at(0, 180, 180)).tolist() == pytest.approx([-1 / 3, 1 / 3, 1 / 3])
    assert consensus_scores(T([[0.0, 0.0], [1.0, 0.0]])).tolist() == pytest.approx([0.0, 0.5])
    assert consensus_scores(at(40)).tolist() == pytest.approx([1.0])


@settings(deadline=None)
@given(st.lists(st.integers(0, 359), min_size=1, max_size=7))
def test_consensus_equals_the_definition(degrees):
    found = consensus_scores(at(*degrees)).tolist()
    for one, score in zip(degrees, found, strict=True):
        expected = sum(math.cos(math.radians(one - other)) for other in degrees) / len(degrees)
        assert score == pytest.approx(expected, abs=1e-9)


def test_opposite_directions_count_as_unlike_and_no_more():
    # cosine -1 counts as 0: both are as novel as can be
    assert novelty_scores(at(0, 180), T([1, 1])).tolist() == [1.0, 1.0]


def test_those_without_an_answer_take_no_part():
    # the third is a copy of the first, and is not seen
    assert novelty_scores(at(0, 90, 0), T([1, 1, -1])).tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert novelty_scores(at(0), T([1])).tolist() == [0.5]
    assert novelty_scores(at(0, 0), T([1, -1])).tolist() == [0.5, 0.0]
    assert novelty_scores(at(0), T([-1])).tolist() == [0.0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 350), st.sampled_from([1, 0, -1])), min_size=1, max_size=7))
def test_novelty_equals_the_definition(group):
    embeddings, sides = at(*[d for d, _ in group]), [s for _, s in group]
    scores = novelty_scores(embeddings, T(sides)).tolist()
    for i, score in enumerate(scores):
        others = [j for j in range(len(group)) if j != i and sides[j] >= 0]
        if sides[i] < 0:
            expected = 0.0
        elif not others:
            expected = 0.5
        else:
            near = {j: max(0.0, float(embeddings[i] @ embeddings[j])) for j in others}
            own = [near[j] for j in others if sides[j] == sides[i]] or list(near.values())
            expected = 1 - (sum(own) / len(own) + max(near.values())) / 2
        assert score == pytest.approx(expected, abs=1e-9)


def test_from_embeddings_to_rewards():
    # three agree, two of them alike: the third is the most novel of the majority
    outcome = vote(["4", "4", "4", "5"], [0, 0, 0, 1])
    scores = novelty_scores(at(0, 0, 40, 90), T(evol_sides(outcome)))
    # means on the side (1 + c) / 2, (1 + c) / 2, c; maxima 1, 1, max(c, cos 50) = c, with c = cos 40 = 0.766
    assert evol_reward(outcome, scores.tolist()) == pytest.approx((0.5, 0.5, 1.0, -0.5))


def test_nearest_first_by_hand():
    questions, targets = at(90, 10, 45, 10), at(0, 60)
    # cosines to the nearest target: 30, 10, 15 and 10 degrees away
    assert nearest_first(questions, targets).tolist() == [1, 3, 2, 0]
    # mean cosines: (0 + 0.866) / 2 = 0.433, (0.985 + 0.643) / 2 = 0.814, (0.707 + 0.966) / 2 = 0.837
    assert nearest_first(questions, targets, "mean").tolist() == [2, 1, 3, 0]
    assert nearest_first(questions[:0], targets).tolist() == []
    with pytest.raises(ValueError, match="no target questions"):
        nearest_first(questions, targets[:0])


@settings(deadline=None)
@given(st.lists(st.integers(0, 350), max_size=8), st.integers(0, 350), st.sampled_from(["nearest", "mean"]))
def test_nearest_first_is_a_permutation_and_sorted(degrees, target, to):
    questions, targets = at(*degrees).view(-1, 2), at(target)
    order = nearest_first(questions, targets, to)
    assert sorted(order.tolist()) == list(range(len(degrees)))
    near = cosine_similarities(questions, targets)[order, 0]
    assert (near.diff() <= 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_sift_leaves_the_least_variance_at_the_targets(seed):
    """Each pick against all others, by the inverse of the picked ones' kernel matrix."""
    draw = torch.Generator().manual_seed(seed)
    questions = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    questions[5] = 2.0 * questions[1]  # a copy, but for its length
    targets = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    x, a = (torch.nn.functional.normalize(v, dim=1) for v in (questions, targets))

    def left(picked):
        k = x[picked] @ x[picked].T + 0.1 * torch.eye(len(picked), dtype=torch.float64)
        cross = a @ x[picked].T
        return (1.0 - (cross @ torch.linalg.inv(k) * cross).sum(dim=1)).sum().item()

    order = sift_order(questions, targets).tolist()
    assert sorted(order) == list(range(9))
    for i, pick in enumerate(order):
        rest = {other: left([*order[:i], other]) for other in range(9) if other not in order[:i]}
        assert rest[pick] == pytest.approx(min(rest.values()), abs=1e-9)
    assert order.index(1) < order.index(5)


def test_sift_refuses_no_targets_and_no_noise():
    with pytest.raises(ValueError, match="no target"):
        sift_order(torch.ones(2, 2), torch.ones(0, 2))
    with pytest.raises(ValueError, match="noise"):
        sift_order(torch.ones(2, 2), torch.ones(1, 2), 0.0)
    assert sift_order(torch.ones(0, 2), torch.ones(1, 2)).tolist() == []
