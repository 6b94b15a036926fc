"""Teacher-forced passes over finished responses: scoring them, and learning from them.

Rows are laid out [prompt, response] from position 0 and padded on the right, where causal attention cannot see:
no attention mask is needed.  Each row ends just before its last wanted token, rows without one are not run, and
the language-model head works on wanted positions only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from spinerl.config import Config
from spinerl.engine.loading import LoadedModel
from spinerl.engine.optimiser import Optimiser
from spinerl.errors import NonFiniteError
from spinerl.maths import (
    band_penalty,
    clipped_surrogate,
    exact_kl,
    log_distribution,
    pick_logprobs,
    sampled_kl,
    shannon_entropies,
    term_weights,
)
from spinerl.types import Batch, Targets

__all__ = ["MicroBatch", "micro_batches", "score", "update", "wanted_logits"]


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a batch ready for one forward pass.  N is the number of wanted tokens among them.

    `row_of`, `column_of` (N,) say which cell of the (B, T) tensors each wanted token is; `input_ids` (b, L) are
    the padded rows; `place` (N,) is the flat position in (b, L) whose output predicts it.
    """

    row_of: torch.Tensor
    column_of: torch.Tensor
    input_ids: torch.Tensor
    place: torch.Tensor


def micro_batches(
    batch: Batch, wanted: torch.Tensor, pad_id: int, max_rows: int, max_tokens: int
) -> Iterator[MicroBatch]:
    """The rows that have a wanted token, longest first, cut so that each piece has at most `max_tokens` padded
    tokens (`max_rows` rows where that is given); a single longer row still goes alone."""
    if batch.tokens.shape[1] == 0:
        return
    columns = torch.arange(batch.tokens.shape[1])
    last = torch.where(wanted, columns, -1).amax(dim=1).tolist()
    # The output at position p predicts token p + 1: to predict response token t, the row needs t response tokens.
    lengths = {row: len(batch.prompts[row]) + t for row, t in enumerate(last) if t >= 0}
    rows = sorted(lengths, key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(rows):
        width = lengths[rows[start]]
        count = max_rows or max(1, max_tokens // width)
        piece = rows[start : start + count]
        start += len(piece)
        ids = torch.full((len(piece), width), pad_id, dtype=torch.int64)
        for i, row in enumerate(piece):
            prompt = batch.prompts[row]
            ids[i, : len(prompt)] = torch.tensor(prompt)
            ids[i, len(prompt) : lengths[row]] = batch.tokens[row, : last[row]]
        local, column_of = wanted[piece].nonzero(as_tuple=True)
        row_of = torch.tensor(piece)[local]
        prompt_lengths = torch.tensor([len(batch.prompts[row]) for row in piece])
        yield MicroBatch(row_of, column_of, ids, local * width + prompt_lengths[local] + column_of - 1)


def wanted_logits(loaded: LoadedModel, micro: MicroBatch) -> torch.Tensor:
    """Logits (N, V) that predict the wanted tokens, the head being applied to those positions alone.

    The gathering happens in front of the model's own output embedding, so that whatever the architecture does
    to logits afterwards (scaling, soft-capping) still happens.
    """
    head = loaded.model.get_output_embeddings()
    place = micro.place.to(loaded.device)
    input_ids = micro.input_ids.to(loaded.device)
    if head is None:
        return loaded.model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1)[place]

    def gather(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0].flatten(0, 1)[place].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        return loaded.model(input_ids=input_ids, use_cache=False).logits[0]
    finally:
        handle.remove()


@torch.no_grad()
def score(
    loaded: LoadedModel, batch: Batch, wanted: torch.Tensor, max_rows: int = 0, max_tokens: int = 16384
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities, entropies) of the wanted tokens, both (B, T) on the CPU; 0.0 elsewhere.

    float32, or float64 for a float64 model.
    """
    dtype = torch.promote_types(loaded.model.dtype, torch.float32)
    logprobs = torch.zeros(batch.tokens.shape, dtype=dtype)
    entropies = torch.zeros(batch.tokens.shape, dtype=dtype)
    for micro in micro_batches(batch, wanted, loaded.pad_id, max_rows, max_tokens):
        log_dist = log_distribution(wanted_logits(loaded, micro), batch.temperature)
        cell = (micro.row_of, micro.column_of)
        tokens = batch.tokens[cell].to(loaded.device)
        logprobs[cell] = pick_logprobs(log_dist, tokens).cpu()
        entropies[cell] = shannon_entropies(log_dist).cpu()
    return logprobs, entropies


def update(
    loaded: LoadedModel,
    anchor: LoadedModel | None,
    batch: Batch,
    targets: Targets,
    optimiser: Optimiser,
    config: Config,
    rows: torch.Tensor,
) -> dict[str, float]:
    """One optimiser update from these rows (an index into the batch), and what it saw.

    L = - sum w_policy l_PPO + lambda_KL sum w_anchor l_KL + lambda_band sum w_band l_band, each term's weights
    fixed here for the whole update and summing to 1, so that the micro-batch size changes nothing.

    Raises NonFiniteError before the weights change, if the loss or the gradient is not finite.
    """
    chosen = torch.zeros(len(batch.tokens), 1, dtype=torch.bool)
    chosen[rows] = True
    normaliser = config.loss.normaliser
    policy_weights = term_weights(targets.policy_mask & chosen, normaliser)
    anchor_weights = _weights(targets.anchor_mask, chosen, config.anchor.weight, normaliser)
    band_weights = _weights(targets.band_mask, chosen, config.band.weight, normaliser)
    wanted = (policy_weights > 0) & (targets.advantages != 0)
    for weights in (anchor_weights, band_weights):
        if weights is not None:
            wanted = wanted | (weights > 0)

    sums = dict.fromkeys(("policy", "anchor", "band", "clipped", "log_ratio"), 0.0)
    max_log_ratio = 0.0
    optimiser.zero_grad()
    optim = config.optim
    loaded.model.train(config.model.gradient_checkpointing)
    for micro in micro_batches(batch, wanted, loaded.pad_id, optim.micro_batch_rows, optim.micro_batch_tokens):
        cell = (micro.row_of, micro.column_of)

        log_dist = log_distribution(wanted_logits(loaded, micro), batch.temperature)

        def at(tensor: torch.Tensor, cell: Any = cell, dtype: torch.dtype = log_dist.dtype) -> torch.Tensor:
            return tensor[cell].to(dtype).to(loaded.device)

        logprobs = pick_logprobs(log_dist, batch.tokens[cell].to(loaded.device))
        old, advantages, weights = at(targets.old_logprobs), at(targets.advantages), at(policy_weights)
        surrogate = clipped_surrogate(logprobs, old, advantages, config.loss.clip_low, config.loss.clip_high)
        policy = -(weights * surrogate).sum()
        loss = policy
        sums["policy"] += policy.item()
        if anchor_weights is not None:
            if config.anchor.estimator == "exact":
                assert anchor is not None
                with torch.no_grad():
                    anchor_logits = wanted_logits(anchor, micro)
                kl = exact_kl(log_dist, anchor_logits, batch.temperature)
            else:
                assert targets.anchor_logprobs is not None
                kl = sampled_kl(logprobs, at(targets.anchor_logprobs), config.anchor.estimator)
            term = (at(anchor_weights) * kl).sum()
            loss = loss + config.anchor.weight * term
            sums["anchor"] += term.item()
        if band_weights is not None:
            assert targets.band_low is not None
            assert targets.band_high is not None
            low, high = (at(edge, micro.row_of) for edge in (targets.band_low, targets.band_high))
            penalty = band_penalty(shannon_entropies(log_dist), low, high, config.band.shape)
            term = (at(band_weights) * penalty).sum()
            loss = loss + config.band.weight * term
            sums["band"] += term.item()
        if not math.isfinite(loss.item()):
            raise NonFiniteError(
                f"the loss is {loss.item()}: stopped before the update; lower optim.lr (now {optim.lr:g}) or "
                "use model.dtype=float32"
            )
        loss.backward()
        optimiser.collect()
        with torch.no_grad():
            log_ratio = logprobs - old
            limit = torch.where(advantages > 0, math.log1p(config.loss.clip_high), -math.log1p(-config.loss.clip_low))
            clipped = (log_ratio * advantages.sign() > limit) & (advantages != 0)
            sums["clipped"] += (weights * clipped).sum().item()
            sums["log_ratio"] += (weights * log_ratio.abs()).sum().item()
            on_policy = log_ratio[weights > 0].abs()
            max_log_ratio = max(max_log_ratio, on_policy.max().item() if on_policy.numel() else 0.0)
    loaded.model.eval()
    figures = {
        "loss/total": sums["policy"] + config.anchor.weight * sums["anchor"] + config.band.weight * sums["band"],
        "loss/policy": sums["policy"],
        "loss/clipped_frac": sums["clipped"],
        "loss/log_ratio": sums["log_ratio"],
        "loss/log_ratio_max": max_log_ratio,
    }
    if anchor_weights is not None:
        figures["loss/anchor"] = sums["anchor"]
    if band_weights is not None:
        figures["loss/band"] = sums["band"]
    return figures | optimiser.step()


def _weights(
    mask: torch.Tensor | None, chosen: torch.Tensor, coefficient: float, normaliser: str
) -> torch.Tensor | None:
    """A term's weights for this update, or None for a term that is off."""
    if mask is None or coefficient == 0.0:
        return None
    return term_weights(mask & chosen, normaliser)  # pyright: ignore[reportArgumentType]
