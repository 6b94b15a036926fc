"""How different a response's reasoning is from the others'."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["consensus_scores", "cosine_similarities", "exploration_bonus", "novelty_scores"]


def cosine_similarities(a: Float[Tensor, "N d"], b: Float[Tensor, "M d"]) -> Float[Tensor, "N M"]:
    """cos(a_i, b_j) = a_i . b_j / (|a_i| |b_j|), in [-1, 1]; 0 with a zero vector.  In float64.

    >>> cosine_similarities(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])).tolist()
    [[1.0, 0.0]]
    """
    unit_a, unit_b = (torch.nn.functional.normalize(x.double(), dim=1) for x in (a, b))
    return (unit_a @ unit_b.T).clamp(-1.0, 1.0)


def consensus_scores(embeddings: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
    """s_i = mean over j of cos(e_i, e_j), j = i included, in [-1, 1]; float64.  The response of minimum Bayes risk has
    the highest.

    Source: SEALONG (arXiv 2411.08147), which embeds texts with a model made for it.

    >>> consensus_scores(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).sub(2 / 3).abs().argmin().item()
    0
    """
    return cosine_similarities(embeddings, embeddings).mean(dim=1)


def novelty_scores(embeddings: Float[Tensor, "N d"], sides: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """u_i = 1 - (mean of s_ij over the others on i's side + max of s_ij over all others) / 2, in [0, 1]; float64.

    s_ij is the cosine of the embeddings, negative ones counting as 0.  The mean separates a response from those that
    agree with it, the maximum finds a near copy anywhere.  With no other on its side, the mean is over all
    others; with no other at all u = 1/2.

    Args:
        embeddings: one vector per response to one question.
        sides: its side (`spinerl.answers.evol_sides`); a negative one takes no part, and its u is 0.

    Source: EVOL-RL (arXiv 2509.15194), which embeds the text with a model made for it.  Ours are the policy's own
    hidden states, averaged over the response (`row_means`): no second model is needed.  Such states lie close
    together, so their scores fill little of [0, 1]; `evol_reward` uses them only after scaling them inside a side.

    >>> novelty_scores(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1, 0])).tolist()
    [0.0, 0.0, 1.0]
    """
    present = sides >= 0
    similar = cosine_similarities(embeddings, embeddings).clamp_min(0.0)
    others = present & ~torch.eye(len(sides), dtype=torch.bool, device=sides.device)
    same = others & (sides.unsqueeze(1) == sides)
    compared = torch.where(same.any(dim=1, keepdim=True), same, others)
    mean = similar.masked_fill(~compared, 0.0).sum(dim=1) / compared.sum(dim=1).clamp_min(1)
    most = similar.masked_fill(~others, 0.0).amax(dim=1)
    scores = torch.where(others.any(dim=1), 1.0 - (mean + most) / 2, 0.5)
    return scores.clamp(0.0, 1.0) * present


def exploration_bonus(embeddings: Float[Tensor, "N d"], ridge: float = 0.1) -> Float[Tensor, " N"]:
    """h_i^T (ridge I + sum_j h_j h_j^T)^-1 h_i over the group, h scaled to length 1, in [0, 1); float64.

    High for a direction that few others have.  Computed from the Gram matrix K (N, N), as K (K + ridge I)^-1, which
    is the same number.

    Args: `ridge`, > 0.
    Source: representation-based exploration (arXiv 2510.11686); that states are scaled to length 1 is ours.

    >>> exploration_bonus(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).mul(1000).round().tolist()
    [476.0, 476.0, 909.0]
    """
    inner = cosine_similarities(embeddings, embeddings)
    return torch.linalg.solve(inner + ridge * torch.eye(len(inner), dtype=inner.dtype), inner).diagonal().clamp_min(0.0)
