"""Exchanging a model's attention function for one of ours, through transformers' `AttentionInterface`.

Ours calls the cache: one of its layers takes the place of the keys and computes the attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from spinerl.models.capabilities import Unsupported

__all__ = ["ATTENTION", "AttendingLayer", "exchanged", "implementation"]

ATTENTION = "spinerl"
"""The name under which models find our attention function."""

_HARMLESS = {"cache_position", "is_causal", "logits_to_keep", "output_attentions", "position_ids", "use_cache"}


def implementation(model: PreTrainedModel) -> str | dict[str, Any]:
    """What `set_attn_implementation` takes to bring back the present state.  Unsupported if it takes nothing."""
    config: Any = model.config
    if not getattr(model, "_can_set_attn_implementation", lambda: True)():
        raise Unsupported("the attention function cannot be exchanged")
    parts = {name: getattr(config, name)._attn_implementation for name in config.sub_configs if getattr(config, name)}
    return {"": config._attn_implementation, **parts} if parts else config._attn_implementation


@contextmanager
def exchanged(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model with another attention function.  Unsupported as for `implementation`."""
    ordinary = implementation(model)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(ordinary)


class AttendingLayer(DynamicLayer):
    """What a model takes for a layer of its cache: its `update` returns itself twice, in place of keys and values."""

    def attend(self, query: torch.Tensor, scaling: float, softcap: float | None, window: int | None) -> torch.Tensor:
        """Attention's output (R, T, H, D) for queries (R, H, T, D).  Unsupported for what it cannot do."""
        raise NotImplementedError


def _attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: Any,
    _value: Any,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that models call by the name of `ATTENTION`, with an `AttendingLayer` for keys."""
    if not isinstance(key, AttendingLayer):
        raise Unsupported("this attention function needs a cache of its own")
    unknown = {name for name, value in others.items() if value is not None} - _HARMLESS
    if unknown or attention_mask is not None or dropout:
        raise Unsupported(f"attention with {sorted(unknown) or 'a mask or dropout'} is not known here")
    return key.attend(query, scaling or query.shape[-1] ** -0.5, softcap, sliding_window), None


AttentionInterface.register(ATTENTION, _attention)
