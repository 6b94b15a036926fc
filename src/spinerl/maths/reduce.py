"""How per-token numbers become one number."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["masked_mean", "share_weights", "term_weights"]


def term_weights(mask: Bool[Tensor, "B T"], normalizer: Literal["token", "response"] = "token") -> Float[Tensor, "B T"]:
    """Weights of one loss term for one whole optimizer update: they sum to 1, or are all 0 for an empty mask.
    float64; the update casts them to the type it computes in.

    token: every selected token weighs the same.  response: every response with a selected token weighs the same
    and its tokens share its weight.  Since the weights are fixed before any split, a loss `sum(weights * term)`
    adds up to the same gradient under every micro-batch size.

    >>> mask = torch.tensor([[True, True, True], [True, False, False]])
    >>> term_weights(mask).tolist(), term_weights(mask, "response")[1].tolist()
    ([[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]], [0.5, 0.0, 0.0])
    """
    weights = mask.to(torch.float64)  # float32 sums would drift with the number of tokens
    if normalizer == "response":
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1.0)
    return weights / weights.sum().clamp_min(1e-300)


def share_weights(mask: Bool[Tensor, "B T"], num_tokens: int) -> Float[Tensor, "B T"]:
    """Weights of a term that is a mean over `num_tokens` tokens with the mask inside: mask / num_tokens; float64.

    They sum to the selected share rho: `term_weights(mask)` times rho, and so is the gradient.
    Source: SPINE, equations (10) and (12), E[m l] over all response tokens.

    >>> share_weights(torch.tensor([[True, False, False, False]]), 4).tolist()
    [[0.25, 0.0, 0.0, 0.0]]
    """
    return mask.to(torch.float64) / max(1, num_tokens)


def masked_mean(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> float:
    """Mean of the values where the mask is True; 0.0 for an empty mask.

    >>> masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    2.0
    """
    count = int(mask.sum())
    return float(values.double().masked_fill(~mask, 0.0).sum()) / count if count else 0.0
