"""Which tokens are forks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Selector", "all_tokens_mask", "top_entropy_mask"]


def top_entropy_mask(
    entropies: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    fraction: float,
    scope: Literal["response", "batch"] = "response",
) -> Bool[Tensor, "B T"]:
    """The fork mask: the ceil(fraction * n) highest entropies among a response's n tokens, or the batch's.

    Exact count: a tie at the threshold goes to the earlier token (then the earlier row), so that the result
    never depends on padding.  A response without tokens has no forks.  The threshold must see all rows of a
    step at once; it is never taken per micro-batch.
    Sources: METHOD step 7 (docs/method.md); scope="batch" is the 80/20 rule (arXiv 2506.01939).

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
    counts = torch.ceil(mask.sum(dim=1).double() * fraction - 1e-9).long()  # 0.1 * 30 is a hair over 3
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


Selector = Callable[..., Tensor]
"""(entropies (B, T), mask (B, T), fraction, scope) -> selected tokens (B, T), within the mask."""
