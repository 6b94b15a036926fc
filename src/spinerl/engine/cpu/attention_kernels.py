"""The compiled loops for attention and for one token through a whole decoder; to be used through `kernels`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spinerl.engine.cpu.bindings import (
    DecodeAttentionArgs,
    DecoderStepArgs,
    ExtendAttentionArgs,
    LayerState,
    LayerWeights,
)
from spinerl.engine.cpu.calls import call, constants

__all__ = [
    "ExtendAttention",
    "LayerState",
    "LayerWeights",
    "decode_attention",
    "decoder_step",
    "extend_attention",
    "extend_attention_backward",
]

_INT64 = 8  # bytes


def decode_attention(
    queries: torch.Tensor,
    scaling: float,
    blocks: Sequence[tuple[torch.Tensor, torch.Tensor]],
    own_length: int,
    prompt_keys: torch.Tensor,
    prompt_values: torch.Tensor,
    prompt_lengths: torch.Tensor,
    tasks: torch.Tensor,
    order: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one new token per row to its question's prompt and to the row's own tokens.

    Returns the output (R, H, D) and the log-sum-exp of the scores (R, H).

    Args:
        queries: (R, H, D), D one of `kernels.head_dims()`; H a multiple of Hkv.
        blocks: keys and values of the rows' own tokens, (R or more, Hkv, size, D) each, `own_length` tokens in all, the
            new one included; size a multiple of 16.
        prompt_keys: (Q, Hkv, n, D, panel): `pack_panels` of each prompt's and head's keys.
        prompt_values: (Q, Hkv, L, D).
        prompt_lengths: (Q,) int64, at most L.
        tasks: (3, K) int64: a question, and where some of its rows begin in `order` and how many they are.
        order: (R,) int64, the rows by question.

    Raises ValueError for another D, MemoryError where there is no memory to work in.
    """
    rows, heads, head_dim = queries.shape
    out, lse = torch.empty_like(queries), queries.new_empty(rows, heads)
    pointers = ctypes.c_void_p * len(blocks)
    key_blocks = pointers(*(keys.data_ptr() for keys, _ in blocks))
    value_blocks = pointers(*(values.data_ptr() for _, values in blocks))
    args = DecodeAttentionArgs(
        num_rows=rows,
        num_heads=heads,
        num_kv_heads=prompt_keys.shape[1],
        queries=queries.data_ptr(),
        scale=scaling,
        block_size=blocks[0][0].shape[2],
        own_length=own_length,
        key_blocks=ctypes.addressof(key_blocks),
        value_blocks=ctypes.addressof(value_blocks),
        prompt_keys=prompt_keys.data_ptr(),
        prompt_values=prompt_values.data_ptr(),
        padded_length=prompt_keys.shape[2] * prompt_keys.shape[4],
        max_length=prompt_values.shape[2],
        prompt_lengths=prompt_lengths.data_ptr(),
        order=order.data_ptr(),
        out=out.data_ptr(),
        lse=lse.data_ptr(),
        **_task_args(tasks),
    )
    call("decode_attention", ctypes.byref(args), head_dim)
    return out, lse


def _task_args(tasks: torch.Tensor) -> dict[str, int]:
    """The fields for tasks (3, K) int64: question, first row, number of rows."""
    num_tasks, address = tasks.shape[1], tasks.data_ptr()
    return {
        "num_tasks": num_tasks,
        "task_question": address,
        "task_start": address + _INT64 * num_tasks,
        "task_count": address + 2 * _INT64 * num_tasks,
    }


def decoder_step(
    hidden_states: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    weights: Any,
    states: Any,
    sizes: tuple[int, int, int, int],
    eps: tuple[float, float],
    scaling: float,
    own_length: int,
    block_size: int,
    prompt_sizes: tuple[int, int],
    prompt_lengths: torch.Tensor,
    tasks: torch.Tensor,
    order: torch.Tensor,
    slot: int,
    final: tuple[torch.Tensor, float, torch.Tensor],
    logits: torch.Tensor,
    bf16: bool = False,
) -> None:
    """Take one new token per row through all layers, the last norm and the head; fills `logits`.

    Args:
        hidden_states: (R, d), the tokens' embeddings.
        cos, sin: (R, D), of the tokens' positions.
        weights, states: arrays of LayerWeights and LayerState, one for each layer.
        sizes: intermediate_size, heads, kv_heads, and head_dim, one of `kernels.head_dims()`.
        eps: of the norms, and of those of single heads.
        own_length: the rows' own tokens, the new one included; their keys and values are in blocks of `block_size`.
        prompt_sizes: columns of the prompts' packed keys, and rows of their values.
        prompt_lengths, tasks, order: as for `decode_attention`.
        slot: of the first row's saved activations; the others follow.
        final: the last norm's weight (d,) and eps, and the head, `pack_panels` of (V, d).
        logits: (R, V rounded up to whole panels).
        bf16: matrices were packed by `kernels.bf16_pack`, not `pack_panels`.

    Raises ValueError for another head_dim, MemoryError where there is no memory to work in.
    """
    intermediate_size, heads, kv_heads, head_dim = sizes
    norm, final_eps, lm_head = final
    args = DecoderStepArgs(
        num_layers=len(weights),
        hidden_size=hidden_states.shape[1],
        intermediate_size=intermediate_size,
        eps=eps[0],
        head_norm_eps=eps[1],
        weights=ctypes.addressof(weights),
        states=ctypes.addressof(states),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        hidden_states=hidden_states.data_ptr(),
        slot=slot,
        final_eps=final_eps,
        final_norm=norm.data_ptr(),
        lm_head=lm_head.data_ptr(),
        vocab_size=logits.shape[1],
        logits=logits.data_ptr(),
        bf16=int(bf16),
    )
    attention = DecodeAttentionArgs(
        num_rows=len(hidden_states),
        num_heads=heads,
        num_kv_heads=kv_heads,
        scale=scaling,
        block_size=block_size,
        own_length=own_length,
        padded_length=prompt_sizes[0],
        max_length=prompt_sizes[1],
        prompt_lengths=prompt_lengths.data_ptr(),
        order=order.data_ptr(),
        **_task_args(tasks),
    )
    call("decoder_step", ctypes.byref(args), ctypes.byref(attention), head_dim)


@dataclass(frozen=True)
class ExtendAttention:
    """Rows of tokens that continue prompts: what `extend_attention` computes with.

    Attributes:
        queries, keys, values: (R, T, H, D) and twice (R, T, Hkv, D), D a multiple of 16; or, with `row_starts`,
            (N, H, D) and twice (N, Hkv, D).
        prompt_keys, prompt_values: (Q, Hkv, L, D), contiguous in the last axis, with equal strides.
        prompt_lengths: Q of them, at most L.
        spans: questions, and where their rows begin and end: all rows, in order.
        row_starts: (R + 1,) int64: where rows of unequal lengths begin, and where the last one ends.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    prompt_keys: torch.Tensor
    prompt_values: torch.Tensor
    prompt_lengths: Sequence[int]
    spans: Sequence[tuple[int, int, int]]
    scaling: float
    row_starts: torch.Tensor | None = None

    @property
    def first_tokens(self) -> torch.Tensor:
        """(R,) where rows begin among all tokens."""
        return self._row_starts[:-1]

    @property
    def _row_starts(self) -> torch.Tensor:
        if self.row_starts is not None:
            return self.row_starts
        rows, tokens = self.queries.shape[:2]
        return torch.arange(rows + 1) * tokens

    def _call(self, backward: bool, **more: torch.Tensor) -> None:
        """Call the loop with these inputs and, by the names of its arguments, `more` tensors."""
        if self.prompt_keys.stride() != self.prompt_values.stride():
            raise ValueError("prompt_keys and prompt_values need equal strides")
        size = constants().rows_per_task if self.prompt_keys.shape[2] else 1  # without a prompt rows share nothing
        tasks = torch.tensor(
            [
                (question, first, min(size, end - first))
                for question, start, end in self.spans
                for first in range(start, end, size)
            ]
        )
        tasks = tasks.t().contiguous()
        lengths, starts = torch.tensor(self.prompt_lengths), self._row_starts
        questions, kv_heads, max_length, head_dim = self.prompt_keys.shape
        tile = constants().tile
        part_size = 2 * kv_heads * -(-max_length // tile) * tile * head_dim
        partial_sums = self.queries.new_empty(tasks.shape[1] * part_size if backward else 0)
        inputs = ("queries", "keys", "values", "prompt_keys", "prompt_values")
        args = ExtendAttentionArgs(
            row_starts=starts.data_ptr(),
            max_row_length=int(starts.diff().max()),
            num_heads=self.queries.shape[-2],
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            **{name: getattr(self, name).data_ptr() for name in inputs},
            question_stride=self.prompt_keys.stride(0),
            head_stride=self.prompt_keys.stride(1),
            token_stride=self.prompt_keys.stride(2),
            prompt_lengths=lengths.data_ptr(),
            max_length=max_length,
            scale=self.scaling,
            num_questions=questions,
            **_task_args(tasks),
            partial_sums=partial_sums.data_ptr(),
            **{name: tensor.data_ptr() for name, tensor in more.items()},
        )
        call(f"extend_attention_{'backward' if backward else 'forward'}", ctypes.byref(args))


def extend_attention(inputs: ExtendAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention over [prompt, row].

    Returns the output, like `inputs.queries`, and the log-sum-exp of the scores, without the axis D.

    Raises ValueError for a head_dim that is no multiple of 16, MemoryError where there is no memory to work in.
    """
    out = torch.empty_like(inputs.queries)
    lse = out.new_empty(out.shape[:-1])
    inputs._call(False, out=out, lse=lse)
    return out, lse


def extend_attention_backward(
    inputs: ExtendAttention, grad_output: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The gradients of queries, keys, values, and of the prompts' keys and values (Q, Hkv, L, D).

    Args:
        grad_output: like `inputs.queries`; tokens for which it is all 0 cost little.
        out, lse: as `extend_attention` returned them.

    Raises as `extend_attention`.
    """
    dqueries, dkeys, dvalues = (torch.empty_like(t) for t in (inputs.queries, inputs.keys, inputs.values))
    dprompt_keys, dprompt_values = (out.new_empty(inputs.prompt_keys.shape) for _ in range(2))
    inputs._call(
        True,
        out=out,
        lse=lse,
        dout=grad_output,
        dqueries=dqueries,
        dkeys=dkeys,
        dvalues=dvalues,
        dprompt_keys=dprompt_keys,
        dprompt_values=dprompt_values,
    )
    return dqueries, dkeys, dvalues, dprompt_keys, dprompt_values
