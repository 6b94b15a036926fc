"""From logits to log-probabilities and entropies."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["log_distribution", "pick_logprobs", "shannon_entropies"]


def log_distribution(logits: Float[Tensor, "... V"], temperature: float = 1.0) -> Float[Tensor, "... V"]:
    """log softmax(logits / temperature), in float32 or better whatever the model's dtype.

    >>> log_distribution(torch.tensor([0.0, 0.0])).exp().tolist()
    [0.5, 0.5]
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide if temperature == 1.0 else wide / temperature, dim=-1)


def pick_logprobs(log_dist: Float[Tensor, "... V"], tokens: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The log-probability (nats) of each token under its own distribution.

    >>> pick_logprobs(torch.log(torch.tensor([[0.25, 0.75]])), torch.tensor([1])).exp().tolist()
    [0.75]
    """
    return log_dist.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def shannon_entropies(log_dist: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """H = - sum_v p_v log p_v, in nats; a token of probability 0 adds 0, in value and in gradient.

    Paper section 2, equation of H_{i,t} (docs/method.md).

    >>> round(shannon_entropies(torch.log(torch.tensor([0.5, 0.5]))).item(), 4)
    0.6931
    """
    # Masked vocabulary has log-probability -inf, and 0 * -inf is nan; exp(-1e4) is 0 in every float type.
    return -(log_dist.exp() * log_dist.clamp_min(-1e4)).sum(-1)
