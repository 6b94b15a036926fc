"""From logits to log-probabilities and entropies."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["kept_log_mass", "log_distribution", "pick_logprobs", "shannon_entropies", "token_figures"]


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


def kept_log_mass(log_dist: Float[Tensor, "... V"], kept: Bool[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """log S, S = sum of the probabilities of the kept tokens, in nats, <= 0.

    Sampling with top-p, top-k or min-p draws from q = pi / S on the kept tokens: log q = log pi - log S, and
    KL(q || pi) = - log S.  Carries a gradient.

    >>> kept_log_mass(torch.log(torch.tensor([0.7, 0.2, 0.1])), torch.tensor([True, True, False])).exp().item()
    0.8999999761581421
    """
    return log_dist.masked_fill(~kept, -torch.inf).logsumexp(dim=-1)


def shannon_entropies(log_dist: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """H = - sum_v p_v log p_v, in nats; a token of probability 0 adds 0, in value and in gradient.

    Paper section 2, equation of H_{i,t} (docs/method.md).

    >>> round(shannon_entropies(torch.log(torch.tensor([0.5, 0.5]))).item(), 4)
    0.6931
    """
    # Masked vocabulary has log-probability -inf, and 0 * -inf is nan; exp(-1e4) is 0 in every float type.
    return -(log_dist.exp() * log_dist.clamp_min(-1e4)).sum(-1)


def token_figures(
    logits: Float[Tensor, "N V"], tokens: Int[Tensor, " N"], temperature: float = 1.0
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """(log-probability of each token, entropy of its distribution), in nats, with a gradient for both.

    The same numbers as `pick_logprobs` and `shannon_entropies` of `log_distribution`, and the same gradient, from one
    saved (N, V) tensor instead of five.  With l = log softmax(logits / T) and p = e^l, for incoming gradients g and h:
    d/dlogits = (g * (onehot(token) - p) - h * p * (l + H)) / T.

    >>> figures = token_figures(torch.zeros(1, 2), torch.tensor([1]))
    >>> [round(figure.item(), 4) for figure in figures]
    [-0.6931, 0.6931]
    """
    return _TokenFigures.apply(logits, tokens, temperature)  # pyright: ignore[reportReturnType]


class _TokenFigures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        log_dist = log_distribution(logits, temperature)
        entropies = shannon_entropies(log_dist)
        ctx.save_for_backward(log_dist, tokens, entropies)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return pick_logprobs(log_dist, tokens), entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        log_dist, tokens, entropies = ctx.saved_tensors
        towards_token, towards_entropy = (gradient.unsqueeze(-1) for gradient in gradients)
        factor = towards_entropy * entropies.unsqueeze(-1) + towards_token
        grad = log_dist.clamp_min(-1e4).mul_(towards_entropy).add_(factor).mul_(log_dist.exp()).neg_()
        grad.scatter_add_(-1, tokens.unsqueeze(-1), towards_token)
        return grad.div_(ctx.temperature).to(ctx.dtype), None, None
