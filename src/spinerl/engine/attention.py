"""Exchanging a model's attention function for one of ours, through transformers' `AttentionInterface`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["exchanged", "implementation", "refuse_unknown"]

_HARMLESS = {"cache_position", "is_causal", "logits_to_keep", "output_attentions", "position_ids", "use_cache"}


def implementation(model: PreTrainedModel) -> str | dict[str, Any]:
    """What `set_attn_implementation` takes to bring back the present state.  ValueError if it takes nothing."""
    config: Any = model.config
    if not getattr(model, "_can_set_attn_implementation", lambda: True)():
        raise ValueError("the attention function cannot be exchanged")
    parts = {name: getattr(config, name)._attn_implementation for name in config.sub_configs if getattr(config, name)}
    return {"": config._attn_implementation, **parts} if parts else config._attn_implementation


@contextmanager
def exchanged(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model with another attention function.  ValueError as for `implementation`."""
    ordinary = implementation(model)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(ordinary)


def refuse_unknown(others: Mapping[str, Any], attention_mask: torch.Tensor | None, dropout: float) -> None:
    """ValueError for what a model passes to its attention function beyond what ours heed."""
    unknown = {name for name, value in others.items() if value is not None} - _HARMLESS
    if unknown or attention_mask is not None or dropout:
        raise ValueError(f"attention with {sorted(unknown) or 'a mask or dropout'} is not known here")
