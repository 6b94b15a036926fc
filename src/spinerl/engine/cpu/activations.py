"""Activations kept while responses were sampled, for the update that follows.

The first update after a rollout runs the very weights that sampled over the very tokens that were sampled: its forward
pass would compute once more what sampling computed.  So a rollout can keep the outputs of each linear layer of the
backbone for each token, and those of attention, and the update takes them from there: its forward pass multiplies
nothing, and the graph it leaves is the ordinary one.

Kept activations lie in slots, one per token that went through the model.  `Recorder` writes them, `KeptActivations` is
the result, and `Reuse` hands a pass the slots of its tokens.  They are valid only for the
weights they were computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from spinerl.engine.cpu.patching import patch_forwards
from spinerl.engine.kv_cache import free_bytes
from spinerl.models.loading import LoadedModel, state_of

if TYPE_CHECKING:
    from spinerl.engine.forward import MicroBatch

__all__ = [
    "KeptActivations",
    "Recorder",
    "Reuse",
    "keeps_activations",
    "kept_bytes",
    "linear_layers",
    "token_capacity",
    "tokens_within",
]

_LARGE_LSE = 1e30  # as a log-sum-exp: each weight is then 0
_SHARE_OF_MEMORY = 1 / 4  # of what is free


def linear_layers(loaded: LoadedModel) -> list[torch.nn.Linear]:
    """The linear layers of the backbone: those that every token goes through once."""
    return [layer for layer in loaded.model.base_model.modules() if type(layer) is torch.nn.Linear]


@dataclass(frozen=True, eq=False)
class KeptActivations:
    """N tokens' activations, in slots, and where each response's tokens are.

    `outputs` (N, n) of each linear layer; `attention`, by layer, its output (N, H, D) and the log-sum-exp of its scores
    (N, H), of response tokens only (None: not kept).  `slots` (B, T) of response tokens, -1 where there is none;
    `prompt_slots` are those of each prompt's tokens, with and without its last one.
    """

    outputs: tuple[torch.Tensor, ...]
    attention: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None
    slots: torch.Tensor
    prompt_slots: dict[tuple[int, ...], torch.Tensor]
    weights: object

    def attended(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`attention` of a layer (b, L, H, D) and (b, L, H) in these slots (b, L), those of prompts being meaningless;
        None where it was not kept."""
        if self.attention is None:
            return None
        output, lse = (_taken(kept, slots) for kept in self.attention[layer])
        padding = slots < 0
        if padding.any():  # memory that was never written may hold NaN
            output[padding], lse[padding] = 0.0, _LARGE_LSE
        return output, lse

    def of_rows(self, rows: torch.Tensor) -> KeptActivations:
        """The same for some of the responses."""
        return replace(self, slots=self.slots[rows])

    def serves(self, loaded: LoadedModel) -> bool:
        """Whether the model still has the weights that these were computed with."""
        return self.weights == state_of(loaded.model)

    def slots_of_prompt(self, prompt: tuple[int, ...], width: int) -> torch.Tensor:
        """The slots (width,) of a prompt's first tokens; -1 beyond them."""
        slots = torch.full((width,), -1)
        slots[: len(prompt)] = self.prompt_slots[prompt][:width]
        return slots

    def slots_of(self, micro: MicroBatch) -> torch.Tensor:
        """The slots (b, L) of a micro-batch's tokens; -1 for padding."""
        slots = torch.full_like(micro.input_ids, -1)
        for row, number, prompt, length in zip(slots, micro.rows, micro.prompts, micro.lengths, strict=True):
            head = self.slots_of_prompt(prompt, len(prompt))
            if micro.prefix_of is not None:
                head = head[-1:]
            row[: len(head)] = head
            tail = row[len(head) : length]
            found = self.slots[number, : len(tail)]
            tail[: len(found)] = found
        return slots


def keeps_activations(loaded: LoadedModel) -> bool:
    """Whether activations of this model can be kept: float32 or wider, on a CPU, no images, adapters in use."""
    plain = loaded.device.type == "cpu" and loaded.vision is None and not loaded.without_adapters
    return plain and loaded.model.dtype.itemsize >= 4 and bool(linear_layers(loaded))


def token_capacity(loaded: LoadedModel) -> int:
    """The activations of how many tokens may be kept: `engine.activation_tokens`, or as many as a quarter of the free
    memory held when it was first measured."""

    def measure() -> int:
        return tokens_within(loaded, free_bytes(loaded.device))

    return loaded.settings.activation_tokens or loaded.capabilities.budget("activations", measure)


def tokens_within(loaded: LoadedModel, free: float) -> int:
    """As many tokens as a quarter of so much free memory holds."""
    return int(_SHARE_OF_MEMORY * free) // kept_bytes(loaded)


def kept_bytes(loaded: LoadedModel) -> int:
    """Bytes that the outputs of linear layers take for a token."""
    return sum(layer.out_features for layer in linear_layers(loaded)) * loaded.model.dtype.itemsize


class Recorder:
    """Keeps a model's activations while it samples."""

    def __init__(self, loaded: LoadedModel, num_rows: int, most_tokens: int, capacity: int) -> None:
        self._loaded = loaded
        self._layers = linear_layers(loaded)
        self._capacity = capacity
        self._outputs: list[torch.Tensor | None] = [None] * len(self._layers)
        self._attention: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._slots = torch.full((num_rows, most_tokens), -1)
        self._prompt_slots: dict[tuple[int, ...], torch.Tensor] = {(): torch.empty(0, dtype=torch.int64)}
        self._pass = slice(0, 0)
        self._kept = 0
        self._complete = True
        self._keeps_attention = True

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, passes are recorded.  To be entered last: it wraps the layers' forward functions as they then are."""
        self._weights = state_of(self._loaded.model)
        inner = [layer.forward for layer in self._layers]
        with patch_forwards(
            (layer, self._keeping(i, forward))
            for i, (layer, forward) in enumerate(zip(self._layers, inner, strict=True))
        ):
            yield

    def begin_prompts(self, prompts: Sequence[tuple[int, ...]], width: int, start: int = 0) -> None:
        """The next pass is of these prompts, padded to the width on the right, from token `start` on: the tokens before
        it were a prompt in an earlier pass."""
        first = self._begin(len(prompts) * (width - start))
        for i, prompt in enumerate(prompts):
            own = first + i * (width - start) + torch.arange(len(prompt) - start)
            slots = torch.cat([self._prompt_slots[prompt[:start]], own])
            # An update runs prompts without their last tokens.  Whichever text goes on after these: they are the same.
            self._prompt_slots[prompt], self._prompt_slots[prompt[:-1]] = slots, slots[:-1]

    def begin_rows(self, numbers: torch.Tensor, columns: torch.Tensor) -> None:
        """The next pass is of one token in each of these responses (R,): those in the columns (R,)."""
        start = self._begin(len(numbers))
        self._slots[numbers, columns] = torch.arange(start, start + len(numbers))

    def keep_attention(self, layer: int, output: torch.Tensor, lse: torch.Tensor | None) -> None:
        """Attention's output for the rows of this pass (R, H, D), and its log-sum-exp (R, H); without it, nothing of
        attention is kept any more."""
        self._keeps_attention &= lse is not None
        if lse is None or not self._keeps_attention or not self._complete:
            return
        if layer not in self._attention:
            self._attention[layer] = (
                output.new_empty(self._capacity, *output.shape[1:]),
                lse.new_empty(self._capacity, lse.shape[1]),
            )
        for kept, found in zip(self._attention[layer], (output, lse), strict=True):
            kept[self._pass] = found

    def storage(self, layers: Sequence[Sequence[torch.nn.Linear]], heads: int, head_dim: int) -> list[list[int]]:
        """The addresses of the slots of these layers' outputs, of attention's and of its log-sum-exp, layer by layer,
        for a loop that fills them itself (`filled`); empty lists where nothing is kept any more."""
        if not self._complete:
            return [[] for _ in layers]
        numbers = {id(layer): number for number, layer in enumerate(self._layers)}
        found = []
        for number, parts in enumerate(layers):
            kept = [self._outputs[numbers[id(layer)]] for layer in parts]
            if number not in self._attention:
                like = next(tensor for tensor in kept if tensor is not None)  # a prompt has been through
                shape = self._capacity, heads
                self._attention[number] = like.new_empty(*shape, head_dim), like.new_empty(*shape)
            kept += self._attention[number]
            found.append([0 if tensor is None else tensor.data_ptr() for tensor in kept])
        return found

    def filled(self) -> int:
        """The first slot of this pass, which a loop fills by itself."""
        self._kept = len(self._layers)
        return self._pass.start

    @property
    def keeps(self) -> bool:
        """Whether activations are still kept."""
        return self._complete

    def activations(self) -> KeptActivations | None:
        """What was kept; None where some layer did not have one output for each token of each pass."""
        self._check_pass()
        outputs = [output for output in self._outputs if output is not None]
        if not self._complete or len(outputs) < len(self._layers):
            return None
        attention = tuple(self._attention[i] for i in range(len(self._attention))) if self._keeps_attention else None
        return KeptActivations(tuple(outputs), attention or None, self._slots, self._prompt_slots, self._weights)

    def _begin(self, num_tokens: int) -> int:
        self._check_pass()
        start = self._pass.stop
        self._pass = slice(start, start + num_tokens)
        self._kept = 0
        if self._pass.stop > self._capacity:
            self._give_up()
        return start

    def _give_up(self) -> None:
        """Drop what was kept, and keep nothing more."""
        self._complete = self._keeps_attention = False
        self._outputs = [None] * len(self._layers)
        self._attention = {}

    def _check_pass(self) -> None:
        """Give up unless every layer has run once in the pass that ends."""
        if self._complete and self._pass.stop and self._kept != len(self._layers):
            self._give_up()

    def _keeping(self, number: int, forward: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        def keep(states: torch.Tensor) -> torch.Tensor:
            output = forward(states)
            if self._complete:
                self._keep(number, output.flatten(0, -2))
            return output

        return keep

    def _keep(self, number: int, rows: torch.Tensor) -> None:
        if len(rows) != self._pass.stop - self._pass.start:
            self._give_up()
            return
        kept = self._outputs[number]
        if kept is None:
            kept = self._outputs[number] = rows.new_empty(self._capacity, rows.shape[1])
        kept[self._pass] = rows
        self._kept += 1


class Reuse:
    """Hands the passes of an update the kept activations of their tokens."""

    def __init__(self, kept: KeptActivations) -> None:
        self.kept = kept
        self.slots: torch.Tensor | None = None  # (b, L) of the pass that runs

    @contextmanager
    def passing(self, tokens: MicroBatch | Sequence[tuple[int, ...]], width: int, start: int = 0) -> Iterator[None]:
        """Inside, the pass of a micro-batch, or of prompts of this width from token `start` on, runs."""
        if isinstance(tokens, Sequence):
            self.slots = torch.stack([self.kept.slots_of_prompt(prompt, width)[start:] for prompt in tokens])
        else:
            self.slots = self.kept.slots_of(tokens)
        try:
            yield
        finally:
            self.slots = None

    def output(self, layer: int) -> torch.Tensor | None:
        """A linear layer's output for the tokens of the pass, (b, L, n); None outside of one."""
        return None if self.slots is None else _taken(self.kept.outputs[layer], self.slots)

    def attention(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`KeptActivations.attended` for the tokens of the pass; None outside of one."""
        return None if self.slots is None else self.kept.attended(layer, self.slots)


def _taken(kept: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return kept.index_select(0, slots.flatten().clamp_min(0)).view(*slots.shape, *kept.shape[1:])
