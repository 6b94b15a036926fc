"""Token selectors to compare forks against: if these do as well, it is not the forks that matter."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spinerl.maths.forks import Selector, all_tokens_mask, first_tokens_mask, otsu_mask, top_entropy_mask

__all__ = ["SELECTORS", "low_entropy_mask", "random_mask"]


def low_entropy_mask(
    entropies: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    fraction: float,
    scope: Literal["response", "batch"] = "response",
) -> Bool[Tensor, "B T"]:
    """The ceil(fraction * n) *lowest* entropies among a response's n tokens, or the batch's: followers only.

    Count, ties and scope are `top_entropy_mask`'s.  Source: after the control of the 80/20 rule, which trains on the
    lower 80 % (arXiv 2506.01939).

    >>> low_entropy_mask(torch.tensor([[0.1, 0.9, 0.2]]), torch.ones(1, 3, dtype=torch.bool), 0.5).tolist()
    [[True, False, True]]
    """
    return top_entropy_mask(-entropies, mask, fraction, scope)


def random_mask(
    entropies: Float[Tensor, "B T"],  # noqa: ARG001 - every selector has the same shape
    mask: Bool[Tensor, "B T"],
    fraction: float,
    scope: Literal["response", "batch"] = "response",
) -> Bool[Tensor, "B T"]:
    """ceil(fraction * n) of a response's n tokens, or of the batch's, picked without looking at them.

    A fixed scramble of (row, column) ranks the tokens: no stream is drawn from and no state kept, so that a run can
    be resumed and padding changes nothing.  The price is that the same cells are picked in every step.  Ours.

    >>> random_mask(torch.zeros(1, 6), torch.ones(1, 6, dtype=torch.bool), 0.5).sum().item()
    3
    """
    rows, columns = (torch.arange(size, device=mask.device) for size in mask.shape)
    ranks = _scramble(_scramble(rows + 1).unsqueeze(1) ^ (columns + 1))
    return top_entropy_mask(ranks.to(torch.float64), mask, fraction, scope)


SELECTORS: dict[str, Selector] = {
    "top-entropy": top_entropy_mask,
    "otsu": otsu_mask,
    "all": all_tokens_mask,
    "first": first_tokens_mask,
    "low-entropy": low_entropy_mask,
    "random": random_mask,
}
"""Selectors by the name configurations use."""


def _scramble(numbers: Tensor) -> Tensor:
    """31 bits that look random, by the multipliers of MurmurHash3's finaliser; no product leaves 64-bit integers."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        numbers = ((numbers ^ (numbers >> shift)) * factor) & 0x7FFFFFFF
    return numbers ^ (numbers >> 16)
