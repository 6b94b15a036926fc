"""Sampling groups of responses, with the log-probability and entropy of every token as it is drawn.

One prefill per distinct prompt, shared by its responses; finished rows leave the batch.  Each response draws
from a random stream of its own, named by (seed, purpose, question, response), so that what it says does not
depend on which rows are sampled beside it, up to floating-point ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from spinerl.config import RolloutConfig
from spinerl.engine.cache import new_cache
from spinerl.engine.loading import LoadedModel
from spinerl.maths import log_distribution, pick_logprobs, shannon_entropies
from spinerl.seeding import seed_of
from spinerl.types import Question, Rollout

__all__ = ["greedy_responses", "sample_responses"]

_COMPACT_BELOW = 0.75  # drop finished rows once this share or less is still going: a copy costs about one token


@dataclass
class _Rows:
    """What sampling some questions yields, on the CPU, rows question-major."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    lengths: torch.Tensor
    finished: torch.Tensor


def sample_responses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    num_responses: int,
    rollout: RolloutConfig,
    seed: tuple[object, ...],
    on_tokens: Callable[[int], None] | None = None,
) -> Rollout:
    """`num_responses` sampled responses to each question.

    Log-probabilities and entropies are those of softmax(logits / temperature) before top-k, top-p and min-p, so
    that they equal what a forward pass over the finished text gives.

    Args:
        seed: names the random streams; equal seeds give equal responses.
        on_tokens: called with the number of tokens drawn, now and then, for progress displays.
    """
    warpers = LogitsProcessorList()
    if rollout.top_k:
        warpers.append(TopKLogitsWarper(rollout.top_k))
    if rollout.top_p < 1.0:
        warpers.append(TopPLogitsWarper(rollout.top_p))
    if rollout.min_p > 0.0:
        warpers.append(MinPLogitsWarper(rollout.min_p))

    def choose(log_dist: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        scores = warpers(torch.empty(0), log_dist) if len(warpers) else log_dist  # pyright: ignore
        return _inverse_cdf(scores, uniforms)

    return _respond(
        loaded,
        questions,
        prompts,
        num_responses,
        rollout.max_new_tokens,
        rollout.max_rows,
        rollout.temperature,
        choose,
        seed,
        on_tokens,
    )


def greedy_responses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    rollout: RolloutConfig,
    on_tokens: Callable[[int], None] | None = None,
) -> Rollout:
    """The likeliest token at every position, one response per question; figures are at temperature 1."""
    return _respond(
        loaded,
        questions,
        prompts,
        1,
        rollout.max_new_tokens,
        rollout.max_rows,
        1.0,
        lambda log_dist, _: log_dist.argmax(dim=-1),
        None,
        on_tokens,
    )


_Choose = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _respond(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    num_responses: int,
    max_new_tokens: int,
    max_rows: int,
    temperature: float,
    choose: _Choose,
    seed: tuple[object, ...] | None,
    on_tokens: Callable[[int], None] | None,
) -> Rollout:
    limit = max_new_tokens
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths together: little padding
    per_chunk = max(1, max_rows // num_responses)
    parts: dict[int, tuple[_Rows, int]] = {}
    for start in range(0, len(order), per_chunk):
        chunk = order[start : start + per_chunk]
        uniforms = None
        if seed is not None:
            uniforms = torch.stack(
                [_stream(limit, *seed, questions[i].id, j) for i in chunk for j in range(num_responses)]
            )
        rows = _sample_chunk(
            loaded,
            [prompts[i] for i in chunk],
            num_responses,
            limit,
            temperature,
            choose,
            uniforms,
            on_tokens,
        )
        for place, i in enumerate(chunk):
            parts[i] = (rows, place * num_responses)
    width = max((int(rows.lengths.max()) for rows, _ in parts.values()), default=0)

    def gather(name: str, padding: float) -> torch.Tensor:
        pieces = []
        for i in range(len(prompts)):
            rows, at = parts[i]
            piece = getattr(rows, name)[at : at + num_responses, :width]
            pieces.append(torch.nn.functional.pad(piece, (0, width - piece.shape[1]), value=padding))
        return torch.cat(pieces)

    lengths = torch.cat([rows.lengths[at : at + num_responses] for rows, at in (parts[i] for i in range(len(prompts)))])
    finished = torch.cat(
        [rows.finished[at : at + num_responses] for rows, at in (parts[i] for i in range(len(prompts)))]
    )
    tokens = gather("tokens", loaded.pad_id)
    mask = torch.arange(width).unsqueeze(0) < lengths.unsqueeze(1)
    texts = loaded.tokenizer.batch_decode(
        [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)], skip_special_tokens=True
    )
    return Rollout(
        questions=tuple(questions),
        prompts=tuple(prompts),
        num_responses=num_responses,
        tokens=tokens,
        mask=mask,
        logprobs=gather("logprobs", 0.0),
        entropies=gather("entropies", 0.0),
        finished_mask=finished,
        texts=tuple(texts),
    )


@torch.no_grad()
def _sample_chunk(
    loaded: LoadedModel,
    prompts: Sequence[tuple[int, ...]],
    num_responses: int,
    limit: int,
    temperature: float,
    choose: _Choose,
    uniforms: torch.Tensor | None,
    on_tokens: Callable[[int], None] | None,
) -> _Rows:
    model, device = loaded.model, loaded.device
    num_rows = len(prompts) * num_responses
    tokens = torch.full((num_rows, limit), loaded.pad_id, dtype=torch.int64, device=device)
    logprobs = torch.zeros(num_rows, limit, device=device)
    entropies = torch.zeros(num_rows, limit, device=device)
    lengths = torch.full((num_rows,), limit, device=device)
    finished = torch.zeros(num_rows, dtype=torch.bool, device=device)
    uniforms = torch.zeros(num_rows, limit) if uniforms is None else uniforms
    uniforms = uniforms.to(device)
    ends = torch.tensor(loaded.end_ids, dtype=torch.int64, device=device)

    # Prefill each distinct prompt once (padded on the left), then let its responses share the result.
    longest = max(len(prompt) for prompt in prompts)
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    padded = torch.tensor([[loaded.pad_id] * (longest - len(p)) + list(p) for p in prompts], device=device)
    attended = torch.arange(longest, device=device).unsqueeze(0) >= (longest - prompt_lengths).unsqueeze(1)
    positions = (attended.cumsum(1) - 1).clamp_min(0)
    even = bool(attended.all())  # no padding anywhere: the model may take its maskless path
    cache = new_cache(model.config)
    output = model(
        input_ids=padded,
        attention_mask=None if even else attended.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_repeat_interleave(num_responses)
    logits = output.logits[:, -1].repeat_interleave(num_responses, 0)
    next_position = prompt_lengths.repeat_interleave(num_responses)
    attended = attended.repeat_interleave(num_responses, 0)
    attended = torch.cat([attended, attended.new_ones(num_rows, limit)], dim=1).long()

    active = torch.arange(num_rows, device=device)  # row numbers still in the batch
    going = torch.ones(num_rows, dtype=torch.bool, device=device)  # of those, the ones not finished
    for t in range(limit):
        log_dist = log_distribution(logits, temperature)
        chosen = choose(log_dist, uniforms[active, t])
        live = active[going]
        tokens[live, t] = chosen[going]
        logprobs[live, t] = pick_logprobs(log_dist, chosen)[going].float()
        entropies[live, t] = shannon_entropies(log_dist)[going].float()
        ended = going & torch.isin(chosen, ends)
        lengths[active[ended]] = t + 1
        finished[active[ended]] = True
        going = going & ~ended
        num_going = int(going.sum())
        if on_tokens is not None:
            on_tokens(int(live.numel()))
        if num_going == 0 or t + 1 == limit:
            break
        if num_going <= _COMPACT_BELOW * len(active):
            keep = going.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            active, chosen, attended, next_position = (
                active[keep],
                chosen[keep],
                attended[keep],
                next_position[keep],
            )
            going = torch.ones(num_going, dtype=torch.bool, device=device)
        output = model(
            input_ids=chosen.unsqueeze(1),
            attention_mask=None if even else attended[:, : longest + t + 1],
            position_ids=next_position.unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
        next_position = next_position + 1
    return _Rows(tokens.cpu(), logprobs.cpu(), entropies.cpu(), lengths.cpu(), finished.cpu())


def _inverse_cdf(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token per row: the first whose cumulative probability exceeds that row's uniform number."""
    cumulative = torch.softmax(scores, dim=-1).cumsum(-1)
    total = cumulative[:, -1:]
    targets = torch.minimum(uniforms.unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1)


def _stream(length: int, *name: object) -> torch.Tensor:
    """`length` uniform numbers in [0, 1) that depend on nothing but the name."""
    return torch.rand(length, generator=torch.Generator().manual_seed(seed_of(*name)))
