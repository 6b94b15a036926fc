"""One new token per row through all layers of a decoder, and its head, in one compiled loop.

A decoder of the usual make (pre-norms, rotary positions, grouped queries, gated feed-forward blocks: Llama, Qwen2,
Qwen3, Mistral and their like) spends half of a decoding step between its products: in some sixty operators per layer,
each a pass over memory, a wait for all threads and a call from Python.  Here each thread takes some of the rows from
the first layer to the last.  Whether a model is of that make is read off its parts, and tried (`shared`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.patching import suits_cpu
from spinerl.engine.kv_cache import free_bytes
from spinerl.engine.loading import LoadedModel

__all__ = ["CompiledLayers", "LayerParts", "decoder_parts"]

_SHARE_OF_MEMORY = 1 / 8  # of what is free, for a second copy of the weights
_UNCHANGING = {"default", "linear", "llama3", "yarn"}  # rotary positions that are the same however long texts are
_POSITIONS = 256  # whose angles are computed at a time
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class CompiledLayers:
    """The layers of a decoder, its weights as they are now laid out for `kernels.decoder_step`.

    Raises TypeError, ValueError or AttributeError for a model of another make, type or size.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._model: Any = loaded.model
        self._backbone: Any = loaded.model.base_model
        layers = decoder_parts(loaded)
        head = self._model.get_output_embeddings()
        if type(head) is not torch.nn.Linear or head.bias is not None:
            raise TypeError("a head of another kind")
        size = sum(linear.weight.nbytes for linear in (head, *(one for parts in layers for one in parts.linear)))
        if size > _SHARE_OF_MEMORY * free_bytes(loaded.device):
            raise ValueError("no room for a second copy of the weights")
        self.sizes = layers[0].sizes
        self.eps, self.scaling = layers[0].manner
        self.linear = [parts.linear for parts in layers]
        self._alive: list[torch.Tensor] = []
        self._weights = (kernels.LayerWeights * len(layers))(*(self._laid_out(parts) for parts in layers))
        norm = self._backbone.norm
        self._last = norm.weight.detach(), float(norm.variance_epsilon), kernels.pack_panels(head.weight.detach())
        self._vocabulary = head.out_features
        self._angles: tuple[torch.Tensor, ...] = ()

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(R, d) for tokens (R,)."""
        return self._model.get_input_embeddings()(tokens)

    def angles(self, states: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (R, D) of positions (R,)."""
        if getattr(self._backbone.rotary_emb, "rope_type", None) not in _UNCHANGING:
            return self._computed_angles(states, positions)
        if not self._angles or int(positions.max()) >= len(self._angles[0]):
            known = (int(positions.max()) // _POSITIONS + 1) * _POSITIONS
            self._angles = self._computed_angles(states[:1], torch.arange(known))
        cosines, sines = self._angles
        return cosines[positions], sines[positions]

    def _computed_angles(self, states: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._backbone.rotary_emb(states.unsqueeze(0), positions.unsqueeze(0))
        if cos.shape != (1, len(positions), self.sizes[3]):
            raise ValueError("rotary positions of another kind")
        return cos[0].contiguous(), sin[0].contiguous()

    def room(self, rows: int) -> torch.Tensor:
        """Where `advance` puts the logits of so many rows: (R, V) filled up to whole panels."""
        _, _, packed = self._last
        return packed.new_empty(rows, packed.shape[0] * packed.shape[2])

    def logits(self, room: torch.Tensor) -> torch.Tensor:
        """(R, V) of it."""
        return room[:, : self._vocabulary]

    def states(self, pointers: Sequence[tuple[int, int, list[list[int]]]]) -> Any:
        """An array of LayerState from each layer's addresses: prompts' keys, prompts' values, and lists of those of
        blocks of keys, of blocks of values, and of what is kept (none, or nine)."""
        found: Any = (kernels.LayerState * len(pointers))()
        found.alive = []  # the arrays that it points to
        for state, (keys, values, (*blocks, kept)) in zip(found, pointers, strict=True):
            arrays = [(ctypes.c_void_p * len(some))(*some) for some in blocks]
            found.alive += arrays
            state.prompt_keys, state.prompt_values = keys, values
            state.key_blocks, state.value_blocks = map(ctypes.addressof, arrays)
            state.saved[: len(kept)] = kept
        return found

    def advance(
        self, stream: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], states: Any, **others: Any
    ) -> None:
        """`kernels.decoder_step` with this model's weights."""
        sizes = self.sizes, self.eps, self.scaling
        kernels.decoder_step(stream, *angles, self._weights, states, *sizes, final=self._last, **others)

    def _laid_out(self, parts: LayerParts) -> kernels.LayerWeights:
        q, k, v, o, gate, up, down = parts.linear
        whole = [kernels.pack_panels(torch.cat([layer.weight.detach() for layer in (q, k, v)]))]
        for layer in (o, down):
            whole.append(kernels.pack_panels(layer.weight.detach()))
        whole.append(torch.cat([kernels.pack_panels(layer.weight.detach()) for layer in (gate, up)]))
        self._alive += whole
        attention, output, downward, gates = (tensor.data_ptr() for tensor in whole)
        return kernels.LayerWeights(
            input_norm=self._address(parts.first_norm.weight),
            qkv_proj=attention,
            qkv_bias=self._biases([q, k, v], torch.cat),
            q_norm=None if parts.query_norm is None else self._address(parts.query_norm.weight),
            k_norm=None if parts.key_norm is None else self._address(parts.key_norm.weight),
            o_proj=output,
            o_bias=self._biases([o], torch.cat),
            post_attention_norm=self._address(parts.second_norm.weight),
            gate_up_proj=gates,
            gate_up_bias=self._biases([gate, up], lambda biases: torch.cat([kernels.pad_to_panel(b) for b in biases])),
            down_proj=downward,
            down_bias=self._biases([down], torch.cat),
        )

    def _biases(
        self, layers: Sequence[torch.nn.Linear], join: Callable[[list[torch.Tensor]], torch.Tensor]
    ) -> int | None:
        if all(layer.bias is None for layer in layers):
            return None
        zeros = [layer.weight.new_zeros(layer.out_features) for layer in layers]
        biases = [
            zero if layer.bias is None else layer.bias.detach() for layer, zero in zip(layers, zeros, strict=True)
        ]
        return self._address(kernels.pad_to_panel(join(biases)))

    def _address(self, tensor: torch.Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()


def decoder_parts(loaded: LoadedModel) -> list[LayerParts]:
    """The parts of each layer of a decoder of the usual make, all of them alike and seeing all that was before.

    TypeError, ValueError or AttributeError for other models, other types than float32, other devices than a CPU, and
    where nothing is compiled.
    """
    if not suits_cpu(loaded) or kernels.library() is None or loaded.vision is not None or loaded.without_adapters:
        raise TypeError("only float32 language models on a CPU with a compiler")
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=loaded.model.config).layers):
        raise TypeError("attention of another kind")
    backbone: Any = loaded.model.base_model
    layers = [LayerParts(layer) for layer in backbone.layers]
    if len({parts.sizes for parts in layers}) != 1 or len({parts.manner for parts in layers}) != 1:
        raise ValueError("layers of unlike sizes")
    return layers


class LayerParts:
    """One layer taken to pieces; AttributeError or TypeError where a piece is missing or one too many."""

    def __init__(self, layer: Any) -> None:
        attention, feed_forward = layer.self_attn, layer.mlp
        names = {name for name, _ in layer.named_children()}
        if names != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
            raise TypeError(f"a layer made of {sorted(names)}")
        if type(feed_forward.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
            raise TypeError("gates of another kind")
        self.linear = [getattr(attention if name[0] in "qkvo" else feed_forward, name) for name in _LINEAR]
        if any(type(linear) is not torch.nn.Linear for linear in self.linear):
            raise TypeError("products of another kind")
        self.first_norm, self.second_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.query_norm, self.key_norm = (getattr(attention, f"{name}_norm", None) for name in "qk")
        norms = [
            norm for norm in (self.first_norm, self.second_norm, self.query_norm, self.key_norm) if norm is not None
        ]
        width = attention.head_dim
        q, k, _, _, gate, _, _ = self.linear
        if width not in kernels.head_dims() or any(
            norm.weight.shape[0] not in (width, q.in_features) for norm in norms
        ):
            raise ValueError("heads or norms of another size")
        self.sizes = (gate.out_features, q.out_features // width, k.out_features // width, width)
        eps = self.first_norm.variance_epsilon
        of_heads = eps if self.query_norm is None else self.query_norm.variance_epsilon
        self.manner = ((eps, of_heads), float(attention.scaling))
