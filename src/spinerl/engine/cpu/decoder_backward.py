"""Whole decoder layers for an update that reuses kept activations: one autograd function per layer.

The forward pass adds the kept outputs of a layer's attention and feed-forward block to the residual stream: it runs
neither.  All else is recomputed going backward, layer by layer: norms, queries and keys after RoPE, SwiGLU, each by one
loop that reads the kept activations in place, so that between the passes nothing is stored but the residual stream.

For Llama-style decoders (`spinerl.engine.cpu.decoder`); `spinerl.engine.cpu.backend` checks it on the model at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.activations import KeptActivations, Reuse, linear_layers
from spinerl.engine.cpu.autograd import Function
from spinerl.engine.cpu.decoder import LayerParts, decoder_parts
from spinerl.engine.cpu.extend_attention import ExtendLayer, Span, attend_compiled, equal_strides
from spinerl.engine.cpu.linear import Matmuls, active_rows, matmuls_of, scatter_rows
from spinerl.engine.cpu.patching import patch_forwards
from spinerl.models.loading import LoadedModel

__all__ = ["reused_layers"]


def reused_layers(loaded: LoadedModel, reuse: Reuse) -> AbstractContextManager[None]:
    """Inside, passes over tokens with kept activations take whole layers from there, forward; their gradients are the
    ordinary ones.

    Unsupported as for `decoder_parts`.
    """
    matmuls = matmuls_of(loaded)
    numbers = {layer: number for number, layer in enumerate(linear_layers(loaded))}
    layers: Any = loaded.model.base_model.layers
    return patch_forwards(
        (layer, _forward(layer, number, len(layers), parts, [numbers[one] for one in parts.linear], reuse, matmuls))
        for number, (layer, parts) in enumerate(zip(layers, decoder_parts(loaded), strict=True))
    )


def _forward(
    layer: torch.nn.Module,
    number: int,
    count: int,
    parts: LayerParts,
    linear: Sequence[int],
    reuse: Reuse,
    matmuls: Matmuls,
) -> Callable[..., torch.Tensor]:
    ordinary = layer.forward
    norms = (parts.first_norm, parts.second_norm, parts.query_norm, parts.key_norm)
    weights = [None if norm is None else norm.weight for norm in norms]
    weights += [module.weight for module in parts.linear] + [module.bias for module in parts.linear]

    def forward(states: torch.Tensor, *more: Any, **others: Any) -> torch.Tensor:
        rope, cache = others.get("position_embeddings"), others.get("past_key_values")
        held = None if cache is None else cache.layers[number]
        slots, head_dim = reuse.slots, parts.sizes[3]
        if slots is None or more or rope is None or rope[0].shape[-1] != head_dim:
            return ordinary(states, *more, **others)
        if isinstance(held, ExtendLayer):
            if not held.compiled:
                return ordinary(states, **others)
            prompts, lengths, spans = held.prompts, held.lengths, held.rows
        elif held is None or (type(held) is DynamicLayer and not held.get_seq_length()):
            nothing = states.new_empty(1, parts.sizes[2], 0, head_dim)
            prompts, lengths, spans = (nothing, nothing), (0,), ((0, 0, len(states)),)
        else:
            return ordinary(states, **others)
        outputs, starts = [reuse.kept.outputs[i] for i in linear], None
        cos, sin = (t.expand(len(slots), -1, -1).reshape(-1, head_dim) for t in rope)
        real = (slots.flatten() >= 0).nonzero().squeeze(1)
        unpads = isinstance(held, ExtendLayer) and len(real) < slots.numel()
        if unpads:  # from the first layer to the last, padding is left out
            starts = torch.nn.functional.pad((slots >= 0).sum(1).cumsum(0), (1, 0))
            if not number:
                states = states.flatten(0, 1).index_select(0, real).unsqueeze(0)
            cos, sin = cos[real], sin[real]
        own_slots = slots.flatten()[real] if unpads else slots
        saved = _Pass(reuse.kept, own_slots, starts, number, parts, matmuls, outputs, cos, sin, lengths, spans)
        output, keys, values = _Layer.apply(states, *equal_strides(*prompts), saved, *weights)
        if held is not None and keys is not None:
            held.update(keys, values)
        if unpads and number + 1 == count:
            padded = output.new_zeros(slots.numel(), output.shape[-1])
            output = padded.index_copy(0, real, output.squeeze(0)).view(*slots.shape, -1)
        return output

    return forward


@dataclass(frozen=True)
class _Pass:
    """A pass of N tokens through a layer: the kept activations, where its tokens have them, and all that is no tensor
    with a gradient."""

    kept: KeptActivations
    slots: torch.Tensor  # (R, T), or (N,) of rows of unlike lengths
    starts: torch.Tensor | None  # (R + 1,) where those begin
    number: int  # of the layer
    parts: LayerParts
    matmuls: Matmuls
    outputs: Sequence[torch.Tensor]  # kept ones of the seven linear layers
    cos: torch.Tensor  # (N, D)
    sin: torch.Tensor
    lengths: Sequence[int]  # of the prompts that rows extend; one of length 0 where they extend none
    spans: tuple[Span, ...]

    @property
    def extends(self) -> bool:
        return max(self.lengths) > 0

    @property
    def rows(self) -> torch.Tensor:
        """(N,) the slots; that of padding is 0."""
        return self.slots.flatten().clamp_min(0)

    def rope(self, norm_weight: torch.Tensor | None) -> kernels.NormRope:
        """RoPE of queries, or keys, after a norm of this weight if there is one."""
        return kernels.NormRope(norm_weight, self.parts.constants[0][1], self.cos, self.sin)

    def heads(self, which: int, rope: kernels.NormRope | None) -> torch.Tensor:
        """Queries (0), keys (1) or values (2) of the pass: (R, T, heads, D), or (N, heads, D)."""
        _, heads, kv_heads, head_dim = self.parts.sizes
        number = kv_heads if which else heads
        kept = self.rows, self.outputs[which]
        found = kept[1].index_select(0, kept[0]) if rope is None else kernels.norm_rope(kept, number, rope)
        return found.view(*self.slots.shape, number, head_dim)


class _Layer(Function):
    """A layer's output (R, T, d) or (1, N, d), and keys and values (R, Hkv, T, D) where its tokens extend no prompt.

    The weights are those of four norms (before attention, before the feed-forward block, of queries, of keys), of the
    seven linear layers, and their biases; None for what is missing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        prompt_keys: torch.Tensor,
        prompt_values: torch.Tensor,
        saved: _Pass,
        *weights: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        states = states.contiguous()
        ctx.saved = saved
        ctx.save_for_backward(states, prompt_keys, prompt_values, *weights)
        _, _, _, of_attention, _, _, of_block = saved.outputs
        output = kernels.add_indexed(states.flatten(0, 1), saved.rows, of_attention, of_block).view_as(states)
        if saved.extends:
            return output, None, None
        keys, values = saved.heads(1, saved.rope(weights[3])), saved.heads(2, None)
        return output, keys.transpose(1, 2), values.transpose(1, 2)

    @staticmethod
    def backward(
        ctx: Any, grad_output: torch.Tensor, grad_keys: torch.Tensor | None, grad_values: torch.Tensor | None
    ) -> Any:
        return _Backward(ctx).run(grad_output, grad_keys, grad_values)


class _Backward:
    """One layer's backward pass: the feed-forward block, attention, then queries, keys and values."""

    def __init__(self, ctx: Any) -> None:
        self.saved: _Pass = ctx.saved
        self.matmuls = self.saved.matmuls
        self.states, self.prompt_keys, self.prompt_values, *weights = ctx.saved_tensors
        self.first_norm, self.second_norm, self.query_norm, self.key_norm, *self.matrices = weights[:11]
        self.needed = ctx.needs_input_grad[4:]
        self.grads: list[torch.Tensor | None] = [None] * len(weights)
        self.stream = self.states.flatten(0, 1)
        (self.eps, _), self.scaling = self.saved.parts.constants

    def run(
        self, grad_output: torch.Tensor, grad_keys: torch.Tensor | None, grad_values: torch.Tensor | None
    ) -> tuple[Any, ...]:
        grads, active = self._feed_forward(grad_output.contiguous().flatten(0, 1))
        grad_q, grad_k, grad_v, grad_prompts, normed = self._attention(grads, active, grad_keys, grad_values)
        grad_normed = self.matmuls.grad_input(
            grad_v, self.matrices[2], self.matmuls.grad_input(grad_k, self.matrices[1])
        )
        if active is None:
            self._learn(0, grad_q, normed)
            self.matmuls.grad_input(grad_q, self.matrices[0], grad_normed)
        else:
            self._learn(0, grad_q[active], normed[active])
            grad_normed.index_add_(0, active, self.matmuls.grad_input(grad_q[active], self.matrices[0]))
        residual = scatter_rows(grads, active, len(self.stream))
        grad_states, self.grads[0] = kernels.rms_norm_backward(
            grad_normed, self.stream, self.first_norm, self._first_rstd, None, residual
        )
        return grad_states.view_as(self.states), *grad_prompts, None, *self.grads

    def _learn(self, number: int, grad_output: torch.Tensor, inputs: torch.Tensor) -> None:
        """The gradients of a linear layer's weight and bias."""
        if self.needed[4 + number]:
            self.grads[4 + number] = self.matmuls.grad_weight(grad_output, inputs)
        if self.needed[11 + number]:
            self.grads[11 + number] = grad_output.sum(0)

    def _feed_forward(self, grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The gradient of the residual stream before the block, for the rows whose gradient is not all 0; and those."""
        saved, rows, stream = self.saved, self.saved.rows, self.stream
        active = active_rows(grads)
        if active is not None:
            rows, stream, grads = rows[active], stream[active], grads[active]
        gates, ups = saved.outputs[4:6]
        inner, grad_gate, grad_up = kernels.swiglu_recompute_backward(
            (rows, gates, ups), self.matmuls.grad_input(grads, self.matrices[6])
        )
        self._learn(6, grads, inner)
        attention_output = rows, saved.outputs[3]
        normed, rstd = kernels.rms_norm_with_rstd(stream, attention_output, self.second_norm, self.eps)
        self._learn(4, grad_gate, normed)
        self._learn(5, grad_up, normed)
        grad_normed = self.matmuls.grad_input(
            grad_up, self.matrices[5], self.matmuls.grad_input(grad_gate, self.matrices[4])
        )
        grads, self.grads[1] = kernels.rms_norm_backward(
            grad_normed, stream, self.second_norm, rstd, attention_output, grads
        )
        return grads, active

    def _attention(
        self,
        grads: torch.Tensor,
        active: torch.Tensor | None,
        grad_keys: torch.Tensor | None,
        grad_values: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """The gradients of queries, keys and values before norms and RoPE (N, n), of the prompts' keys and values, and
        the input of the three linear layers."""
        saved, num_tokens = self.saved, len(self.stream)
        rope = saved.rope(self.query_norm), saved.rope(self.key_norm)
        queries, keys, values = (saved.heads(i, how) for i, how in enumerate((*rope, None)))
        prompts = self.prompt_keys, self.prompt_values, saved.lengths, saved.spans
        job = kernels.ExtendAttention(queries, keys, values, *prompts, self.scaling, saved.starts)
        attended = attend_compiled(job, saved.kept.attended(saved.number, saved.slots) if saved.extends else None)
        output = attended[0].view(num_tokens, -1)
        self._learn(3, grads, output if active is None else output[active])
        grad_output = scatter_rows(self.matmuls.grad_input(grads, self.matrices[3]), active, num_tokens)
        grad_heads = list(kernels.extend_attention_backward(job, grad_output.view_as(queries), *attended))
        for i, more in ((1, grad_keys), (2, grad_values)):
            if more is not None:
                grad_heads[i] += more.transpose(1, 2)
        grad_rows = [grad.view(num_tokens, -1) for grad in grad_heads[:3]]
        for i, how in enumerate(rope):
            of_heads = grad_heads[i].view(num_tokens, -1, grad_heads[i].shape[-1])
            grad_rows[i], self.grads[2 + i] = kernels.norm_rope_backward((saved.rows, saved.outputs[i]), how, of_heads)
        normed, self._first_rstd = kernels.rms_norm_with_rstd(self.stream, None, self.first_norm, self.eps)
        for i in (1, 2):
            self._learn(i, grad_rows[i], normed)
        grad_q, grad_k, grad_v = grad_rows
        return grad_q, grad_k, grad_v, grad_heads[3:], normed
