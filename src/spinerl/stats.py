"""Shares, means and paired differences with their intervals.  No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap, permutation_test
from scipy.stats import t as student

__all__ = [
    "Difference",
    "grouped_difference",
    "grouped_mean",
    "mean_interval",
    "paired_difference",
    "pass_at_k",
    "roc_area",
    "share_interval",
    "spread_interval",
    "two_level_interval",
]

_RESAMPLES = 9999


def share_interval(num_right: int, num: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of a share; (0, 1) for nothing seen.

    >>> [round(edge, 3) for edge in share_interval(5, 10)]
    [0.187, 0.813]
    """
    if num == 0:
        return 0.0, 1.0
    interval = binomtest(num_right, num).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean over questions, for values in [0, 1].

    Where all values are equal resampling shows no spread, which is no certainty: then the exact interval of so
    many questions all agreeing is given, as for a share.
    """
    if len(set(values)) < 2:
        return share_interval(round(sum(values)), len(values), confidence)
    return _bootstrap_mean(values, confidence, seed)


def pass_at_k(num: int, num_right: int, k: int) -> float:
    """The chance that k of `num` responses sampled without replacement hold a right one: 1 - C(n-c, k) / C(n, k).

    Unbiased for k fresh responses.  Source: Chen et al., arXiv 2107.03374, equation 1.  Raises ValueError for
    k outside 1..num.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= num:
        raise ValueError(f"k={k}: allowed is 1 <= k <= {num}, the number of responses")
    return 1.0 - math.comb(num - num_right, k) / math.comb(num, k)


def roc_area(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """The chance that a positive has the higher value than a negative: the area under the ROC.

    0.5 says nothing; ties count half.  None where one side is empty.

    >>> roc_area([3.0, 1.0], [2.0, 1.0])  # of four pairs two are won, one is a tie
    0.625
    """
    if not positives or not negatives:
        return None
    wins = sum((a > b) + 0.5 * (a == b) for a in positives for b in negatives)
    return wins / (len(positives) * len(negatives))


@dataclass(frozen=True)
class Difference:
    """A paired difference b - a over the same questions.

    100 questions of which a has 40 right, b has 55: `difference=0.15` with its bootstrap interval `low`, `high`,
    and `p_value` of the hypothesis that there is none (`test` says by which test).
    """

    num: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_value: float
    test: str


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Difference:
    """How much better b is than a, question by question.

    Interval: percentile bootstrap over questions of the mean difference.  p-value: for right-or-wrong values the
    exact McNemar test (a binomial test on the questions where they differ), else a sign-flip permutation test.
    No difference anywhere has p = 1.  Raises ValueError for unequal or empty sequences.

    >>> paired_difference([0, 0, 1, 0], [1, 0, 1, 1]).p_value
    0.5
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} and {len(b)} values: the same questions, at least one, are needed")
    changes = [float(y) - float(x) for x, y in zip(a, b, strict=True)]
    binary = set(map(float, [*a, *b])) <= {0.0, 1.0}
    test = "exact McNemar test" if binary else "sign-flip permutation test"
    if len(set(changes)) < 2:
        low = high = changes[0]
    else:
        low, high = _bootstrap_mean(changes, confidence, seed)
    moved = [change for change in changes if change]
    if not moved:
        p_value = 1.0
    elif binary:
        p_value = float(binomtest(sum(change > 0 for change in moved), len(moved)).pvalue)
    else:
        p_value = float(
            permutation_test(
                (changes,), _mean, permutation_type="samples", n_resamples=_RESAMPLES, vectorized=True, rng=seed
            ).pvalue
        )
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    return Difference(len(a), mean_a, mean_b, mean_b - mean_a, low, high, p_value, test)


def grouped_mean(
    groups: Sequence[Sequence[float]], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high) of the mean over groups (data sets) of their mean over questions, for values in [0, 1].

    Every group weighs the same, however many questions it has.  Interval: the exact one of a share for one group of
    right-or-wrong values, or where all values are equal; else the percentile bootstrap that resamples questions
    inside each group.  Raises ValueError for no group or an empty one.

    >>> grouped_mean([[1.0, 0.0], [1.0, 1.0, 1.0]])[0]
    0.75
    """
    _check_groups(groups)
    pooled = [float(value) for group in groups for value in group]
    mean = _mean_of_means(groups)
    if len(set(pooled)) < 2 or (len(groups) == 1 and set(pooled) <= {0.0, 1.0}):
        return mean, *share_interval(round(sum(pooled)), len(pooled), confidence)
    return mean, *_bootstrap_groups(groups, confidence, seed)


def grouped_difference(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], confidence: float = 0.95, seed: int = 0
) -> Difference:
    """How much better b is than a, question by question, averaged over groups (data sets) that weigh the same.

    Interval: percentile bootstrap over questions, inside each group.  p-value: for one group of right-or-wrong
    values the exact McNemar test, else a sign-flip permutation test of the mean over groups.  As
    `paired_difference`, many times faster.  Raises ValueError for unequal or empty groups.

    >>> grouped_difference([[0, 0], [1, 1, 1, 1]], [[1, 1], [1, 1, 1, 0]]).difference
    0.375
    """
    _check_groups(a)
    if [len(group) for group in a] != [len(group) for group in b]:
        raise ValueError("the same questions in the same groups are needed on both sides")
    changes = [np.asarray(y, dtype=np.float64) - np.asarray(x, dtype=np.float64) for x, y in zip(a, b, strict=True)]
    mean_a, mean_b, difference = _mean_of_means(a), _mean_of_means(b), _mean_of_means(changes)
    everything = np.concatenate(changes)
    low = high = difference
    if len(set(everything.tolist())) > 1:
        low, high = _bootstrap_groups(changes, confidence, seed)
    binary = len(a) == 1 and {float(value) for value in (*a[0], *b[0])} <= {0.0, 1.0}
    p_value = 1.0
    if everything.any() and binary:
        p_value = float(binomtest(int((everything > 0).sum()), int((everything != 0).sum())).pvalue)
    elif everything.any():
        # Where there is no difference, + and - are equally likely for every question.
        flipped = sum(_flipped_means(group, (seed, i)) for i, group in enumerate(changes)) / len(changes)
        p_value = float((1 + np.sum(np.abs(flipped) >= abs(difference) - 1e-12)) / (1 + _RESAMPLES))
    test = "exact McNemar test" if binary else "sign-flip permutation test"
    return Difference(len(everything), mean_a, mean_b, difference, low, high, p_value, test)


def spread_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of a few values, one per seed: what another set of seeds might give.

    mean -+ t(n - 1) * s / sqrt(n), s with n - 1.  None for fewer than two values, which show no spread.

    >>> [round(edge, 3) for edge in spread_interval([0.1, 0.2, 0.3])]
    [-0.048, 0.448]
    """
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    reach = float(student.ppf(0.5 + confidence / 2, n - 1)) * deviation / math.sqrt(n)
    return mean - reach, mean + reach


def two_level_interval(
    groups: Sequence[Sequence[Sequence[float]]], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """The interval of a mean over seeds and questions, both of which might have been others.

    Percentile bootstrap that draws seeds and, independently, questions with replacement inside each group (data set);
    groups weigh the same.  It is wider than the interval over only questions where seeds differ.

    Args:
        groups: per group a table, a row per seed, a column per question.
    Returns: (low, high), or None where a group has fewer than two seeds.
    Raises: ValueError for no group, or an empty one.

    >>> low, high = two_level_interval([[[0.0, 0.0], [1.0, 1.0]]])  # the seeds differ, the questions do not
    >>> low, high
    (0.0, 1.0)
    """
    tables = [np.asarray(group, dtype=np.float64) for group in groups]
    if not tables or any(table.ndim != 2 or 0 in table.shape for table in tables):
        raise ValueError("at least one group, and one seed and question in each, are needed")
    if any(len(table) < 2 for table in tables):
        return None
    means = np.zeros(_RESAMPLES)
    for i, table in enumerate(tables):
        num_seeds, num = table.shape
        draws = np.random.default_rng((seed, i, 2))
        by_seed = draws.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), _RESAMPLES) / num_seeds
        # Questions whose values are the same for every seed are drawn together, as in `_resampled_means`.
        different, counts = np.unique(np.round(table, 12), axis=1, return_counts=True)
        by_question = draws.multinomial(num, counts / num, _RESAMPLES) / num
        means += np.einsum("bq,bq->b", by_seed @ different, by_question) / len(tables)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _check_groups(groups: Sequence[Sequence[float]]) -> None:
    if not len(groups) or any(len(group) == 0 for group in groups):
        raise ValueError("at least one group, and one question in each, are needed")


def _mean_of_means(groups: Sequence[Sequence[float] | np.ndarray]) -> float:
    return math.fsum(math.fsum(group) / len(group) for group in groups) / len(groups)


def _bootstrap_groups(
    groups: Sequence[Sequence[float] | np.ndarray], confidence: float, seed: int
) -> tuple[float, float]:
    means = sum(_resampled_means(group, (seed, i)) for i, group in enumerate(groups)) / len(groups)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _resampled_means(values: Sequence[float] | np.ndarray, name: tuple[int, int]) -> np.ndarray:
    """Means of n values drawn with replacement, as often as there are resamples.

    Values over few seeds repeat: how often each of the different ones is drawn is multinomial, and few numbers.
    """
    different, counts = np.unique(np.round(np.asarray(values, dtype=np.float64), 12), return_counts=True)
    n = int(counts.sum())
    return np.random.default_rng(name).multinomial(n, counts / n, _RESAMPLES) @ different / n


def _flipped_means(changes: np.ndarray, name: tuple[int, int]) -> np.ndarray:
    """Means of the changes with random signs: of m equal ones, how many keep theirs is binomial."""
    different, counts = np.unique(np.round(np.abs(changes), 12), return_counts=True)
    kept = np.random.default_rng((*name, 1)).binomial(counts, 0.5, (_RESAMPLES, len(counts)))
    return (2 * kept - counts) @ different / len(changes)


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(values, axis=axis)


def _bootstrap_mean(values: Sequence[float], confidence: float, seed: int) -> tuple[float, float]:
    interval = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        _mean,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        batch=1000,
        rng=seed,
    ).confidence_interval
    return float(interval.low), float(interval.high)
