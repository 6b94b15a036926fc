"""How the entropies of a step's tokens are distributed, which tokens are forks or followers: counts for the log."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["ENTROPY_EDGES", "entropy_histogram", "frequent_tokens"]

ENTROPY_EDGES = tuple(i / 10 for i in range(41))
"""Lower edges of the logged bins in nats: 0, 0.1, ... 4.0, the last bin open.  The same for every step and model."""


def entropy_histogram(
    entropies: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], edges: Float[Tensor, " E"]
) -> Int[Tensor, " E"]:
    """The number of masked tokens in each bin: bin i holds edges[i] <= H < edges[i + 1], the last H >= edges[-1].

    An entropy under the first edge (a rounding error under 0) counts in the first bin, so that the counts sum to
    the number of masked tokens.

    Args:
        entropies: nats.
        mask: the tokens that count: the response tokens, or the forks.
        edges: the bins' lower edges, ascending, nats.

    >>> entropy_histogram(torch.tensor([[0.0, 0.1, 0.3, 9.0]]), torch.ones(1, 4).bool(), torch.tensor([0.0, 0.2, 0.4]))
    tensor([2, 1, 1])
    """
    bins = (torch.bucketize(entropies[mask], edges.to(entropies.dtype), right=True) - 1).clamp_min(0)
    return torch.bincount(bins, minlength=len(edges))


def frequent_tokens(
    tokens: Int[Tensor, "B T"],
    entropies: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    chosen_mask: Bool[Tensor, "B T"],
    most: int,
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"]]:
    """(token ids, times seen, times chosen, mean entropy) of the `most` tokens that are most often chosen.

    By descending times chosen, ties by ascending token id; fewer rows where fewer different tokens are chosen.  The
    mean entropy is in nats, over all times the token was seen, chosen or not, summed in float64.

    Args:
        entropies: nats.
        mask: True on response tokens.
        chosen_mask: the forks, or the followers, within the mask.
        most: rows at most, >= 0.

    >>> ids, seen, forks, means = frequent_tokens(
    ...     torch.tensor([[7, 5, 7, 3]]), torch.tensor([[2.0, 1.5, 1.0, 0.1]]),
    ...     torch.ones(1, 4).bool(), torch.tensor([[True, True, False, False]]), 60)
    >>> ids.tolist(), seen.tolist(), forks.tolist(), means.tolist()
    ([5, 7], [1, 2], [1, 1], [1.5, 1.5])
    """
    ids, inverse = torch.unique(tokens[mask], return_inverse=True)
    seen = torch.bincount(inverse, minlength=len(ids))
    counts = torch.bincount(inverse[chosen_mask[mask]], minlength=len(ids))
    means = torch.bincount(inverse, weights=entropies[mask].double(), minlength=len(ids)) / seen
    chosen = counts.argsort(descending=True, stable=True)[: min(most, int((counts > 0).sum()))]
    return ids[chosen], seen[chosen], counts[chosen], means[chosen]
