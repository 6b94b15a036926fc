"""How much each response's vote weighs."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "TOKEN_FIGURES",
    "VOTE_WEIGHTS",
    "equal_weights",
    "mean_certainty",
    "mean_margin",
    "mean_probability",
    "stepwise_probability",
    "top_margins",
]

TOKEN_FIGURES = ("margins", "line_ends")
"""Figures (B, T) of a rollout's tokens that are computed only for a function that names one among its arguments."""


def equal_weights(
    logprobs: Float[Tensor, "B T"],
    entropies: Float[Tensor, "B T"],  # noqa: ARG001 - every weighting has the same shape
    mask: Bool[Tensor, "B T"],  # noqa: ARG001
) -> Float[Tensor, " B"]:
    """One vote each.

    >>> import torch
    >>> equal_weights(torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool)).tolist()
    [1.0, 1.0]
    """
    return logprobs.new_ones(len(logprobs))


def mean_probability(
    logprobs: Float[Tensor, "B T"],
    entropies: Float[Tensor, "B T"],  # noqa: ARG001
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, " B"]:
    """exp(mean_t log pi(y_t)): the geometric mean of a response's token probabilities, in (0, 1].

    0 for a response without tokens.  Source: length-normalized likelihood weighting of self-consistency
    (arXiv 2203.11171, section 3.1).

    >>> import torch
    >>> mask = torch.tensor([[True, True]])
    >>> round(mean_probability(torch.log(torch.tensor([[0.5, 0.125]])), torch.zeros(1, 2), mask).item(), 4)
    0.25
    """
    lengths = mask.sum(dim=1)
    mean = (logprobs * mask).sum(dim=1) / lengths.clamp_min(1)
    return mean.exp() * (lengths > 0)


def mean_certainty(
    logprobs: Float[Tensor, "B T"],  # noqa: ARG001
    entropies: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, " B"]:
    """exp(- mean_t H_t): the inverse of a response's mean branching, in (0, 1]; 0 without tokens.  Ours.

    >>> import torch
    >>> round(mean_certainty(torch.zeros(1, 1), torch.tensor([[0.6931]]), torch.tensor([[True]])).item(), 3)
    0.5
    """
    lengths = mask.sum(dim=1)
    mean = (entropies * mask).sum(dim=1) / lengths.clamp_min(1)
    return (-mean).exp() * (lengths > 0)


def top_margins(log_dist: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """The probability of the likeliest token less that of the next, in [0, 1].

    >>> import torch
    >>> round(top_margins(torch.log(torch.tensor([[0.7, 0.2, 0.1]]))).item(), 3)
    0.5
    """
    first, second = log_dist.topk(2, dim=-1).values.exp().unbind(-1)
    return first - second


def mean_margin(
    logprobs: Float[Tensor, "B T"],  # noqa: ARG001
    entropies: Float[Tensor, "B T"],  # noqa: ARG001
    mask: Bool[Tensor, "B T"],
    *,
    margins: Float[Tensor, "B T"],
) -> Float[Tensor, " B"]:
    """The mean of `top_margins` over a response's tokens, in [0, 1]; 0 without tokens.

    Source: COMPASS (arXiv 2510.17923), at the sampling temperature; that it is a mean over all tokens is ours.

    >>> import torch
    >>> mask = torch.tensor([[True, True, False]])
    >>> mean_margin(torch.zeros(1, 3), torch.zeros(1, 3), mask, margins=torch.tensor([[0.5, 1.0, 0.0]])).tolist()
    [0.75]
    """
    return (margins * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


def stepwise_probability(
    logprobs: Float[Tensor, "B T"],
    entropies: Float[Tensor, "B T"],  # noqa: ARG001
    mask: Bool[Tensor, "B T"],
    *,
    line_ends: Bool[Tensor, "B T"],
) -> Float[Tensor, " B"]:
    """The mean over a response's steps of exp(mean_t log pi(y_t)) within the step, in (0, 1]; 0 without tokens.

    A step is a line: a token that ends one is its last.  A long step counts no more than a short one.
    Source: SCOPE (arXiv 2512.15146), which weighs votes by the confidence of steps; that these are lines, and their
    confidence a geometric mean, is ours.

    >>> import torch
    >>> logprobs = torch.log(torch.tensor([[0.5, 0.5, 1.0]]))
    >>> ends = torch.tensor([[False, True, True]])
    >>> stepwise_probability(logprobs, logprobs, torch.ones(1, 3, dtype=torch.bool), line_ends=ends).tolist()
    [0.75]
    """
    ends = (line_ends & mask).long()
    step = ends.cumsum(dim=1) - ends  # a token's number of lines ended before it
    most = int(step.max()) + 1 if step.numel() else 1
    sums = logprobs.new_zeros(len(logprobs), most).scatter_add(1, step, logprobs * mask)
    counts = logprobs.new_zeros(len(logprobs), most).scatter_add(1, step, mask.to(logprobs.dtype))
    there = counts > 0
    confidences = (sums / counts.clamp_min(1)).exp() * there
    return confidences.sum(dim=1) / there.sum(dim=1).clamp_min(1)


VoteWeights = Callable[..., Tensor]
"""(logprobs (B, T), entropies (B, T), mask (B, T)) -> weights (B,), at least 0; also, by name, any of TOKEN_FIGURES."""

VOTE_WEIGHTS: dict[str, VoteWeights] = {
    "equal": equal_weights,
    "probability": mean_probability,
    "certainty": mean_certainty,
    "margin": mean_margin,
    "stepwise": stepwise_probability,
}
