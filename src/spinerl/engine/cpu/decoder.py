"""One new token per row through all layers of a Llama-style decoder, and its head, in one compiled loop.

A Llama-style decoder (pre-norms, RoPE, grouped queries, SwiGLU feed-forward blocks: Llama, Qwen2, Qwen3, Mistral and
others) spends half of a decoding step between its matmuls: in some sixty operators per layer, each a pass over
memory, a barrier for all threads and a call from Python.  Here each thread takes some of the rows from the first layer
to the last.  Whether a model is Llama-style is read off its modules, and checked by its numbers
(`spinerl.engine.cpu.backend`).
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
from spinerl.models.adapters import adapted_weight, has_plain_adapters
from spinerl.models.capabilities import Unsupported
from spinerl.models.loading import LoadedModel

__all__ = ["DecoderStep", "LayerParts", "decoder_parts"]

_SHARE_OF_MEMORY = 1 / 8  # of what is free, for a second copy of the weights
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # types whose cos and sin do not depend on the text's length
_POSITIONS = 256  # whose cos and sin are computed at a time
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class DecoderStep:
    """The layers of a decoder, with packed copies of its present weights, into which those of adapters are added.

    Raises Unsupported for a model of another architecture, type or size.
    """

    def __init__(self, loaded: LoadedModel, settled: bool = False, rounds: bool = False) -> None:
        """`settled`: that memory suffices was found before, and counts for the whole run.  `rounds`: matmuls round to
        bfloat16."""
        self._rounds = rounds
        self._pack = kernels.bf16_pack if rounds else kernels.pack_panels
        self._adapted = not loaded.without_adapters
        self._model: Any = loaded.model
        self._backbone: Any = loaded.model.base_model
        layers = decoder_parts(loaded, adapters=True)
        head = self._model.get_output_embeddings()
        if type(head) is not torch.nn.Linear or head.bias is not None:
            raise Unsupported("an output head that is not a plain linear layer")
        numbers = sum(linear.weight.numel() for linear in (head, *(one for parts in layers for one in parts.linear)))
        size = numbers * (2 if rounds else 4)
        if not settled and size > _SHARE_OF_MEMORY * free_bytes(loaded.device):
            raise Unsupported("too little free memory for a second copy of the weights")
        self.sizes = layers[0].sizes
        self.eps, self.scaling = layers[0].constants
        self.linear = [parts.linear for parts in layers]
        self._tensors: list[torch.Tensor] = []
        self._weights = (kernels.LayerWeights * len(layers))(*(self._packed_layer(parts) for parts in layers))
        norm = self._backbone.norm
        self._last = norm.weight.detach(), float(norm.variance_epsilon), self._pack(head.weight.detach())
        self._vocab_size, self._panel = head.out_features, kernels.panel()
        self._rope: tuple[torch.Tensor, ...] = ()

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(R, d) for tokens (R,)."""
        return self._model.get_input_embeddings()(tokens)

    def rope(self, states: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin (R, D) at positions (R,)."""
        if getattr(self._backbone.rotary_emb, "rope_type", None) not in _STATIC_ROPE:
            return self._computed_rope(states, positions)
        if not self._rope or int(positions.max()) >= len(self._rope[0]):
            known = (int(positions.max()) // _POSITIONS + 1) * _POSITIONS
            self._rope = self._computed_rope(states[:1], torch.arange(known))
        cos, sin = self._rope
        return cos[positions], sin[positions]

    def _computed_rope(self, states: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._backbone.rotary_emb(states.unsqueeze(0), positions.unsqueeze(0))
        if cos.shape != (1, len(positions), self.sizes[3]):
            raise Unsupported("rotary embeddings of a part of each head, or of another shape")
        return cos[0].contiguous(), sin[0].contiguous()

    def new_logits(self, rows: int) -> torch.Tensor:
        """Where `run` writes the logits of so many rows: (R, V) filled up to whole panels."""
        return torch.empty(rows, -(-self._vocab_size // self._panel) * self._panel)

    def logits(self, written: torch.Tensor) -> torch.Tensor:
        """(R, V) of it."""
        return written[:, : self._vocab_size]

    def states(self, pointers: Sequence[tuple[int, int, list[list[int]]]]) -> Any:
        """An array of LayerState from each layer's addresses: prompts' keys, prompts' values, and lists of those of
        blocks of keys, of blocks of values, and of kept activations (none, or nine)."""
        found: Any = (kernels.LayerState * len(pointers))()
        found.arrays = []  # that it points to
        for state, (keys, values, (*blocks, kept)) in zip(found, pointers, strict=True):
            arrays = [(ctypes.c_void_p * len(some))(*some) for some in blocks]
            found.arrays += arrays
            state.prompt_keys, state.prompt_values = keys, values
            state.key_blocks, state.value_blocks = map(ctypes.addressof, arrays)
            state.saved[: len(kept)] = kept
        return found

    def run(
        self, states: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], layer_states: Any, **others: Any
    ) -> None:
        """`kernels.decoder_step` with this model's weights."""
        sizes = self.sizes, self.eps, self.scaling
        kernels.decoder_step(
            states, *rope, self._weights, layer_states, *sizes, final=self._last, bf16=self._rounds, **others
        )

    def _packed_layer(self, parts: LayerParts) -> kernels.LayerWeights:
        q, k, v, o, gate, up, down = parts.linear
        whole = [self._pack(torch.cat([self._weight(layer) for layer in (q, k, v)]))]
        for layer in (o, down):
            whole.append(self._pack(self._weight(layer)))
        whole.append(torch.cat([self._pack(self._weight(layer)) for layer in (gate, up)]))
        self._tensors += whole
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

    def _weight(self, layer: torch.nn.Linear) -> torch.Tensor:
        return adapted_weight(layer) if self._adapted else layer.weight.detach()

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
        self._tensors.append(tensor)
        return tensor.data_ptr()


def decoder_parts(loaded: LoadedModel, adapters: bool = False) -> list[LayerParts]:
    """The parts of each layer of a Llama-style decoder, all layers alike and with full causal attention.

    `adapters`: whether linear layers may have some.  Unsupported for other models, other types than float32, other
    devices than a CPU, and where nothing is compiled.
    """
    if (
        not suits_cpu(loaded)
        or kernels.library() is None
        or loaded.vision is not None
        or (loaded.without_adapters and not adapters)
    ):
        raise Unsupported("only float32 language models, on a CPU with a compiler")
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=loaded.model.config).layers):
        raise Unsupported("attention that is not full and causal in every layer")
    backbone: Any = loaded.model.base_model
    try:
        layers = [LayerParts(layer, adapters) for layer in backbone.layers]
    except AttributeError as error:
        raise Unsupported(f"not a Llama-style decoder: {error}") from None
    if len({parts.sizes for parts in layers}) != 1 or len({parts.constants for parts in layers}) != 1:
        raise Unsupported("layers of unlike sizes")
    return layers


class LayerParts:
    """The modules of one layer; AttributeError or Unsupported where one is missing or another than expected."""

    def __init__(self, layer: Any, adapters: bool) -> None:
        attention, feed_forward = layer.self_attn, layer.mlp
        names = {name for name, _ in layer.named_children()}
        if names != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
            raise Unsupported(f"a layer made of {sorted(names)}")
        if type(feed_forward.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
            raise Unsupported("feed-forward blocks without SwiGLU")
        self.linear = [getattr(attention if name[0] in "qkvo" else feed_forward, name) for name in _LINEAR]
        if not all(
            type(linear) is torch.nn.Linear or (adapters and has_plain_adapters(linear)) for linear in self.linear
        ):
            raise Unsupported("linear layers of another class than torch.nn.Linear")
        self.first_norm, self.second_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.query_norm, self.key_norm = (getattr(attention, f"{name}_norm", None) for name in "qk")
        norms = [
            norm for norm in (self.first_norm, self.second_norm, self.query_norm, self.key_norm) if norm is not None
        ]
        head_dim = attention.head_dim
        q, k, _, _, gate, _, _ = self.linear
        if head_dim not in kernels.head_dims() or any(
            norm.weight.shape[0] not in (head_dim, q.in_features) for norm in norms
        ):
            raise Unsupported("heads or norms of another size")
        self.sizes = (gate.out_features, q.out_features // head_dim, k.out_features // head_dim, head_dim)
        eps = self.first_norm.variance_epsilon
        of_heads = eps if self.query_norm is None else self.query_norm.variance_epsilon
        self.constants = ((eps, of_heads), float(attention.scaling))
