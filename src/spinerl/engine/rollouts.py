"""Responses that were sampled elsewhere, as the record that a step works on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spinerl.errors import RunError
from spinerl.types import Question, Rollout

__all__ = ["padded", "rollout_of"]


def rollout_of(
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    num_responses: int,
    responses: Sequence[Sequence[int]],
    finished: Sequence[bool],
    tokenizer: Any,
    pad_id: int,
) -> Rollout:
    """The record of these responses' token ids, question-major.  Log-probabilities and entropies are not known: 0.0.

    Args:
        finished: False for a response that was cut off by its token limit.

    Raises RunError where the number of responses is not `num_responses` for each question.
    """
    if len(responses) != len(questions) * num_responses:
        raise RunError(f"{len(responses)} responses to {len(questions)} questions, {num_responses} each")
    tokens = padded(responses, pad_id, torch.int64)
    lengths = torch.tensor([len(ids) for ids in responses])
    nothing = torch.zeros(tokens.shape)
    return Rollout(
        questions=tuple(questions),
        prompts=tuple(prompts),
        num_responses=num_responses,
        tokens=tokens,
        mask=torch.arange(tokens.shape[1]) < lengths.unsqueeze(1),
        logprobs=nothing,
        entropies=nothing,
        finished_mask=torch.tensor(list(finished), dtype=torch.bool),
        texts=tuple(tokenizer.batch_decode([list(ids) for ids in responses], skip_special_tokens=True)),
    )


def padded(rows: Sequence[Sequence[float]], padding: float, dtype: torch.dtype) -> torch.Tensor:
    """Rows of unequal length (B, T), padded on the right.

    >>> padded([[1, 2], [3]], 0, torch.int64).tolist()
    [[1, 2], [3, 0]]
    """
    width = max(map(len, rows), default=0)
    table = torch.full((len(rows), width), padding, dtype=dtype)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = torch.as_tensor(values, dtype=dtype)
    return table
