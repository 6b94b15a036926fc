"""Shares, means and paired differences with their intervals.  No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap, permutation_test

__all__ = ["Difference", "mean_interval", "paired_difference", "pass_at_k", "share_interval"]


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
    """The chance that k of `num` responses drawn without replacement hold a right one: 1 - C(n-c, k) / C(n, k).

    Unbiased for k fresh responses.  Source: Chen et al., arXiv 2107.03374, equation 1.  Raises ValueError for
    k outside 1..num.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= num:
        raise ValueError(f"k={k}: allowed is 1 <= k <= {num}, the number of responses")
    return 1.0 - math.comb(num - num_right, k) / math.comb(num, k)


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
                (changes,), _mean, permutation_type="samples", n_resamples=9999, vectorized=True, rng=seed
            ).pvalue
        )
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    return Difference(len(a), mean_a, mean_b, mean_b - mean_a, low, high, p_value, test)


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
