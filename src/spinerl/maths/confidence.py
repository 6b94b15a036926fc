"""How much each response's vote weighs."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["VOTE_WEIGHTS", "equal_weights", "mean_certainty", "mean_probability"]


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


VoteWeights = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logprobs (B, T), entropies (B, T), mask (B, T)) -> weights (B,), at least 0."""

VOTE_WEIGHTS: dict[str, VoteWeights] = {
    "equal": equal_weights,
    "probability": mean_probability,
    "certainty": mean_certainty,
}
