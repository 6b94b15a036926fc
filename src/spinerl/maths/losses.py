"""Per-token loss terms.  Each is reduced by weights of its own (`spinerl.maths.reduce`)."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from spinerl.maths.logprobs import log_distribution

__all__ = ["MAX_LOG_RATIO", "clipped_surrogate", "exact_kl", "sampled_kl"]

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 nats before `exp`, as verl does: e^20 is a ratio beyond all use, e^89 overflows."""


def clipped_surrogate(
    logprobs: Float[Tensor, " N"],
    old_logprobs: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, " N"]:
    """min(w A, clip(w, 1 - clip_low, 1 + clip_high) A) with w = exp(logp - old_logp): to be *maximised*.

    At logp = old_logp its value is A and its gradient A * d(logp).  Source: SPINE, equations (3) and (4)
    (docs/method.md); separate edges are DAPO's (arXiv 2503.14476).

    >>> import torch
    >>> clipped_surrogate(torch.tensor([0.0]).log1p(), torch.tensor([0.5]).log(), torch.tensor([1.0])).item()
    1.2000000476837158
    """
    ratio = (logprobs - old_logprobs.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return (ratio * advantages).minimum(clipped * advantages)


def sampled_kl(
    logprobs: Float[Tensor, " N"],
    anchor_logprobs: Float[Tensor, " N"],
    estimator: Literal["k1", "k2", "k3"] = "k3",
) -> Float[Tensor, " N"]:
    """Estimates of KL(policy || anchor) from only the sampled token, d = logp - anchor_logp, in nats.

    k1 = d: unbiased as a value, but the gradient of its mean over on-policy samples has expectation 0, so it
    measures and does not hold.  k2 = d^2 / 2: its gradient is that of the KL.  k3 = e^{-d} - 1 + d: unbiased,
    never negative; its gradient is that of the reverse direction KL(anchor || policy).
    Source: J. Schulman, "Approximating KL divergence", 2020; SPINE, equation (5) (docs/method.md), is the exact one.

    >>> import torch
    >>> [sampled_kl(torch.tensor([1.0]), torch.tensor([0.0]), k).item() for k in ("k1", "k2")]
    [1.0, 0.5]
    """
    d = (logprobs - anchor_logprobs.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    return (-d).exp() - 1 + d


def exact_kl(
    log_dist: Float[Tensor, "N V"], anchor_logits: Float[Tensor, "N V"], temperature: float = 1.0
) -> Float[Tensor, " N"]:
    """KL(policy || anchor) = sum_v p_v (log p_v - log q_v) over the whole vocabulary, in nats, >= 0.

    Both distributions are taken at the sampling temperature.  `log_dist` is the policy's log-distribution.

    >>> import torch
    >>> exact_kl(torch.log(torch.tensor([[0.5, 0.5]])), torch.zeros(1, 2)).abs().item() < 1e-6
    True
    """
    anchor = log_distribution(anchor_logits.detach(), temperature)
    return (log_dist.exp() * (log_dist.clamp_min(-1e4) - anchor.clamp_min(-1e4))).sum(-1)
