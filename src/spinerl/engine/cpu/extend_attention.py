"""Attention of responses that continue shared prompts: a prompt's keys are met once by all its responses.

The ordinary way gives every response a copy of its prompt's keys and values and a mask.  Here all tokens of all
responses to a question meet the prompt in one call without a mask, each response meets itself under the causal
mask, and the two are weighed as one softmax over both would (logaddexp of the two normalisers).  Backward, each
part gets the output and the normaliser of the whole: attention probabilities are exp(score - normaliser) and their
derivative needs the output alone, so that each part's gradient is its share of the whole one.

The kernel is PyTorch's flash attention for CPUs, called by its operator's name because `scaled_dot_product_attention`
keeps the normaliser to itself.  `passes` tries all this on the model at hand before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import Cache

from spinerl.engine.attention import AttendingLayer
from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.activations import Replay

__all__ = ["ContinuedLayer", "Span", "attend_compiled", "continued_cache", "laid_out_alike", "spans"]

Span = tuple[int, int, int]
"""A prompt's number, and where its rows begin and end."""


def spans(prefix_of: torch.Tensor) -> tuple[Span, ...]:
    """The rows of each prompt, for `prefix_of` (R,) in which a prompt's rows stand together.

    >>> spans(torch.tensor([2, 2, 0]))
    ((2, 0, 2), (0, 2, 3))
    """
    numbers, counts = torch.unique_consecutive(prefix_of, return_counts=True)
    ends = counts.cumsum(0)
    return tuple(zip(numbers.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True))


def continued_cache(
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
    lengths: Sequence[int],
    rows: tuple[Span, ...],
    replay: Replay | None = None,
    compiled: bool = False,
) -> Cache:
    """A cache for one forward pass of rows that continue prompts.

    Args:
        layers: keys and values of the prompts, (Q, Hkv, L, D) each, padded on the right.
        lengths: the prompts' lengths, Q of them.
        replay: may know what attention puts out, but for the rows' first tokens.
        compiled: whether to attend by `kernels.extend_attention`; float32 and heads of a multiple of 16 alone.
    """
    parts = enumerate(layers)
    return Cache(layers=[ContinuedLayer(*pair, lengths, rows, i, replay, compiled) for i, pair in parts])


class ContinuedLayer(AttendingLayer):
    """One layer's keys and values of the prompts, and during a pass those of the rows."""

    def __init__(
        self,
        prompt_keys: torch.Tensor,
        prompt_values: torch.Tensor,
        lengths: Sequence[int],
        rows: tuple[Span, ...],
        number: int,
        replay: Replay | None,
        compiled: bool,
    ) -> None:
        super().__init__()
        self.compiled = compiled and prompt_keys.shape[-1] % 16 == 0
        self.prompts = prompt_keys, prompt_values
        self.lengths = lengths
        self.rows = rows
        self._number = number
        self._replay = replay

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        self._own = key_states, value_states
        return self, self

    def get_seq_length(self) -> int:
        return max(self.lengths)

    def attend(self, query: torch.Tensor, scaling: float, softcap: float | None, window: int | None) -> torch.Tensor:
        if softcap or window:
            raise ValueError("only plain causal attention continues prompts in this way")
        known = None if self._replay is None else self._replay.attention(self._number)
        attention = _CompiledAttention if self.compiled else _Attention
        output = attention.apply(query, *self._own, *self.prompts, self.lengths, self.rows, scaling, known)
        assert isinstance(output, torch.Tensor)
        return output


class _Attention(torch.autograd.Function):
    """(R, T, H, D) for queries (R, H, T, D), the rows' keys and values (R, Hkv, T, D), the prompts' (Q, Hkv, L, D)."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        prompt_keys: torch.Tensor,
        prompt_values: torch.Tensor,
        lengths: Sequence[int],
        rows: tuple[Span, ...],
        scaling: float,
        known: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        query = query.transpose(1, 2).contiguous()  # (R, T, H, D): a question's tokens lie in one stretch
        own, prompts = (keys, values), (prompt_keys, prompt_values)
        if known is None:
            output, total = _attended(query, own, prompts, lengths, rows, scaling)
        else:
            output, total = known
            firsts = tuple(tensor[:, :, :1] for tensor in own)
            found = _attended(query[:, :1].contiguous(), firsts, prompts, lengths, rows, scaling)
            output[:, :1], total[:, :1] = found
        ctx.save_for_backward(query, keys, values, prompt_keys, prompt_values, output, total)
        ctx.others = lengths, rows, scaling
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, keys, values, prompt_keys, prompt_values, output, total = ctx.saved_tensors
        lengths, rows, scaling = ctx.others
        heads, kv_heads = query.shape[2], keys.shape[1]
        gradient = gradient.contiguous()
        all_keys, all_values = _repeated(keys, heads), _repeated(values, heads)
        by_query, *by_own = _flash_backward(gradient, query, all_keys, all_values, output, total, scaling, causal=True)
        by_prompts = torch.zeros_like(prompt_keys), torch.zeros_like(prompt_values)
        for question, start, end in rows:
            length = lengths[question]
            slopes, queries, outputs, totals = (_joined(t[start:end]) for t in (gradient, query, output, total))
            of_keys, of_values = (_repeated(t[question, :, :length][None], heads) for t in (prompt_keys, prompt_values))
            found, *by_prompt = _flash_backward(
                slopes, queries, of_keys, of_values, outputs, totals, scaling, causal=False
            )
            by_query[start:end] += found.view_as(query[start:end])
            for whole, part in zip(by_prompts, by_prompt, strict=True):
                whole[question, :, :length] = _summed(part, kv_heads)[0]
        return by_query.transpose(1, 2), *(_summed(t, kv_heads) for t in by_own), *by_prompts, None, None, None, None


class _CompiledAttention(torch.autograd.Function):
    """The same by a compiled loop, which repeats no key for the queries it serves."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        prompt_keys: torch.Tensor,
        prompt_values: torch.Tensor,
        lengths: Sequence[int],
        rows: tuple[Span, ...],
        scaling: float,
        known: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        queries, keys, values = (tensor.transpose(1, 2).contiguous() for tensor in (query, keys, values))
        prompts = laid_out_alike(prompt_keys, prompt_values)
        job = kernels.ExtendAttention(queries, keys, values, *prompts, lengths, rows, scaling)
        output, total = attend_compiled(job, known)
        ctx.save_for_backward(queries, keys, values, *prompts, output, total)
        ctx.others = lengths, rows, scaling
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        queries, keys, values, prompt_keys, prompt_values, output, total = ctx.saved_tensors
        lengths, rows, scaling = ctx.others
        job = kernels.ExtendAttention(queries, keys, values, prompt_keys, prompt_values, lengths, rows, scaling)
        found = kernels.extend_attention_backward(job, gradient.contiguous(), output, total)
        by_rows = (slopes.transpose(1, 2) for slopes in found[:3])
        return *by_rows, *found[3:], None, None, None, None


def laid_out_alike(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, as `kernels.ExtendAttention` takes them."""
    if keys.stride() == values.stride() and keys.stride(-1) == 1:
        return keys, values
    return keys.contiguous(), values.contiguous()


def attend_compiled(
    job: kernels.ExtendAttention, known: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`kernels.extend_attention`; `known` is its result but for the rows' first tokens, which are put in."""
    if known is None:
        return kernels.extend_attention(job)
    output, total = known
    heads = {name: getattr(job, name) for name in ("queries", "keys", "values")}
    flat = {name: tensor.view(-1, *tensor.shape[-2:])[job.first_tokens] for name, tensor in heads.items()}
    found = kernels.extend_attention(replace(job, **flat, row_starts=torch.arange(len(job.first_tokens) + 1)))
    for whole, part in zip((output, total), found, strict=True):
        whole.view(-1, *part.shape[1:])[job.first_tokens] = part
    return output, total


def _attended(
    query: torch.Tensor,
    own: tuple[torch.Tensor, ...],
    prompts: tuple[torch.Tensor, ...],
    lengths: Sequence[int],
    rows: tuple[Span, ...],
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (R, T, H, D) and normaliser (R, T, H) of queries (R, T, H, D), the rest as for `_Attention`."""
    heads = query.shape[2]
    own_keys, own_values = (_repeated(tensor, heads) for tensor in own)
    output, total = _flash(query, own_keys, own_values, scaling, causal=True)
    for question, start, end in rows:
        of_keys, of_values = (_repeated(t[question, :, : lengths[question]][None], heads) for t in prompts)
        found, found_total = _flash(_joined(query[start:end]), of_keys, of_values, scaling, causal=False)
        part, part_total = output[start:end], total[start:end]
        share = torch.sigmoid(found_total.view_as(part_total) - part_total)
        part.lerp_(found.view_as(part), share.unsqueeze(-1).to(part.dtype))
        torch.logaddexp(part_total, found_total.view_as(part_total), out=part_total)
    return output, total


def _joined(tensor: torch.Tensor) -> torch.Tensor:
    """(n, T, ...) as one row (1, n * T, ...)."""
    return tensor.flatten(0, 1).unsqueeze(0)


def _repeated(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """(R, Hkv, T, D) with each key head once for every query head it serves: (R, H, T, D)."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


def _summed(tensor: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """The gradient of `_repeated`: (R, H, T, D) to (R, Hkv, T, D)."""
    return tensor if tensor.shape[1] == kv_heads else tensor.unflatten(1, (kv_heads, -1)).sum(2)


def _flash(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (R, T, H, D) and normaliser (R, T, H) of queries (R, T, H, D) that meet keys (R, H, n, D)."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, total = operator(query.transpose(1, 2), keys, values, 0.0, causal, scale=scaling)
    return output.transpose(1, 2), total.transpose(1, 2)


def _flash_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    total: torch.Tensor,
    scaling: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query (R, T, H, D), keys and values (R, H, n, D)."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    of_heads = (t.transpose(1, 2) for t in (gradient, query))
    results = (t.transpose(1, 2) for t in (output, total))
    by_query, by_keys, by_values = operator(*of_heads, keys, values, *results, 0.0, causal, scale=scaling)
    return by_query.transpose(1, 2), by_keys, by_values
