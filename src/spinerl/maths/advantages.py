"""From rewards to advantages."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["entropic_advantages", "group_advantages", "pass_k_advantages"]

_HALVINGS = 100  # of the interval in which beta is searched: to the last bit of a float64


def group_advantages(
    rewards: Float[Tensor, "P G"], scale: Literal["std", "none", "raw"] = "std", eps: float = 1e-6
) -> Float[Tensor, "P G"]:
    """GRPO: A_i = (r_i - mean(r)) / (std(r) + eps) within each group; only centred with scale="none"; r_i with "raw".

    std is the sample standard deviation (divides by G - 1), as in TTRL, verl and TRL.  A group of equal rewards,
    and so a group of one, gets exactly 0: it says nothing about what is better.  "raw" leaves rewards as they are, for
    fine-tuning on rewarded responses (`nll_surrogate`).
    Source: equation (2) of SPINE (docs/method.md); "none" is Dr. GRPO's advantage (arXiv 2503.20783).

    >>> group_advantages(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), "none").tolist()
    [[0.5, -0.5], [0.0, 0.0]]
    """
    if scale == "raw":
        return rewards
    constant = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    centred = (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(constant, 0.0)
    if scale == "none":
        return centred
    if rewards.shape[1] < 2:
        return torch.zeros_like(rewards)
    return centred / (rewards.std(dim=1, keepdim=True) + eps)


def entropic_advantages(rewards: Float[Tensor, "P G"], divergence: float = math.log(2)) -> Float[Tensor, "P G"]:
    """A_i = exp(b r_i) / mean_j exp(b r_j) - 1 within each group, b such that KL(q, uniform) = `divergence`.

    q_i = exp(b r_i) / sum_j exp(b r_j).  The gradient is that of log E[exp(b r)], which leans towards the best response
    rather than the mean.  b depends on the group's rewards up to a positive scale and a shift: so do advantages.  Where
    so many responses share the highest reward that the divergence cannot be reached, b is infinite: the best ones share
    all weight.  A group of equal rewards gets exactly 0.

    Args: `divergence` in nats, > 0.
    Source: TTT-Discover (arXiv 2601.16175), whose divergence is log 2; that b is infinite there is ours.

    >>> [round(a, 3) for a in entropic_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))[0].tolist()]
    [2.243, -0.748, -0.748, -0.748]
    """
    if not divergence > 0.0:
        raise ValueError(f"divergence={divergence}: allowed is divergence > 0")
    size = rewards.shape[1]
    given = rewards.double()
    span = given.amax(dim=1, keepdim=True) - given.amin(dim=1, keepdim=True)
    below = (given - given.amax(dim=1, keepdim=True)) / span.where(span > 0, 1.0)  # in [-1, 0]

    def share(beta: Tensor) -> Tensor:
        return torch.softmax(beta * below, dim=1)

    low, high = torch.zeros_like(span), torch.full_like(span, 1e9)
    for _ in range(_HALVINGS):
        beta = (low + high) / 2
        q = share(beta)
        reached = (q * (q * size).clamp_min(1e-300).log()).sum(dim=1, keepdim=True) >= divergence
        low, high = torch.where(reached, low, beta), torch.where(reached, beta, high)
    return (size * share(high) - 1.0).masked_fill(span == 0, 0.0).to(rewards.dtype)


def pass_k_advantages(rewards: Float[Tensor, "P G"], k: int = 8, eps: float = 1e-6) -> Float[Tensor, "P G"]:
    """Advantages for "one of k is right", mixed with the group's own by the share c / n of rewarded responses.

    With c of n responses rewarded (reward > 0) and rho = 1 - C(n-c, k) / C(n, k) the chance that one of k is,
    s = sqrt(rho (1 - rho)): a rewarded response has (1 - rho) / s, another (1 - rho - C(n-c-1, k-1) / C(n-1, k-1)) / s,
    and 0 where s = 0.  The result is c/n times that plus (1 - c/n) times `group_advantages(rewards, "std", eps)`, which
    k >= n, too, leaves a value.

    Args: `k` >= 1, at most n counts.
    Source: TTC-RL (arXiv 2510.04786), k = 8.

    >>> [round(a, 3) for a in pass_k_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), k=2)[0].tolist()]
    [1.375, -0.458, -0.458, -0.458]
    """
    if k < 1:
        raise ValueError(f"k={k}: allowed is k >= 1")
    size = rewards.shape[1]
    k = min(k, size)
    out = group_advantages(rewards, "std", eps).double()
    for p, rewarded in enumerate((rewards > 0).tolist()):
        right = sum(rewarded)
        rho = 1.0 - math.comb(size - right, k) / math.comb(size, k)
        spread = math.sqrt(rho * (1.0 - rho))
        share = right / size
        missed = math.comb(size - right - 1, k - 1) / math.comb(size - 1, k - 1) if right < size and size > 1 else 0.0
        for i, good in enumerate(rewarded):
            value = 0.0 if spread == 0 else (1.0 - rho - (0.0 if good else missed)) / spread
            out[p, i] = share * value + (1.0 - share) * out[p, i]
    return out.to(rewards.dtype)
