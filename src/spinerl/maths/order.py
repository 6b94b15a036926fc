"""In which order questions are adapted to, as far as their embeddings tell."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spinerl.maths.novelty import cosine_similarities

__all__ = ["nearest_first", "sift_order"]


def nearest_first(
    questions: Float[Tensor, "N d"], targets: Float[Tensor, "M d"], to: Literal["nearest", "mean"] = "nearest"
) -> Int[Tensor, " N"]:
    """The questions' indices, from the nearest to the target questions to the farthest.

    Nearness is the cosine to the nearest target, or with to="mean" the mean cosine to all of them.  Equal ones keep
    the given order.  A zero embedding has cosine 0 to everything.  No gradient.

    Args:
        questions: an embedding of each question that may be adapted to: one model's, for both.
        targets: of each question that is to be answered well, M >= 1; ValueError for none.

    Near copies of one target's neighbour follow each other; `sift_order` also lowers the worth of a question that
    resembles those picked before.

    >>> import torch
    >>> nearest_first(torch.tensor([[0.0, 1.0], [1.0, 0.1]]), torch.tensor([[1.0, 0.0]])).tolist()
    [1, 0]
    """
    if len(targets) == 0:
        raise ValueError("no target questions: nothing to be near to")
    similar = cosine_similarities(questions.detach(), targets.detach())
    nearness = similar.amax(dim=1) if to == "nearest" else similar.mean(dim=1)
    return nearness.argsort(descending=True, stable=True)


def sift_order(questions: Float[Tensor, "N d"], targets: Float[Tensor, "M d"], noise: float = 0.1) -> Int[Tensor, " N"]:
    """The questions' indices, each the one that tells most about the targets after those before it (SIFT).

    With k the inner product of unit embeddings, X the questions picked so far and `noise` lambda, the next question
    makes sum_a (k(a, a) - k_X(a)^T (K_X + lambda I)^-1 k_X(a)) over the targets a smallest: the variance that a
    Gaussian process has left there.  After each pick k(a, b) loses k(a, x) k(x, b) / (k(x, x) + lambda).  None is
    picked twice; equal ones keep the given order.  A zero embedding tells nothing.  No gradient, float64.
    Time O(N^2 (N + M)), memory O(N (N + M)).

    Args: as `nearest_first`; `noise` > 0.  Raises ValueError for no targets.
    Source: TTC-RL (arXiv 2510.04786), which picks by SIFT (arXiv 2410.08020) and may pick a question again.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    >>> sift_order(x, torch.tensor([[1.0, 0.0], [0.3, 1.0]])).tolist()
    [1, 2, 0]
    """
    if len(targets) == 0:
        raise ValueError("no target questions: nothing to tell about")
    if not noise > 0.0:
        raise ValueError(f"noise={noise}: allowed is noise > 0")
    own, aims = (torch.nn.functional.normalize(x.detach().double(), dim=1) for x in (questions, targets))
    among, across = own @ own.T, aims @ own.T  # (N, N), (M, N)
    left = torch.ones(len(own), dtype=torch.bool, device=own.device)
    order = []
    for _ in range(len(own)):
        spread = among.diagonal().clamp_min(0.0) + noise
        gain = (across.square().sum(dim=0) / spread).masked_fill(~left, -1.0)
        best = gain.max()
        pick = int((gain >= best - 1e-12).nonzero()[0])
        order.append(pick)
        left[pick] = False
        row, column = among[pick].clone(), across[:, pick].clone()
        across -= column.unsqueeze(1) * row / spread[pick]
        among -= row.unsqueeze(1) * row / spread[pick]
    return torch.tensor(order, dtype=torch.long)
