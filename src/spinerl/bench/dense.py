"""The update as it is usually written: logits of every response token at once.  Shares no code with ours."""

from __future__ import annotations

from typing import Any

import torch

from spinerl.config import Config
from spinerl.types import Batch, Targets

__all__ = ["dense_loss", "dense_update"]

_SLACK = 1e-4  # nats that a token may be outside of the band (docs/method.md)


def dense_loss(model: Any, batch: Batch, targets: Targets, config: Config) -> torch.Tensor:
    """The loss of one update from all rows, a scalar with a graph.

    All rows go through the model together.  Logits are computed for the response tokens (B, T, V) and not for the
    prompt, as good implementations do; entropies and log-probabilities for all of them, the selection comes last.
    Raises ValueError for prompts of different lengths or an anchor: the benchmark has neither.
    """
    lengths = {len(prompt) for prompt in batch.prompts}
    if len(lengths) != 1 or config.anchor.weight:
        raise ValueError("the dense update takes prompts of one length and no anchor")
    device = next(model.parameters()).device
    responses = batch.tokens.to(device)
    num_new = responses.shape[1]
    ids = torch.cat([torch.tensor(batch.prompts, device=device), responses], dim=1)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=num_new + 1).logits[:, :-1]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_dist = torch.log_softmax(logits.to(dtype) / batch.temperature, dim=-1)
    entropies = -(log_dist.exp() * log_dist).sum(-1)
    logprobs = log_dist.gather(-1, responses.unsqueeze(-1)).squeeze(-1)

    def on_device(tensor: torch.Tensor | None) -> torch.Tensor:
        assert tensor is not None
        return tensor.to(device=device, dtype=dtype)

    selected = on_device(targets.policy_mask)
    advantages = on_device(targets.advantages)
    ratio = torch.exp(logprobs - on_device(targets.old_logprobs))
    clipped = ratio.clamp(1 - config.loss.clip_low, 1 + config.loss.clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    loss = -(selected * surrogate).sum() / selected.sum()
    if config.band.coefficient:
        banded = on_device(targets.band_mask)
        low, high = on_device(targets.band_low).unsqueeze(1), on_device(targets.band_high).unsqueeze(1)
        over, under = entropies - high, low - entropies
        weight_low, weight_high = config.band.weights
        outside = weight_high * torch.where(over > _SLACK, over, 0.0) + weight_low * torch.where(
            under > _SLACK, under, 0.0
        )
        loss = loss + (banded * outside).sum() / banded.sum()
    return loss


def dense_update(model: Any, batch: Batch, targets: Targets, optimizer: Any, config: Config) -> float:
    """One optimizer update by `dense_loss`; returns the loss."""
    optimizer.zero_grad()
    loss = dense_loss(model, batch, targets, config)
    loss.backward()
    optimizer.collect()
    optimizer.step()
    return loss.item()
