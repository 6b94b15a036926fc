import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinerl.stats import (
    grouped_difference,
    grouped_mean,
    mean_interval,
    paired_difference,
    pass_at_k,
    roc_area,
    share_interval,
    spread_interval,
    two_level_interval,
)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_equals_brute_force(case):
    n, c, k = case
    responses = [True] * c + [False] * (n - c)
    draws = list(itertools.combinations(responses, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_pass_at_one_is_the_mean():
    assert pass_at_k(16, 5, 1) == pytest.approx(5 / 16)
    with pytest.raises(ValueError, match="k=5"):
        pass_at_k(4, 1, 5)


def test_roc_area_by_hand():
    # pairs: 3 > 2, 3 > 1, 1 < 2, 1 = 1
    assert roc_area([3, 1], [2, 1]) == pytest.approx(2.5 / 4)
    assert roc_area([2, 3], [0, 1]) == 1.0
    assert roc_area([1], []) is roc_area([], [1]) is None


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_the_sides_of_a_roc_area_sum_to_one(a, b):
    one, other = roc_area(a, b), roc_area(b, a)
    assert one + other == pytest.approx(1)


def test_exact_interval_by_known_values():
    # 0 of n: upper edge 1 - (alpha / 2)^(1 / n)
    assert share_interval(0, 10) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))
    assert share_interval(10, 10) == pytest.approx((0.025 ** (1 / 10), 1.0))
    assert share_interval(0, 0) == (0.0, 1.0)


def test_mean_interval_holds_the_mean_and_shrinks():
    draw = random.Random(0)
    values = [draw.random() for _ in range(400)]
    low, high = mean_interval(values)
    assert low < sum(values) / 400 < high
    # standard error sqrt(1/12 / 400) = 0.0144: the interval is about 3.9 of them wide
    assert high - low == pytest.approx(3.92 * 0.0144, rel=0.15)
    assert mean_interval([0.0] * 50)[1] > 0, "no spread is not certainty"


def test_mcnemar_by_hand():
    # 3 questions only b has, 1 question only a has: two-sided binomial(4, 1/2) p = 2 * (1 + 4) / 16 = 0.625
    a, b = [1, 0, 0, 0, 1, 0], [0, 1, 1, 1, 1, 0]
    found = paired_difference(a, b)
    assert found.p_value == pytest.approx(0.625)
    assert found.difference == pytest.approx(2 / 6)
    assert found.low < found.difference < found.high
    assert "McNemar" in found.test


def test_no_difference_has_p_one():
    assert paired_difference([1, 0], [1, 0]).p_value == 1.0
    assert paired_difference([0.5, 0.25], [0.5, 0.25]).p_value == 1.0


def test_graded_values_by_permutation():
    draw = random.Random(1)
    a = [draw.random() for _ in range(60)]
    clear = paired_difference(a, [x + 0.2 + 0.1 * draw.random() for x in a])
    none = paired_difference(a, [x + 0.1 * (draw.random() - 0.5) for x in a])
    assert clear.p_value < 0.001 < none.p_value
    assert clear.low > 0
    assert "permutation" in clear.test


def test_refuses_unpaired_values():
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([1], [1, 0])


def test_grouped_figures_weigh_groups_the_same():
    draw = random.Random(2)
    small, large = [1.0] * 3 + [0.0], [float(draw.random() < 0.25) for _ in range(200)]
    mean, low, high = grouped_mean([small, large])
    assert mean == pytest.approx((0.75 + sum(large) / 200) / 2)
    assert low < mean < high
    # the standard error is that of the small group, halved: sqrt(0.75 * 0.25 / 4) / 2 = 0.108, a little more with both
    assert (high - low) / 3.92 == pytest.approx(0.11, rel=0.2)


def test_one_group_is_as_before():
    assert grouped_mean([[1.0, 1.0, 0.0]])[1:] == share_interval(2, 3)
    draw = random.Random(3)
    a = [draw.random() for _ in range(80)]
    b = [x + 0.1 * draw.random() for x in a]
    one, other = paired_difference(a, b), grouped_difference([a], [b])
    assert other.difference == pytest.approx(one.difference)
    assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=0.003)
    binary = grouped_difference([[1, 0, 0, 0, 1, 0]], [[0, 1, 1, 1, 1, 0]])
    assert (binary.p_value, binary.test) == (pytest.approx(0.625), "exact McNemar test")


def test_grouped_differences_by_hand():
    found = grouped_difference([[0, 0], [1, 1, 1, 1]], [[1, 1], [1, 1, 1, 0]])
    assert found.difference == pytest.approx((1 - 0.25) / 2)
    assert found.num == 6
    # changes 1, 1 | 0, 0, 0, -1: the mean of means with random signs is (+-0.5 +-0.5) / 2 +- 0.125, at least 0.375
    # in size unless the first two signs differ: 1/2
    assert found.p_value == pytest.approx(0.5, abs=0.02)
    # resampled: the first group always 1; the second's mean runs from 0 to about -0.75
    assert found.high == 0.5
    # (-k / 4 with k ~ Binomial(4, 1/4): P(k >= 3) = 13/256 and P(k = 4) = 1/256 lie on both sides of 2.5 %)
    assert found.low == pytest.approx(0.125)
    same = grouped_difference([[0.5, 0.5]], [[0.7, 0.7]])
    assert (same.low, same.high) == pytest.approx((0.2, 0.2))
    for bad in (([], []), ([[]], [[]]), ([[1]], [[1, 2]])):
        with pytest.raises(ValueError, match="need"):
            grouped_difference(*bad)


def test_spread_over_seeds_by_hand():
    # mean 0.2, deviation 0.1, t(2) at 97.5 % is 4.303: 0.2 -+ 4.303 * 0.1 / sqrt(3)
    low, high = spread_interval([0.1, 0.2, 0.3])
    assert (low, high) == pytest.approx((0.2 - 0.24843, 0.2 + 0.24843), abs=1e-4)
    assert spread_interval([0.3]) is None


def test_two_levels_by_hand_and_against_loops():
    same = [[0.0, 1.0, 1.0, 0.0]] * 3
    low, high = two_level_interval([same])
    one_level = grouped_mean([same[0]])  # seeds that are alike add nothing
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4, 9))
    found = two_level_interval([table.tolist(), (table + 1).tolist()], 0.9)
    drawn = []
    for _ in range(4000):
        means = []
        for one in (table, table + 1):
            seeds, questions = rng.integers(0, 4, 4), rng.integers(0, 9, 9)
            means.append(np.mean([[one[s, q] for q in questions] for s in seeds]))
        drawn.append(np.mean(means))
    assert found == pytest.approx(tuple(np.quantile(drawn, [0.05, 0.95])), abs=0.03)
    assert (low, high) == pytest.approx((0.0, 1.0))
    assert one_level[0] == 0.5
    assert two_level_interval([[[0.5, 1.0]]]) is None
    for bad in ([], [[]], [[[]]]):
        with pytest.raises(ValueError, match="needed"):
            two_level_interval(bad)
