"""From the last hidden states to logits, for some positions at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

__all__ = ["CHUNK_BYTES", "chunks", "head_logits"]

CHUNK_BYTES = 64 * 2**20  # of logits in float32


def head_logits(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """Logits (N, V) of last hidden states (N, d).

    They come out of the model's own forward pass, its backbone answering with the given states, so that whatever
    the architecture does after the backbone (an output embedding, scaling, soft-capping) is done here too.
    """
    with _backbone_answers(model, states.unsqueeze(0)):
        return model(input_ids=torch.zeros(1, len(states), dtype=torch.int64, device=states.device)).logits[0]


def chunks(num_positions: int, vocabulary: int, limit: int = 0) -> Iterator[slice]:
    """Slices of at most `limit` positions; 0: as many as make 64 MiB of float32 logits."""
    limit = limit or max(1, CHUNK_BYTES // (4 * vocabulary))
    for start in range(0, num_positions, limit):
        yield slice(start, min(start + limit, num_positions))


class _Answer(torch.nn.Module):
    """Stands for a backbone: whatever it is asked, it answers with the states it was given."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self._states = states

    def forward(self, *_args: Any, **_kwargs: Any) -> _Output:
        return _Output(last_hidden_state=self._states)  # pyright: ignore[reportArgumentType]


class _Output(BaseModelOutputWithPastAndCrossAttentions):
    """With None for whatever else a model finds in its backbone's output (states of images, for one)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _backbone_answers(model: PreTrainedModel, states: torch.Tensor) -> Iterator[None]:
    name = model.base_model_prefix
    backbone = getattr(model, name)
    setattr(model, name, _Answer(states))
    try:
        yield
    finally:
        setattr(model, name, backbone)
