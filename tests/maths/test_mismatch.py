"""Importance weights between the model that learns and the engine that sampled."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spinerl.maths import importance_weights, mismatch_figures

MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_by_hand():
    p = torch.tensor([[0.6, 0.9, 0.5], [0.2, 0.5, 1.0]])
    q = torch.tensor([[0.5, 0.1, 0.1], [0.4, 0.5, 0.5]])
    # ratios: 1.2, 9 (cut to 3), padding | 0.5, 1, 2
    weights = importance_weights(p.log(), q.log(), MASK, 3.0)
    assert torch.allclose(weights, torch.tensor([[1.2, 3.0, 1.0], [0.5, 1.0, 2.0]]), atol=1e-6)
    figures = mismatch_figures(p.log(), q.log(), MASK, 3.0)
    logs = [math.log(1.2), math.log(9), math.log(0.5), 0.0, math.log(2)]
    assert figures["logprob_diff"] == pytest.approx(sum(map(abs, logs)) / 5, abs=1e-6)
    assert figures["logprob_diff_max"] == pytest.approx(math.log(9), abs=1e-6)
    # r - 1 - log r: 0.2 - log 1.2, 8 - log 9, -0.5 + log 2, 0, 1 - log 2
    assert figures["kl"] == pytest.approx((0.2 + 8 - 0.5 + 1 - math.log(1.2) - math.log(9)) / 5, abs=1e-5)
    assert figures["weight"] == pytest.approx((1.2 + 3 + 0.5 + 1 + 2) / 5, abs=1e-6)
    assert figures["capped_frac"] == pytest.approx(1 / 5)


def test_no_cap_is_no_correction():
    logprobs = torch.tensor([[-1.0, -2.0, 0.0], [-3.0, -0.5, -0.1]])
    assert torch.equal(importance_weights(logprobs, 2 * logprobs, MASK, 0.0), torch.ones(2, 3))
    figures = mismatch_figures(logprobs, 2 * logprobs, MASK, 0.0)
    assert (figures["weight"], figures["capped_frac"]) == (1.0, 0.0)
    assert figures["logprob_diff"] > 0


def test_without_tokens():
    nothing = torch.zeros(2, 3)
    figures = mismatch_figures(nothing, nothing, torch.zeros(2, 3, dtype=torch.bool), 2.0)
    assert figures == {"logprob_diff": 0.0, "logprob_diff_max": 0.0, "kl": 0.0, "weight": 1.0, "capped_frac": 0.0}


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 4.0))
def test_mean_weight_under_the_sampler_is_at_most_one(seed, cap):
    """sum_x q(x) min(p(x) / q(x), cap) <= 1, with equality without a cut: what the correction is for."""
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, 6, generator=generator).softmax(-1)
    weights = importance_weights(p.log().unsqueeze(0), q.log().unsqueeze(0), torch.ones(1, 6, dtype=torch.bool), cap)
    mean = float((q * weights[0]).sum())
    assert mean <= 1 + 1e-5
    if float((p / q).max()) <= cap:
        assert mean == pytest.approx(1.0, abs=1e-5)
