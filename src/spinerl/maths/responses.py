"""From numbers per token to numbers per response, and the rewards made of only them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "low_entropy_reward",
    "response_means",
    "row_means",
    "self_certainty",
    "self_certainty_reward",
]


def response_means(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """The mean of each response's values over its own tokens; 0 for a response without tokens.

    Summed in float64, so that the last bits do not depend on how far the rows are padded.

    >>> response_means(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.tensor([[True, True], [True, False]])).tolist()
    [2.0, 5.0]
    """
    sums = values.double().masked_fill(~mask, 0.0).sum(dim=1)
    return (sums / mask.sum(dim=1).clamp_min(1)).to(values.dtype)


def row_means(values: Float[Tensor, " N *rest"], row_of: Int[Tensor, " N"], num_rows: int) -> Float[Tensor, " R *rest"]:
    """The same for tokens in a flat list: the mean of the values whose `row_of` is each row; 0 for a row without any.

    Values may be vectors: with the hidden states (N, d) at a micro-batch's tokens it gives an embedding of each
    response.  Carries a gradient.

    Args:
        row_of: each value's row, 0 <= row < num_rows.

    >>> row_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3).tolist()
    [2.0, 0.0, 5.0]
    """
    sums = values.new_zeros(num_rows, *values.shape[1:]).index_add(0, row_of, values)
    counts = torch.bincount(row_of, minlength=num_rows).clamp_min(1)
    return sums / counts.view(-1, *[1] * (values.dim() - 1)).to(values.dtype)


def self_certainty(log_dist: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """KL(uniform || pi) = - log V - (1/V) sum_v log pi_v, in nats, >= 0: how far from knowing nothing.

    Unlike the entropy it is ruled by the tokens that pi holds to be impossible.  V counts the tokens that pi can
    give at all: vocabulary masked to -inf is left out, where it would make the divergence infinite.  In float64
    inside, since the mean runs over the whole vocabulary.
    Source: self-certainty (arXiv 2502.18581); that masked vocabulary is left out is ours.

    >>> round(self_certainty(torch.log(torch.tensor([0.8, 0.2]))).item(), 4)  # ln(1 / (2 sqrt(0.8 * 0.2)))
    0.2231
    """
    possible = log_dist > -torch.inf
    size = possible.sum(dim=-1).double()
    mean = log_dist.double().masked_fill(~possible, 0.0).sum(dim=-1) / size
    return (-size.log() - mean).clamp_min(0.0).to(log_dist.dtype)


def low_entropy_reward(entropies: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Entropy minimisation as a reward: r_i = - mean_t H_{i,t}, in nats, <= 0; no vote is needed.

    A truncated response is rewarded like any other, and one that repeats itself has low entropy.  A response
    without tokens, which no sampler gives, gets 0.  As a loss the same aim needs no function: the term is
    `shannon_entropies` itself under `term_weights` of its own.
    Source: RENT (arXiv 2505.22660), EM-RL (arXiv 2505.15134, which sums where this takes the mean).

    >>> low_entropy_reward(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]])).tolist()
    [-2.0]
    """
    return -response_means(entropies, mask)


def self_certainty_reward(certainties: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """r_i = mean_t KL(uniform || pi_{i,t}), in nats, >= 0; no vote is needed.  0 for a response without tokens.

    Args:
        certainties: `self_certainty` of the distribution that each token was sampled from.

    Also the score of best-of-N by self-certainty (`spinerl.answers.best_of`).
    Source: INTUITOR (arXiv 2505.19590).

    >>> self_certainty_reward(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]])).tolist()
    [2.0]
    """
    return response_means(certainties, mask)
