"""In which order questions are adapted to, as far as their embeddings tell."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from spinerl.maths.novelty import cosine_similarities

__all__ = ["nearest_first"]


def nearest_first(
    questions: Float[Tensor, "N d"], targets: Float[Tensor, "M d"], to: Literal["nearest", "mean"] = "nearest"
) -> Int[Tensor, " N"]:
    """The questions' indices, from the nearest to the target questions to the farthest.

    Nearness is the cosine to the nearest target, or with to="mean" the mean cosine to all of them.  Equal ones keep
    the given order.  A zero embedding has cosine 0 to everything.  No gradient.

    Args:
        questions: an embedding of each question that may be adapted to: one model's, for both.
        targets: of each question that is to be answered well, M >= 1; ValueError for none.

    Source: TTC-RL (arXiv 2510.04786) picks training questions so.  Simplified: its SIFT also lowers the worth of a
    question that resembles those picked before; here near copies of one target's neighbour follow each other.

    >>> import torch
    >>> nearest_first(torch.tensor([[0.0, 1.0], [1.0, 0.1]]), torch.tensor([[1.0, 0.0]])).tolist()
    [1, 0]
    """
    if len(targets) == 0:
        raise ValueError("no target questions: nothing to be near to")
    similar = cosine_similarities(questions.detach(), targets.detach())
    nearness = similar.amax(dim=1) if to == "nearest" else similar.mean(dim=1)
    return nearness.argsort(descending=True, stable=True)
