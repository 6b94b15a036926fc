"""The entropy band: where forks' entropies are kept."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["EDGE_TOLERANCE", "band_edges", "band_penalty", "blend_edges", "median_mad_edges"]

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_MIN_MAD = 1e-6

EDGE_TOLERANCE = 1e-4
"""Entropies within this many nats of an edge count as inside the band.

With edges from the current entropies some tokens *are* the edge, up to rounding.  Their penalty is 0 either way,
but its gradient would jump between 0 and 1 with the last bit, and so with the micro-batch size.
"""


def band_edges(
    entropies: Float[Tensor, "B T"], fork_mask: Bool[Tensor, "B T"], low: float, high: float
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """(H_low, H_high) in nats for each response, float64: two quantiles of its fork entropies, without gradient.

    Quantiles interpolate linearly between order statistics: the q-quantile of n sorted values stands at position
    q * (n - 1).  A response without forks gets (0, 0); nothing of it is weighed.
    Source: SPINE, equations (7) and (8) (docs/method.md), with low = 0.10 and high = 0.50.

    >>> edges = band_edges(torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool), 0.0, 0.5)
    >>> [edge.item() for edge in edges]
    [1.0, 2.0]
    """
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"low={low}, high={high}: allowed is 0 <= low <= high <= 1 (band.low, band.high)")
    values = entropies.detach().double()
    return _quantile(values, fork_mask, low), _quantile(values, fork_mask, high)


def median_mad_edges(
    entropies: Float[Tensor, "B T"], fork_mask: Bool[Tensor, "B T"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """(H_low, H_high) in nats for each response, float64: H_high = median(H), H_low = max(0, median - 1.4826 MAD).

    Over the response's fork entropies, without gradient; MAD = median |H - median|, at least 1e-6.  The median of an
    even number is the mean of the middle two.  A response without forks gets (0, 0); nothing of it is weighed.
    Source: SPINE's second version (arXiv 2511.17938v2), as one independent re-implementation has it.

    >>> edges = median_mad_edges(torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool))
    >>> [round(edge.item(), 4) for edge in edges]
    [0.5174, 2.0]
    """
    values = entropies.detach().double()
    median = _quantile(values, fork_mask, 0.5)
    mad = _quantile((values - median.unsqueeze(1)).abs(), fork_mask, 0.5).clamp_min(_MIN_MAD)
    low = (median - _MAD_TO_SIGMA * mad).clamp_min(0.0)
    return torch.where(fork_mask.any(dim=1), low, 0.0), median


def _quantile(values: Tensor, mask: Tensor, q: float) -> Tensor:
    """The q-quantile (B,) of the masked values (B, T) of each row, interpolated linearly; 0 without any."""
    counts = mask.sum(dim=1)
    ordered = values.masked_fill(~mask, torch.inf).sort(dim=1).values
    position = (counts - 1).clamp_min(0).to(ordered.dtype) * q
    below = position.floor().long()
    above = torch.minimum(below + 1, (counts - 1).clamp_min(0))
    at_below, at_above = (ordered.gather(1, index.unsqueeze(1)).squeeze(1) for index in (below, above))
    return torch.where(counts > 0, at_below + (at_above - at_below) * (position - below), 0.0)


def band_penalty(
    entropies: Float[Tensor, " N"],
    low: Float[Tensor, " N"],
    high: Float[Tensor, " N"],
    shape: Literal["hinge", "squared"] = "hinge",
    weight_low: float = 1.0,
    weight_high: float = 1.0,
) -> Float[Tensor, " N"]:
    """weight_high max(0, H - H_high) + weight_low max(0, H_low - H) per token, in nats; 0 inside the band.

    shape="squared" squares each hinge (nats^2), so that the pull grows with the distance.  The edges carry no
    gradient, and a token within EDGE_TOLERANCE of one is inside.
    Source: SPINE, equations (9) and (10) (docs/method.md); squared is ours.

    >>> band_penalty(torch.tensor([0.1, 0.5, 1.0]), torch.full((3,), 0.2), torch.full((3,), 0.6)).tolist()
    [0.10000000149011612, 0.0, 0.3999999761581421]
    """
    over, under = (
        torch.where(distance > EDGE_TOLERANCE, distance, 0.0)
        for distance in (entropies - high.detach(), low.detach() - entropies)
    )
    if shape == "squared":
        over, under = over.square(), under.square()
    return weight_high * over + weight_low * under


def blend_edges(past: tuple[float, float] | None, now: tuple[float, float], decay: float) -> tuple[float, float]:
    """Edges of the exponential moving average: decay * past + (1 - decay) * now, or `now` at the first step.

    >>> blend_edges((1.0, 2.0), (0.0, 1.0), 0.5)
    (0.5, 1.5)
    """
    if past is None:
        return now
    return (decay * past[0] + (1 - decay) * now[0], decay * past[1] + (1 - decay) * now[1])
