"""Which tokens are forks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Selector", "all_tokens_mask", "first_tokens_mask", "otsu_mask", "top_entropy_mask"]

_OTSU_BINS = 100


def top_entropy_mask(
    entropies: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    fraction: float,
    scope: Literal["response", "batch"] = "response",
) -> Bool[Tensor, "B T"]:
    """The fork mask: the ceil(fraction * n) highest entropies among a response's n tokens, or the batch's.

    Exact count: a tie at the threshold goes to the earlier token (then the earlier row), so that the result
    never depends on padding.  At least one token of every response (or of the batch) is selected; a response without
    tokens has no forks.  The threshold must see all rows of a step at once; it is never taken per micro-batch.
    Sources: SPINE, section 3.2 (docs/method.md); scope="batch" is the 80/20 rule (arXiv 2506.01939).

    Args:
        entropies: nats, >= 0.
        mask: True on response tokens.
        fraction: rho, in (0, 1]; 1 selects every token.

    >>> top_entropy_mask(torch.tensor([[0.1, 0.9, 0.2, 0.0, 0.0]]), torch.ones(1, 5, dtype=torch.bool), 0.2).tolist()
    [[False, True, False, False, False]]
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction={fraction}: allowed is 0 < fraction <= 1 (forks.fraction)")
    if scope == "batch":
        flat = top_entropy_mask(entropies.reshape(1, -1), mask.reshape(1, -1), fraction)
        return flat.view_as(mask)
    counts = torch.ceil(mask.sum(dim=1).double() * fraction - 1e-9).long().clamp_min(1)  # 0.1 * 30 is a hair over 3
    order = entropies.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (ranks < counts.unsqueeze(1)) & mask


def all_tokens_mask(
    entropies: Float[Tensor, "B T"],  # noqa: ARG001 - every selector has the same shape
    mask: Bool[Tensor, "B T"],
    fraction: float,  # noqa: ARG001
    scope: Literal["response", "batch"] = "response",  # noqa: ARG001
) -> Bool[Tensor, "B T"]:
    """Every response token: the selector of methods that update all tokens alike (TTRL).

    >>> all_tokens_mask(torch.zeros(1, 2), torch.tensor([[True, False]]), 0.2).tolist()
    [[True, False]]
    """
    return mask


def first_tokens_mask(
    entropies: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    fraction: float,  # noqa: ARG001
    scope: Literal["response", "batch"] = "response",  # noqa: ARG001
    num_tokens: int = 8,
) -> Bool[Tensor, "B T"]:
    """The first `num_tokens` tokens of each response, or all of a shorter one.

    Source: UPFT (arXiv 2503.02875), which fine-tunes on 8 to 32 of them.

    >>> first_tokens_mask(torch.zeros(1, 4), torch.tensor([[True, True, True, False]]), 1.0, num_tokens=2).tolist()
    [[True, True, False, False]]
    """
    return mask & (torch.arange(entropies.shape[1], device=mask.device) < num_tokens)


def otsu_mask(
    entropies: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    fraction: float,
    scope: Literal["response", "batch"] = "response",
) -> Bool[Tensor, "B T"]:
    """Tokens at or over Otsu's threshold on the entropies of their response, or of the batch: no fraction is chosen.

    The entropies (nats) fall into 100 bins of equal width from the lowest to the highest.  The threshold is the lower
    edge of the bin k that maximizes the between-class variance w0 w1 (m0 - m1)^2, where w and m are the numbers of
    tokens and the means (of bin centers) below and from k on; of equal ones the lowest.  Where all entropies are equal
    all tokens are selected.  `fraction` is not used.

    Source: SPINE's second version (arXiv 2511.17938v2), as one independent re-implementation has it; N. Otsu, "A
    threshold selection method from gray-level histograms", 1979.

    >>> otsu_mask(torch.tensor([[0.0, 0.1, 0.1, 0.9, 1.0]]), torch.ones(1, 5, dtype=torch.bool), 0.2).tolist()
    [[False, False, False, True, True]]
    """
    if scope == "batch":
        return otsu_mask(entropies.reshape(1, -1), mask.reshape(1, -1), fraction).view_as(mask)
    values = entropies.double()
    low = values.masked_fill(~mask, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
    spread = high > low
    scaled = torch.where(spread & mask, (values - low) / torch.where(spread, high - low, 1.0), 0.0)
    bins = (scaled * _OTSU_BINS).long().clamp(0, _OTSU_BINS - 1)
    counts = values.new_zeros(len(values), _OTSU_BINS).scatter_add_(1, bins, mask.to(values.dtype))
    below, total = counts.cumsum(dim=1)[:, :-1], counts.sum(dim=1, keepdim=True)  # tokens below bin 1, 2, ...
    moments = (counts * torch.arange(_OTSU_BINS, device=values.device)).cumsum(dim=1)  # centers, up to shift and width
    above = total - below
    means = moments[:, :-1] / below.clamp_min(1), (moments[:, -1:] - moments[:, :-1]) / above.clamp_min(1)
    threshold = (below * above * (means[1] - means[0]).square()).argmax(dim=1, keepdim=True) + 1
    return mask & ((bins >= threshold) | ~spread)


Selector = Callable[..., Tensor]
"""(entropies (B, T), mask (B, T), fraction, scope) -> selected tokens (B, T), within the mask."""
