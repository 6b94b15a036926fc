"""When another engine sampled: how far it is from the learning model, and the weights that make up for it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spinerl.maths.reduce import masked_mean

__all__ = ["importance_weights", "mismatch_figures"]


def importance_weights(
    logprobs: Float[Tensor, "B T"],
    sampler_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    cap: float,
) -> Float[Tensor, "B T"]:
    """min(pi(token) / q(token), cap) of the tokens in the mask, 1 elsewhere.

    Tokens were sampled from q, the expectation is wanted under pi: a token's gradient counts pi / q times.  Truncated,
    since few tokens with enormous ratios would drown the others; that leaves a small bias.

    Args:
        logprobs: log pi, the learning model's, in nats.
        sampler_logprobs: log q, as the engine that sampled gave them.
        cap: the largest weight; 0 gives 1 everywhere, no correction.

    Source: truncated importance sampling between an inference engine and a trainer, as in TRL and verl.

    >>> p, q = torch.tensor([[0.6, 0.9]]), torch.tensor([[0.5, 0.1]])
    >>> [round(w, 2) for w in importance_weights(p.log(), q.log(), torch.ones(1, 2, dtype=torch.bool), 2.0)[0].tolist()]
    [1.2, 2.0]
    """
    if cap == 0.0:
        return torch.ones_like(logprobs)
    log_ratios = (logprobs - sampler_logprobs).clamp_max(math.log(cap))
    return torch.where(mask, log_ratios.exp(), 1.0)


def mismatch_figures(
    logprobs: Float[Tensor, "B T"],
    sampler_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    cap: float,
) -> dict[str, float]:
    """How much the two disagree about the tokens in the mask.

    `logprob_diff` and `logprob_diff_max`: mean and largest |log pi - log q|; `kl`: KL(q || pi) per token, estimated by
    r - 1 - log r with r = pi / q (never negative); `weight`: mean importance weight; `capped_frac`: tokens whose ratio
    is above the cap (0 where nothing is corrected).  All 0, and a weight of 1, where they agree or there are no tokens.

    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> figures = mismatch_figures(torch.zeros(1, 2), torch.tensor([[0.0, -1.0]]), mask, 2.0)
    >>> figures["logprob_diff"], figures["capped_frac"], figures["weight"]
    (0.5, 0.5, 1.5)
    """
    log_ratios = torch.where(mask, logprobs - sampler_logprobs, 0.0).double()
    weights = importance_weights(logprobs, sampler_logprobs, mask, cap)
    return {
        "logprob_diff": masked_mean(log_ratios.abs(), mask),
        "logprob_diff_max": float(log_ratios.abs().max()) if log_ratios.numel() else 0.0,
        "kl": masked_mean(log_ratios.exp() - 1.0 - log_ratios, mask),
        "weight": masked_mean(weights, mask) if mask.any() else 1.0,
        "capped_frac": masked_mean((log_ratios > math.log(cap)).double(), mask) if cap else 0.0,
    }
