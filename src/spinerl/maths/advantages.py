"""From rewards to advantages."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["group_advantages"]


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
