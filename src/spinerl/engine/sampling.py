"""Sampling one token per row from logits, with its log-probability and the entropy of its distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from spinerl.config import RolloutConfig
from spinerl.machine import to_device
from spinerl.maths import kept_log_mass, log_distribution, self_certainty
from spinerl.models.loading import LoadedModel

__all__ = ["Sampled", "Truncation", "log_mass_with", "sample", "truncation_of", "unwritable"]

Truncation = Callable[[torch.Tensor], torch.Tensor]
"""Scores (R, V) -> the same with -inf for the tokens that may not be sampled."""

# Elements of logits worked on at once.  On a CPU the later passes over a chunk then find it in the cache.
_CHUNK_ON_CPU, _CHUNK = 2**20, 2**26
_FEW = 1024  # a vocabulary so small is searched directly
_BLOCK = 128  # neighbouring tokens whose probabilities are added up before the sampled one is looked for
_IMPOSSIBLE = -1e4  # stands for -inf: 0 * -inf is nan, and exp(-1e4) is 0 in every float type


class Sampled(NamedTuple):
    """One token per row: `tokens` (R,) int64; `logprobs`, `entropies` (R,) in nats, float32 or better; `certainties`
    (R,), or (0,) where they are not asked for; `log_mass` (R,), the log-probability of the tokens that could be
    sampled, or (0,) where all could."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    certainties: torch.Tensor
    log_mass: torch.Tensor


def truncation_of(rollout: RolloutConfig, loaded: LoadedModel) -> Truncation | None:
    """Top-k, then top-p, then min-p, and no token that stands for an image; None where every token may be sampled.

    vLLM takes min-p first, so that top-p is of what that leaves: where another sampler is used, that is the order.
    """
    warpers = LogitsProcessorList()
    if rollout.top_k:
        warpers.append(TopKLogitsWarper(rollout.top_k))
    if rollout.top_p < 1.0:
        warpers.append(TopPLogitsWarper(rollout.top_p))
    if rollout.min_p > 0.0:
        warpers.insert(0 if loaded.sampler else len(warpers), MinPLogitsWarper(rollout.min_p))
    images = unwritable(loaded)
    if not warpers:
        return images
    return lambda scores: warpers(torch.empty(0), images(scores) if images else scores)  # pyright: ignore


def unwritable(loaded: LoadedModel) -> Truncation | None:
    """Keeps a vision-language model from writing tokens that stand for images."""
    if loaded.vision is None:
        return None
    ids = to_device(torch.tensor(loaded.vision.placeholder_ids), loaded.device)
    return lambda scores: scores.index_fill(1, ids, float("-inf"))


def log_mass_with(logits: torch.Tensor, tokens: torch.Tensor, temperature: float, truncate: Truncation) -> torch.Tensor:
    """log S (N,) of the truncated distribution that each token (N,) was sampled from, with a gradient.

    The sampled token counts as kept: after an update, or by rounding, it may lie just outside.
    """
    log_dist = log_distribution(logits, temperature)
    kept = truncate(log_dist.detach()).isfinite().scatter(1, tokens.unsqueeze(1), True)
    return kept_log_mass(log_dist, kept)


def sample(
    logits: torch.Tensor,
    temperature: float,
    uniforms: torch.Tensor | None,
    truncate: Truncation | None = None,
    certainties: bool = False,
) -> Sampled:
    """One token for each row of `logits` (R, V).

    The figures are those of softmax(logits / temperature), as `spinerl.maths.log_distribution`, `pick_logprobs`
    and `shannon_entropies` define them, also where `truncate` keeps tokens from being sampled.

    Args:
        uniforms: (R,) numbers in [0, 1): a row's token is the first whose cumulative probability exceeds its
            number.  None: the likeliest token.
        certainties: whether to take `spinerl.maths.self_certainty` too, which costs passes over the vocabulary.
    """
    rows, vocab_size = logits.shape
    step = max(1, (_CHUNK_ON_CPU if logits.device.type == "cpu" else _CHUNK) // vocab_size)
    chunks = [
        _sample_chunk(
            logits[a : a + step],
            temperature,
            None if uniforms is None else uniforms[a : a + step],
            truncate,
            certainties,
        )
        for a in range(0, rows, step)
    ]
    return chunks[0] if len(chunks) == 1 else Sampled(*map(torch.cat, zip(*chunks, strict=True)))


def _sample_chunk(
    logits: torch.Tensor,
    temperature: float,
    uniforms: torch.Tensor | None,
    truncate: Truncation | None,
    certainties: bool,
) -> Sampled:
    scores = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1.0:
        scores = scores / temperature
    probabilities = torch.softmax(scores, dim=-1)
    allowed = scores if truncate is None else truncate(scores)
    if uniforms is None:
        tokens = allowed.argmax(dim=-1, keepdim=True)
    elif truncate is None:
        tokens = _inverse_cdf(probabilities, uniforms.unsqueeze(1))
    else:
        tokens = _inverse_cdf(torch.softmax(allowed, dim=-1), uniforms.unsqueeze(1))
    # With x = scores - max and Z = sum_v exp x_v: log p = x - log Z and H = log Z - sum_v p_v x_v.  The likeliest
    # token has x = 0, so that log Z is found without another pass of exponentials.  Over a large vocabulary
    # softmax misses a sum of 1 by more than the rounding of one number; dividing by the sum mends that.
    top = scores.amax(dim=-1, keepdim=True)
    mass = probabilities.sum(dim=-1, keepdim=True)
    log_z = (mass / probabilities.amax(dim=-1, keepdim=True)).log()
    logprobs = scores.gather(1, tokens) - top - log_z
    mean = (scores - top).clamp_min_(_IMPOSSIBLE).mul_(probabilities).sum(dim=-1, keepdim=True) / mass
    log_mass = scores.new_empty(0)
    if truncate is not None and uniforms is not None:
        log_mass = (allowed.logsumexp(dim=-1) - (top + log_z).squeeze(1)).clamp_max_(0.0)
    certain = self_certainty(torch.log_softmax(scores, dim=-1)) if certainties else scores.new_empty(0)
    return Sampled(tokens.squeeze(1), logprobs.squeeze(1), (log_z - mean).squeeze(1), certain, log_mass)


def _inverse_cdf(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The first token (R, 1) whose cumulative probability exceeds its row's number.

    Probabilities are (R, V), uniforms (R, 1).  Over a large vocabulary a running sum is the slowest pass there is;
    so the token's block is found among sums of blocks, which are few, and then its position in the block.
    """
    vocab_size = probabilities.shape[1]
    if vocab_size <= _FEW:
        cumulative = probabilities.cumsum(-1)
        return _first_above(cumulative, uniforms * cumulative[:, -1:])
    whole = vocab_size // _BLOCK * _BLOCK
    sums = probabilities[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1)
    cumulative = torch.cat([sums, probabilities[:, whole:].sum(-1, keepdim=True)], dim=1).cumsum(-1)
    target = uniforms * cumulative[:, -1:]
    block = _first_above(cumulative, target)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp_min(0)), 0)
    index = block * _BLOCK + torch.arange(_BLOCK, device=block.device)
    inside = (probabilities.gather(1, index.clamp_max(vocab_size - 1)) * (index < vocab_size)).cumsum(-1)
    return block * _BLOCK + _first_above(inside, target - before)


def _first_above(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Where a running sum (R, n) first exceeds its row's target (R, 1); where it last grows, if it never does.

    It grows there, so that a token of probability 0 is never the one.  Sums that are not numbers give a position too.
    """
    total = cumulative[:, -1:]
    below = torch.minimum(target, torch.nextafter(total, -total))
    return torch.searchsorted(cumulative, below, right=True).clamp_max_(cumulative.shape[1] - 1)
