"""Keys and values: a cache that grows in place, decoding with it, and how many tokens of it fit into memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from spinerl.machine import to_device
from spinerl.models.loading import LoadedModel

__all__ = [
    "SHARE_OF_MEMORY",
    "CopyingDecoder",
    "begin_cache",
    "bytes_per_token",
    "cache_tokens",
    "fitting_tokens",
    "free_bytes",
    "new_cache",
]

_COMPACT_BELOW = 0.75  # drop finished rows once this share or less is active: a copy costs about one token
SHARE_OF_MEMORY = 1 / 3  # of what is free: the rest is for activations, logits and the update
_UNKNOWN_MEMORY = 4 * 2**30  # bytes taken to be free where the system does not say


class InPlaceLayer(DynamicLayer):
    """A full-attention cache layer that writes new keys and values into spare capacity.

    The stock layer concatenates, that is copies the whole cache, at every token: 36 % of decoding time was
    measured there.  This one copies only when its buffers are full, and then makes them half as long again.
    """

    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        length = used + key_states.shape[-2]
        if (
            self._buffers is None
            or self._buffers[0].shape[-2] < length
            or self._buffers[0].shape[0] != key_states.shape[0]
        ):
            self._buffers = (
                self._grown(self.keys, key_states, length),
                self._grown(self.values, value_states, length),
            )
        assert self._buffers is not None
        keys, values = self._buffers
        keys[:, :, used:length] = key_states
        values[:, :, used:length] = value_states
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows, and the spare capacity."""
        if self._buffers is None:  # rows that end with their first token
            super().batch_select_indices(indices)
            return
        length = self.get_seq_length()
        self._buffers = tuple(buffer.index_select(0, indices) for buffer in self._buffers)  # pyright: ignore
        self.keys, self.values = self._buffers[0][:, :, :length], self._buffers[1][:, :, :length]  # pyright: ignore

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._buffers = None

    @staticmethod
    def _grown(held: torch.Tensor | None, like: torch.Tensor, length: int) -> torch.Tensor:
        rows, heads, _, width = like.shape
        buffer = like.new_empty(rows, heads, max(64, length + length // 2), width)
        if held is not None and held.numel():
            buffer[:, :, : held.shape[-2]] = held
        return buffer


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model of this configuration, full-attention layers growing in place.

    Layers of other kinds (sliding windows, linear attention) stay transformers' own.
    """
    cache = DynamicCache(config=config)
    cache.layers = [InPlaceLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layer_class_to_replicate = InPlaceLayer
    return cache


def begin_cache(cache: DynamicCache, start: Iterable[tuple[torch.Tensor, torch.Tensor]], num_rows: int) -> None:
    """Give an empty cache the keys and values (1, Hkv, n, D), by layer, of what so many rows begin with."""
    for number, pair in enumerate(start):
        keys, values = (tensor.expand(num_rows, -1, -1, -1) for tensor in pair)
        cache.update(keys, values, number)


class CopyingDecoder:
    """A batch of rows that all begin with their question's prompt, for any model with transformers' cache interface.

    For models that `spinerl.engine.shared_prefix.SharedDecoder` cannot run: each prompt is computed once, then its keys
    and values are copied for each of its rows.  Prompts are padded on the left, where all rows
    append at the same column; so questions enter an empty batch only.
    """

    shares_prompts = False
    max_cohorts = 1

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._compact = not loaded.disables("compact")
        self._cache = new_cache(loaded.model.config)
        self._attended = torch.empty(0, 0, dtype=torch.int64, device=loaded.device)  # (R, tokens): 0 on padding
        self._even = True  # no padding anywhere: the model may take its maskless path
        self._positions = torch.empty(0, dtype=torch.int64, device=loaded.device)  # (R,) of the next token

    def __enter__(self) -> CopyingDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def num_cohorts(self) -> int:
        """1 while there are rows: all of them entered together."""
        return int(len(self._positions) > 0)

    def admit(self, prompts: Sequence[tuple[int, ...]], num_responses: int) -> torch.Tensor:
        """Logits (Q, V) after each of these prompts, each of which gets `num_responses` rows.  The batch is empty."""
        device = self._loaded.device
        longest = max(map(len, prompts))
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.tensor([[self._loaded.pad_id] * (longest - len(p)) + list(p) for p in prompts])
        attended = to_device((torch.arange(longest) >= (longest - lengths).unsqueeze(1)).long(), device)
        self._even = min(map(len, prompts)) == longest
        self._cache = new_cache(self._loaded.model.config)
        arguments = {"position_ids": (attended.cumsum(1) - 1).clamp_min(0)}
        output = self._loaded.model(
            input_ids=to_device(ids, device),
            attention_mask=None if self._even else attended,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **arguments | self._loaded.image_inputs(prompts, longest, left=True),
        )
        self._cache.batch_repeat_interleave(num_responses)
        self._attended = attended.repeat_interleave(num_responses, 0)
        positions = (lengths + self._loaded.offsets(prompts)).repeat_interleave(num_responses)
        self._positions = to_device(positions, device)
        return output.logits[:, -1]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (R, V) after one more token in each row; `tokens` (R,)."""
        self._attended = torch.nn.functional.pad(self._attended, (0, 1), value=1)
        output = self._loaded.model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=None if self._even else self._attended,
            position_ids=self._positions.unsqueeze(1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._positions = self._positions + 1
        return output.logits[:, -1]

    def keep(self, active: torch.Tensor) -> torch.Tensor | None:
        """Drop finished rows, where that pays; `active` (R,) on the CPU says which rows are not finished.

        Returns an index (R',): the old numbers of the rows now in the batch, in order; None if nothing changed.
        """
        num_active = int(active.sum())
        if num_active and not (self._compact and num_active <= _COMPACT_BELOW * len(active)):
            return None
        order = active.nonzero().squeeze(1)
        rows = to_device(order, self._loaded.device)
        self._attended, self._positions = self._attended[rows], self._positions[rows]
        if num_active:
            self._cache.batch_select_indices(rows)
        return order


def bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers together, by the configuration's sizes.

    Rather too much than too little where the configuration leaves something open or its layers differ.
    """
    text = config.get_text_config(decoder=True)

    def size(name: str, otherwise: int) -> int:
        value = getattr(text, name, None)
        value = max(value, default=None) if isinstance(value, list | tuple) else value
        return value if isinstance(value, int) and value > 0 else otherwise

    layers = size("num_hidden_layers", 32)
    heads = size("num_attention_heads", 32)
    width = size("head_dim", -(-size("hidden_size", 4096) // heads))
    return 2 * layers * size("num_key_value_heads", heads) * width * dtype.itemsize


def cache_tokens(loaded: LoadedModel) -> int:
    """How many tokens' keys and values a rollout may hold: `engine.kv_cache_tokens`, or what fits (`fitting_tokens`) as
    measured the first time."""

    def measure() -> int:
        own = fitting_tokens(loaded.model.config, loaded.model.dtype, loaded.device)
        if loaded.steering is None:
            return own
        sizes = [bytes_per_token(m.model.config, m.model.dtype) for m in (loaded, *loaded.steering.models)]
        return max(1, own * sizes[0] // sum(sizes))

    return loaded.settings.kv_cache_tokens or loaded.capabilities.budget("kv_cache", measure)


def fitting_tokens(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> int:
    """How many tokens' keys and values a third of the device's free memory holds; at least 1."""
    return max(1, int(free_bytes(device) * SHARE_OF_MEMORY) // bytes_per_token(config, dtype))


def free_bytes(device: torch.device) -> float:
    """Free memory of a device, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
        return free + reserved - allocated  # torch's allocator keeps freed memory
    return min(_free_on_machine(), _free_in_container())


def _free_on_machine() -> int:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return _UNKNOWN_MEMORY


def _free_in_container() -> float:
    """Bytes that the control group of this process may still take; infinity without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        figures = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(figures["inactive_file"])  # the page cache is reclaimed
    except (OSError, ValueError, KeyError):  # no such file, or "max" for no limit
        return float("inf")
