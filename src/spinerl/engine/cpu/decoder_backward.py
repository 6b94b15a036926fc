"""A decoder's layers as one function each, for an update that knows what they put out.

The forward pass adds what attention and the feed-forward block of a layer are known to have put out: it runs neither.
All else is computed going backward, layer by layer: norms, turned queries and keys and gates, each by one loop that
reads the record where it lies, so that between the passes nothing is kept but the residual stream.

For decoders of the usual make (`spinerl.engine.cpu.decoder`); `policy` tries it on the model at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.activations import Record, Replay, linear_layers
from spinerl.engine.cpu.decoder import LayerParts, decoder_parts
from spinerl.engine.cpu.extend_attention import ContinuedLayer, Span, attend_compiled, laid_out_alike
from spinerl.engine.cpu.linear import live_rows, put_back, slopes_back, weight_slope
from spinerl.engine.cpu.patching import exchanged_forwards
from spinerl.engine.loading import LoadedModel

__all__ = ["replayed_layers"]


def replayed_layers(loaded: LoadedModel, replay: Replay) -> AbstractContextManager[None]:
    """Inside, passes of tokens that the replay knows take whole layers from it, forward; their gradients are the
    ordinary ones.

    TypeError, ValueError or AttributeError for models that `decoder_parts` does not take to pieces.
    """
    numbers = {layer: number for number, layer in enumerate(linear_layers(loaded))}
    layers: Any = loaded.model.base_model.layers
    return exchanged_forwards(
        (layer, _forward(layer, number, len(layers), parts, [numbers[linear] for linear in parts.linear], replay))
        for number, (layer, parts) in enumerate(zip(layers, decoder_parts(loaded), strict=True))
    )


def _forward(
    layer: torch.nn.Module, number: int, count: int, parts: LayerParts, linear: Sequence[int], replay: Replay
) -> Callable[..., torch.Tensor]:
    ordinary = layer.forward
    norms = (parts.first_norm, parts.second_norm, parts.query_norm, parts.key_norm)
    weights = [None if norm is None else norm.weight for norm in norms]
    weights += [module.weight for module in parts.linear] + [module.bias for module in parts.linear]

    def forward(states: torch.Tensor, *more: Any, **others: Any) -> torch.Tensor:
        angles, cache = others.get("position_embeddings"), others.get("past_key_values")
        held = None if cache is None else cache.layers[number]
        if replay.slots is None or more or angles is None or angles[0].shape[-1] != parts.sizes[3]:
            return ordinary(states, *more, **others)
        if isinstance(held, ContinuedLayer):
            if not held.compiled:
                return ordinary(states, **others)
            prompts, lengths, spans = held.prompts, held.lengths, held.rows
        elif held is None or (type(held) is DynamicLayer and not held.get_seq_length()):
            nothing = states.new_empty(1, parts.sizes[2], 0, parts.sizes[3])
            prompts, lengths, spans = (nothing, nothing), (0,), ((0, 0, len(states)),)
        else:
            return ordinary(states, **others)
        kept, slots, starts = [replay.record.outputs[i] for i in linear], replay.slots, None
        cosines, sines = (t.expand(len(slots), -1, -1).reshape(-1, parts.sizes[3]) for t in angles)
        real = (slots.flatten() >= 0).nonzero().squeeze(1)
        packs = isinstance(held, ContinuedLayer) and len(real) < slots.numel()
        if packs:  # from the first layer to the last, padding is left out
            starts = torch.nn.functional.pad((slots >= 0).sum(1).cumsum(0), (1, 0))
            if not number:
                states = states.flatten(0, 1).index_select(0, real).unsqueeze(0)
            cosines, sines = cosines[real], sines[real]
        at = slots.flatten()[real] if packs else slots
        known = _Known(replay.record, at, starts, number, parts, kept, cosines, sines, lengths, spans)
        output, keys, values = _Layer.apply(states, *laid_out_alike(*prompts), known, *weights)  # pyright: ignore
        if held is not None and keys is not None:
            held.update(keys, values)
        if packs and number + 1 == count:
            padded = output.new_zeros(slots.numel(), output.shape[-1])
            output = padded.index_copy(0, real, output.squeeze(0)).view(*slots.shape, -1)
        return output

    return forward


@dataclass(frozen=True)
class _Known:
    """What a pass of N tokens through a layer knows: the record, where it has them, and what is no tensor with a
    gradient."""

    record: Record
    slots: torch.Tensor  # (R, T), or (N,) of rows of unlike lengths
    starts: torch.Tensor | None  # (R + 1,) where those begin
    number: int  # of the layer
    parts: LayerParts
    kept: Sequence[torch.Tensor]  # what the seven linear layers put out
    cosines: torch.Tensor  # (N, D)
    sines: torch.Tensor
    lengths: Sequence[int]  # of the prompts that rows continue; one of length 0 where they continue none
    spans: tuple[Span, ...]

    @property
    def continues(self) -> bool:
        return max(self.lengths) > 0

    @property
    def places(self) -> torch.Tensor:
        """(N,)"""
        return self.slots.flatten().clamp_min(0)

    def turning(self, weight: torch.Tensor | None) -> kernels.NormRope:
        """How queries, or keys, are turned by a norm of this weight."""
        return kernels.NormRope(weight, self.parts.manner[0][1], self.cosines, self.sines)

    def heads(self, which: int, how: kernels.NormRope | None) -> torch.Tensor:
        """Queries (0), keys (1) or values (2) of the pass: (R, T, heads, D), or (N, heads, D)."""
        _, heads, kv_heads, width = self.parts.sizes
        number = kv_heads if which else heads
        kept = self.places, self.kept[which]
        found = kept[1].index_select(0, kept[0]) if how is None else kernels.norm_rope(kept, number, how)
        return found.view(*self.slots.shape, number, width)


class _Layer(torch.autograd.Function):
    """What a layer puts out (R, T, d) or (1, N, d), and keys and values (R, Hkv, T, D) where its tokens continue no
    prompt.

    The weights are those of four norms (before attention, before the feed-forward block, of queries, of keys), of the
    seven linear layers, and their biases; None for what is missing.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        states: torch.Tensor,
        prompt_keys: torch.Tensor,
        prompt_values: torch.Tensor,
        known: _Known,
        *weights: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        states = states.contiguous()
        ctx.known = known
        ctx.save_for_backward(states, prompt_keys, prompt_values, *weights)
        _, _, _, of_attention, _, _, of_block = known.kept
        output = kernels.add_indexed(states.flatten(0, 1), known.places, of_attention, of_block).view_as(states)
        if known.continues:
            return output, None, None
        keys, values = known.heads(1, known.turning(weights[3])), known.heads(2, None)
        return output, keys.transpose(1, 2), values.transpose(1, 2)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, slopes: torch.Tensor, of_keys: torch.Tensor | None, of_values: torch.Tensor | None
    ) -> Any:
        known: _Known = ctx.known
        states, prompt_keys, prompt_values, *weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        found: list[torch.Tensor | None] = [None] * len(weights)
        first_norm, second_norm, query_norm, key_norm, *matrices = weights[:11]
        (eps, _), scaling = known.parts.manner
        places, stream = known.places, states.flatten(0, 1)
        tokens = len(places)

        def learn(number: int, by_rows: torch.Tensor, inputs: torch.Tensor) -> None:
            """The slopes of a linear layer's weight and bias, from those of what it puts out."""
            if needed[4 + number]:
                found[4 + number] = weight_slope(by_rows, inputs)
            if needed[11 + number]:
                found[11 + number] = by_rows.sum(0)

        # The feed-forward block, for the rows whose slopes are not all 0.
        rows = slopes.contiguous().flatten(0, 1)
        live = live_rows(rows)
        seen, beneath = (places, stream) if live is None else (places[live], stream[live])
        rows = rows if live is None else rows[live]
        gates, ups = known.kept[4:6]
        inside, by_gates, by_ups = kernels.swiglu_recompute_backward((seen, gates, ups), slopes_back(rows, matrices[6]))
        learn(6, rows, inside)
        kept = seen, known.kept[3]
        normed, inverse = kernels.rms_norm_with_rstd(beneath, kept, second_norm, eps)
        learn(4, by_gates, normed)
        learn(5, by_ups, normed)
        by_normed = slopes_back(by_ups, matrices[5], slopes_back(by_gates, matrices[4]))
        rows, found[1] = kernels.rms_norm_backward(by_normed, beneath, second_norm, inverse, kept, rows)

        # Attention.
        turning = known.turning(query_norm), known.turning(key_norm)
        queries, keys, values = (known.heads(i, how) for i, how in enumerate((*turning, None)))
        prompts = prompt_keys, prompt_values, known.lengths, known.spans
        job = kernels.ExtendAttention(queries, keys, values, *prompts, scaling, known.starts)
        attended = attend_compiled(job, known.record.attended(known.number, known.slots) if known.continues else None)
        output = attended[0].view(tokens, -1)
        learn(3, rows, output if live is None else output[live])
        by_output = put_back(slopes_back(rows, matrices[3]), live, tokens)
        by_heads = list(kernels.extend_attention_backward(job, by_output.view_as(queries), *attended))
        for i, more in ((1, of_keys), (2, of_values)):
            if more is not None:
                by_heads[i] += more.transpose(1, 2)
        by_rows = [by.view(tokens, -1) for by in by_heads[:3]]
        for i, how in enumerate(turning):
            slopes = by_heads[i].view(tokens, -1, by_heads[i].shape[-1])
            by_rows[i], found[2 + i] = kernels.norm_rope_backward((places, known.kept[i]), how, slopes)
        normed, inverse = kernels.rms_norm_with_rstd(stream, None, first_norm, eps)
        for i in (1, 2):
            learn(i, by_rows[i], normed)
        by_normed = slopes_back(by_rows[2], matrices[2], slopes_back(by_rows[1], matrices[1]))
        if live is None:
            learn(0, by_rows[0], normed)
            slopes_back(by_rows[0], matrices[0], by_normed)
        else:
            learn(0, by_rows[0][live], normed[live])
            by_normed.index_add_(0, live, slopes_back(by_rows[0][live], matrices[0]))
        residual = put_back(rows, live, tokens)
        by_states, found[0] = kernels.rms_norm_backward(by_normed, stream, first_norm, inverse, None, residual)
        return by_states.view_as(states), *by_heads[3:], None, *found
