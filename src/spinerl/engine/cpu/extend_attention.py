"""Attention of responses that extend shared prompts: all responses to a question attend to one copy of its keys.

The ordinary way gives every response a copy of its prompt's keys and values and a mask.  Here all tokens of all
responses to a question attend to the prompt in one call without a mask, each response attends to itself under the
causal mask, and the two are combined as one softmax over both would be (logaddexp of the two log-sum-exps).  Backward,
each part gets the output and the log-sum-exp of the whole: attention probabilities are exp(score - lse) and their
derivative needs only the output, so that each part's gradient is its share of the whole one.

The kernel is PyTorch's flash attention for CPUs, called by its operator's name because `scaled_dot_product_attention`
does not return the log-sum-exp; or a compiled loop.  `spinerl.engine.cpu.backend` checks all this on the model at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import Cache

from spinerl.engine.attention import AttendingLayer
from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.activations import Reuse
from spinerl.engine.cpu.autograd import Function
from spinerl.models.capabilities import Unsupported

__all__ = ["ExtendLayer", "Span", "attend_compiled", "equal_strides", "extend_cache", "spans"]

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


def extend_cache(
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
    lengths: Sequence[int],
    rows: tuple[Span, ...],
    reuse: Reuse | None = None,
    compiled: bool = False,
) -> Cache:
    """A cache for one forward pass of rows that extend prompts.

    Args:
        layers: keys and values of the prompts, (Q, Hkv, L, D) each, padded on the right.
        lengths: the prompts' lengths, Q of them.
        reuse: may have attention's outputs, but for the rows' first tokens.
        compiled: whether to attend by `kernels.extend_attention`; float32 and heads of a multiple of 16 only.
    """
    parts = enumerate(layers)
    return Cache(layers=[ExtendLayer(*pair, lengths, rows, i, reuse, compiled) for i, pair in parts])


class ExtendLayer(AttendingLayer):
    """One layer's keys and values of the prompts, and during a pass those of the rows."""

    def __init__(
        self,
        prompt_keys: torch.Tensor,
        prompt_values: torch.Tensor,
        lengths: Sequence[int],
        rows: tuple[Span, ...],
        number: int,
        reuse: Reuse | None,
        compiled: bool,
    ) -> None:
        super().__init__()
        self.compiled = compiled and prompt_keys.shape[-1] % 16 == 0
        self.prompts = prompt_keys, prompt_values
        self.lengths = lengths
        self.rows = rows
        self._number = number
        self._reuse = reuse

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        self._own = key_states, value_states
        return self, self

    def get_seq_length(self) -> int:
        return max(self.lengths)

    def attend(self, query: torch.Tensor, scaling: float, softcap: float | None, window: int | None) -> torch.Tensor:
        if softcap or window:
            raise Unsupported("only plain causal attention extends prompts in this way")
        known = None if self._reuse is None else self._reuse.attention(self._number)
        attention = _CompiledAttention if self.compiled else _Attention
        output = attention.apply(query, *self._own, *self.prompts, self.lengths, self.rows, scaling, known)
        assert isinstance(output, torch.Tensor)
        return output


class _Attention(Function):
    """(R, T, H, D) for queries (R, H, T, D), the rows' keys and values (R, Hkv, T, D), the prompts' (Q, Hkv, L, D)."""

    @staticmethod
    def forward(
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
            output, lse = _attended(query, own, prompts, lengths, rows, scaling)
        else:
            output, lse = known
            firsts = tuple(tensor[:, :, :1] for tensor in own)
            found = _attended(query[:, :1].contiguous(), firsts, prompts, lengths, rows, scaling)
            output[:, :1], lse[:, :1] = found
        ctx.save_for_backward(query, keys, values, prompt_keys, prompt_values, output, lse)
        ctx.others = lengths, rows, scaling
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        query, keys, values, prompt_keys, prompt_values, output, lse = ctx.saved_tensors
        lengths, rows, scaling = ctx.others
        heads, kv_heads = query.shape[2], keys.shape[1]
        grad_output = grad_output.contiguous()
        all_keys, all_values = _repeated(keys, heads), _repeated(values, heads)
        grad_query, *grad_own = _flash_backward(
            grad_output, query, all_keys, all_values, output, lse, scaling, causal=True
        )
        grad_prompts = torch.zeros_like(prompt_keys), torch.zeros_like(prompt_values)
        for question, start, end in rows:
            length = lengths[question]
            grads, queries, outputs, all_lse = (_joined(t[start:end]) for t in (grad_output, query, output, lse))
            of_keys, of_values = (_repeated(t[question, :, :length][None], heads) for t in (prompt_keys, prompt_values))
            found, *grad_prompt = _flash_backward(
                grads, queries, of_keys, of_values, outputs, all_lse, scaling, causal=False
            )
            grad_query[start:end] += found.view_as(query[start:end])
            for whole, part in zip(grad_prompts, grad_prompt, strict=True):
                whole[question, :, :length] = _summed(part, kv_heads)[0]
        return (
            grad_query.transpose(1, 2),
            *(_summed(t, kv_heads) for t in grad_own),
            *grad_prompts,
            None,
            None,
            None,
            None,
        )


class _CompiledAttention(Function):
    """The same by a compiled loop, which repeats no key head for its query heads."""

    @staticmethod
    def forward(
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
        prompts = equal_strides(prompt_keys, prompt_values)
        job = kernels.ExtendAttention(queries, keys, values, *prompts, lengths, rows, scaling)
        output, lse = attend_compiled(job, known)
        ctx.save_for_backward(queries, keys, values, *prompts, output, lse)
        ctx.others = lengths, rows, scaling
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        queries, keys, values, prompt_keys, prompt_values, output, lse = ctx.saved_tensors
        lengths, rows, scaling = ctx.others
        job = kernels.ExtendAttention(queries, keys, values, prompt_keys, prompt_values, lengths, rows, scaling)
        found = kernels.extend_attention_backward(job, grad_output.contiguous(), output, lse)
        grad_rows = (grad.transpose(1, 2) for grad in found[:3])
        return *grad_rows, *found[3:], None, None, None, None


def equal_strides(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, as `kernels.ExtendAttention` takes them."""
    if keys.stride() == values.stride() and keys.stride(-1) == 1:
        return keys, values
    return keys.contiguous(), values.contiguous()


def attend_compiled(
    job: kernels.ExtendAttention, known: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`kernels.extend_attention`; `known` is its result but for the rows' first tokens, which are computed here."""
    if known is None:
        return kernels.extend_attention(job)
    output, lse = known
    heads = {name: getattr(job, name) for name in ("queries", "keys", "values")}
    flat = {name: tensor.view(-1, *tensor.shape[-2:])[job.first_tokens] for name, tensor in heads.items()}
    found = kernels.extend_attention(replace(job, **flat, row_starts=torch.arange(len(job.first_tokens) + 1)))
    for whole, part in zip((output, lse), found, strict=True):
        whole.view(-1, *part.shape[1:])[job.first_tokens] = part
    return output, lse


def _attended(
    query: torch.Tensor,
    own: tuple[torch.Tensor, ...],
    prompts: tuple[torch.Tensor, ...],
    lengths: Sequence[int],
    rows: tuple[Span, ...],
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (R, T, H, D) and log-sum-exp (R, T, H) of queries (R, T, H, D), the rest as for `_Attention`."""
    heads = query.shape[2]
    own_keys, own_values = (_repeated(tensor, heads) for tensor in own)
    output, lse = _flash(query, own_keys, own_values, scaling, causal=True)
    for question, start, end in rows:
        of_keys, of_values = (_repeated(t[question, :, : lengths[question]][None], heads) for t in prompts)
        found, found_lse = _flash(_joined(query[start:end]), of_keys, of_values, scaling, causal=False)
        part, part_lse = output[start:end], lse[start:end]
        share = torch.sigmoid(found_lse.view_as(part_lse) - part_lse)
        part.lerp_(found.view_as(part), share.unsqueeze(-1).to(part.dtype))
        torch.logaddexp(part_lse, found_lse.view_as(part_lse), out=part_lse)
    return output, lse


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
    """Output (R, T, H, D) and log-sum-exp (R, T, H) of queries (R, T, H, D) to keys (R, H, n, D)."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, lse = operator(query.transpose(1, 2), keys, values, 0.0, causal, scale=scaling)
    return output.transpose(1, 2), lse.transpose(1, 2)


def _flash_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    scaling: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query (R, T, H, D), keys and values (R, H, n, D)."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    of_heads = (t.transpose(1, 2) for t in (grad_output, query))
    results = (t.transpose(1, 2) for t in (output, lse))
    grad_query, grad_keys, grad_values = operator(*of_heads, keys, values, *results, 0.0, causal, scale=scaling)
    return grad_query.transpose(1, 2), grad_keys, grad_values
