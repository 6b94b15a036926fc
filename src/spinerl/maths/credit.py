"""Advantages beyond the group's: over the whole step, by entropy, and per token."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spinerl.maths.advantages import group_advantages
from spinerl.maths.responses import row_means

__all__ = ["batch_advantages", "bounded_advantages", "entropy_advantages", "prefix_tree_advantages"]


def batch_advantages(
    rewards: Float[Tensor, "P G"], scale: Literal["std", "none", "raw"] = "std", eps: float = 1e-6
) -> Float[Tensor, "P G"]:
    """A_i = (r_i - mean(r)) / (std(r) + eps) over all responses of the step; only centred with scale="none".

    A part of the reward that is constant in a group cancels in `group_advantages`; here it acts, between questions:
    all responses to a question that is better than the step's mean are pushed up.  std divides by P*G - 1.  A step
    of equal rewards gets exactly 0; a group of equal rewards does not.
    Sources: the form in which TTRV's entropy part (`spinerl.answers.ttrv_reward`) acts (docs/method.md);
    REINFORCE++ (arXiv 2501.03262) normalizes so.

    >>> batch_advantages(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "none").tolist()
    [[0.5, 0.5], [-0.5, -0.5]]
    """
    return group_advantages(rewards.reshape(1, -1), scale, eps).view_as(rewards)


def entropy_advantages(
    advantages: Float[Tensor, "P G"],
    mean_entropies: Float[Tensor, "P G"],
    min_factor: float = 0.0,
    max_factor: float = 2.0,
) -> Float[Tensor, "P G"]:
    """A'_i = f_i A_i with f_i = 1 + (mean(H) - H_i) / mean(H) = 2 - H_i / mean(H): certain responses count for more.

    mean(H) is over the group.  f is 1 for a response of average entropy, up to 2 for one without any, and falls
    under 0 for one of more than twice the average, whose advantage would change its sign; f is clipped to
    [`min_factor`, `max_factor`], and -inf, 2 leaves the formula bare.  A group without entropy has f = 1.  The sum
    over a group is no longer 0.

    Args:
        mean_entropies: H_i = mean_t H_{i,t} in nats, >= 0, without gradient (`response_means` of the sampler's).

    Source: ETTRL's EAR, reshaped form (arXiv 2508.11356), which clips f to 1 +- 0.2; the mean over the group is ours.

    >>> entropy_advantages(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 1.5]])).tolist()
    [[1.5, -0.5]]
    """
    mean = mean_entropies.mean(dim=1, keepdim=True)
    relative = torch.where(mean > 0, mean_entropies / mean, 1.0)
    return advantages * (2.0 - relative).clamp(min_factor, max_factor).to(advantages.dtype)


def bounded_advantages(advantages: Float[Tensor, "*shape"], bound: float) -> Float[Tensor, "*shape"]:
    """A'_i = min(max(A_i, -bound), bound): no response pulls harder than `bound` standard deviations.

    Source: ETTRL's EAR, clipped form (arXiv 2508.11356).  Raises ValueError unless bound > 0.

    >>> bounded_advantages(torch.tensor([2.5, -0.5]), 1.0).tolist()
    [1.0, -0.5]
    """
    if not bound > 0.0:
        raise ValueError(f"bound={bound}: allowed is bound > 0")
    return advantages.clamp(-bound, bound)


def prefix_tree_advantages(
    rewards: Float[Tensor, "P G"],
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    scale: Literal["std", "none"] = "std",
    eps: float = 1e-6,
) -> Float[Tensor, "B T"]:
    """A_{i,t} = (r_i - mean(r) + V_t - V_{t-1}) / (std(r) + eps): credit goes to the token where the group parts.

    V_t is the mean reward of the group's responses that begin with the same t tokens as response i, V_0 = mean(r).
    Where no response parts V does not change and the token has the group's advantage; the changes of V along a response
    that ends by itself add up to r_i - mean(r).  scale="none" divides by 1.  A group of equal rewards, and so a group
    of one, gets exactly 0; padding holds 0.

    One pass over the columns, for all groups at once; it ends where every response has become the only one with its
    prefix.  Time O(B T log B) at most.

    Args:
        tokens: rows of one question together, B = P*G.
        mask: True on each row's tokens, which start at column 0 without gaps.

    Source: TEMPO (arXiv 2509.18314; docs/method.md).  Independent samples part early; tree rollouts share more.

    >>> tokens, mask = torch.tensor([[5, 6], [5, 7]]), torch.ones(2, 2, dtype=torch.bool)
    >>> prefix_tree_advantages(torch.tensor([[1.0, 0.0]]), tokens, mask, "none").tolist()
    [[0.5, 1.0], [-0.5, -1.0]]
    """
    groups, size = rewards.shape
    if len(tokens) != groups * size:
        raise ValueError(f"{len(tokens)} rows of tokens for {groups} groups of {size} rewards; give {groups * size}")
    reward_of = rewards.flatten()
    group_of = torch.arange(groups, device=tokens.device).repeat_interleave(size)
    node = group_of.clone()  # the prefix that each row has had so far
    value = row_means(reward_of, node, groups)[node]
    steps = rewards.new_zeros(tokens.shape)
    num_tokens = int(tokens.max()) + 1 if tokens.numel() else 1
    for t in range(tokens.shape[1]):
        rows = mask[:, t].nonzero().squeeze(1)
        prefixes, found = torch.unique(node[rows] * num_tokens + tokens[rows, t], return_inverse=True)
        after = row_means(reward_of[rows], found, len(prefixes))[found]
        steps[rows, t] = after - value[rows]
        value[rows], node[rows] = after, found
        if len(prefixes) == len(rows):
            break
    spread = torch.ones_like(rewards[:, :1])
    if scale == "std" and size > 1:
        spread = rewards.std(dim=1, keepdim=True) + eps
    alike = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    whole = group_advantages(rewards, scale, eps).reshape(-1, 1)
    return (whole + steps / spread[group_of]).masked_fill(alike[group_of] | ~mask, 0.0)
