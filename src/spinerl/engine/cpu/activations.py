"""What the layers put out while responses were sampled, kept for the update that follows.

The first update after a rollout runs the very weights that sampled over the very tokens that were drawn: its forward
pass would compute once more what sampling computed.  So a rollout can keep what each linear layer of the backbone put
out for each token, and what attention did, and the update takes it from there: its forward pass multiplies nothing,
and the graph it leaves behind is the ordinary one.

Kept figures lie in slots, one per token that went through the model.  `Recorder` writes them, `Record` is what
comes out, and `Replay` hands a pass the slots of its tokens.  A record knows the weights it was made with and serves
no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from spinerl.engine.cpu.patching import exchanged_forwards
from spinerl.engine.kv_cache import free_bytes
from spinerl.engine.loading import LoadedModel, state_of

__all__ = ["Record", "Recorder", "Replay", "linear_layers", "passing", "slots_for"]

_MUCH = 1e30  # as the logarithm of a sum of weights: each weight is then 0
_SHARE_OF_MEMORY = 1 / 4  # of what is free


def linear_layers(loaded: LoadedModel) -> list[torch.nn.Linear]:
    """The linear layers of the backbone: those that every token goes through once."""
    return [layer for layer in loaded.model.base_model.modules() if type(layer) is torch.nn.Linear]


@dataclass(frozen=True, eq=False)
class Record:
    """N tokens' figures, in slots, and where each response's tokens are.

    `outputs` (N, n) of each linear layer; `attention`, by layer, (N, H, D) and the logarithm of the weights' sum
    (N, H), of response tokens alone (None: not kept).  `slots` (B, T) of response tokens, -1 where there is none;
    `prompt_slots` is where each prompt begins, with and without its last token.
    """

    outputs: tuple[torch.Tensor, ...]
    attention: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None
    slots: torch.Tensor
    prompt_slots: dict[tuple[int, ...], int]
    weights: object

    def attended(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`attention` of a layer (b, L, H, D) and (b, L, H) in these slots (b, L), those of prompts being meaningless;
        None where it was not kept."""
        if self.attention is None:
            return None
        output, total = (_taken(kept, slots) for kept in self.attention[layer])
        padding = slots < 0
        if padding.any():  # what was never written may be no number
            output[padding], total[padding] = 0.0, _MUCH
        return output, total

    def of_rows(self, rows: torch.Tensor) -> Record:
        """The same for some of the responses."""
        return replace(self, slots=self.slots[rows])

    def serves(self, loaded: LoadedModel) -> bool:
        """Whether the model still has the weights that this was made with."""
        return self.weights == state_of(loaded.model)

    def places(self, prompt: tuple[int, ...], width: int) -> torch.Tensor:
        """The slots (width,) of a prompt's tokens; -1 beyond them."""
        places = torch.full((width,), -1)
        places[: len(prompt)] = self.prompt_slots[prompt] + torch.arange(len(prompt))
        return places


def slots_for(loaded: LoadedModel, most_tokens: int) -> int:
    """How many tokens' figures to make room for: at most so many, and as fit in memory; 0 for a model that no record
    serves."""
    bytes_per_token = sum(layer.out_features for layer in linear_layers(loaded)) * loaded.model.dtype.itemsize
    simple = loaded.device.type == "cpu" and loaded.vision is None and not loaded.without_adapters
    if not simple or loaded.model.dtype.itemsize < 4 or not bytes_per_token:
        return 0
    return min(most_tokens, int(_SHARE_OF_MEMORY * free_bytes(loaded.device)) // bytes_per_token)


class Recorder:
    """Keeps what a model puts out while it samples; to be used in a `with` statement, inside which its layers' forward
    functions are as they will be."""

    def __init__(self, loaded: LoadedModel, num_rows: int, most_tokens: int, capacity: int) -> None:
        self._loaded = loaded
        self._layers = linear_layers(loaded)
        self._capacity = capacity
        self._outputs: list[torch.Tensor | None] = [None] * len(self._layers)
        self._attention: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._slots = torch.full((num_rows, most_tokens), -1)
        self._prompt_slots: dict[tuple[int, ...], int] = {}
        self._pass = slice(0, 0)
        self._kept = 0
        self._whole = True
        self._attends = True

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, passes are recorded."""
        self._weights = state_of(self._loaded.model)
        inner = [layer.forward for layer in self._layers]
        with exchanged_forwards(
            (layer, self._keeping(i, forward))
            for i, (layer, forward) in enumerate(zip(self._layers, inner, strict=True))
        ):
            yield

    def begin_prompts(self, prompts: Sequence[tuple[int, ...]], width: int) -> None:
        """The next pass is of these prompts, padded to the width on the right."""
        start = self._begin(len(prompts) * width)
        for i, prompt in enumerate(prompts):
            # An update runs prompts without their last tokens.  Whichever text goes on after these: they are the same.
            self._prompt_slots[prompt] = self._prompt_slots[prompt[:-1]] = start + i * width

    def begin_rows(self, numbers: torch.Tensor, columns: torch.Tensor) -> None:
        """The next pass is of one token in each of these responses (R,): those in the columns (R,)."""
        start = self._begin(len(numbers))
        self._slots[numbers, columns] = torch.arange(start, start + len(numbers))

    def keep_attention(self, layer: int, output: torch.Tensor, total: torch.Tensor | None) -> None:
        """What attention put out for the rows of this pass, (R, H, D) and (R, H); None for what nobody knows."""
        self._attends &= total is not None
        if total is None or not self._attends or not self._whole:
            return
        if layer not in self._attention:
            self._attention[layer] = (
                output.new_empty(self._capacity, *output.shape[1:]),
                total.new_empty(self._capacity, total.shape[1]),
            )
        for kept, found in zip(self._attention[layer], (output, total), strict=True):
            kept[self._pass] = found

    def storage(self, layers: Sequence[Sequence[torch.nn.Linear]], heads: int, width: int) -> list[list[int]]:
        """The addresses of the slots of these layers' outputs, of what attention put out and of its totals, layer by
        layer, for a loop that fills them itself (`filled`); lists of none where nothing is kept any more."""
        if not self._whole:
            return [[] for _ in layers]
        numbers = {id(layer): number for number, layer in enumerate(self._layers)}
        found = []
        for number, parts in enumerate(layers):
            kept = [self._outputs[numbers[id(layer)]] for layer in parts]
            if number not in self._attention:
                like = next(tensor for tensor in kept if tensor is not None)  # a prompt has been through
                room = self._capacity, heads
                self._attention[number] = like.new_empty(*room, width), like.new_empty(*room)
            kept += self._attention[number]
            found.append([0 if tensor is None else tensor.data_ptr() for tensor in kept])
        return found

    def filled(self) -> int:
        """The first slot of this pass, all of whose figures a loop fills by itself."""
        self._kept = len(self._layers)
        return self._pass.start

    @property
    def keeps(self) -> bool:
        """Whether this still keeps what comes."""
        return self._whole

    def record(self) -> Record | None:
        """What was kept; None where some layer did not put out one row for each token of each pass."""
        self._check_pass()
        outputs = [output for output in self._outputs if output is not None]
        if not self._whole or len(outputs) < len(self._layers):
            return None
        attention = tuple(self._attention[i] for i in range(len(self._attention))) if self._attends else None
        return Record(tuple(outputs), attention or None, self._slots, self._prompt_slots, self._weights)

    def _begin(self, num_tokens: int) -> int:
        self._check_pass()
        start = self._pass.stop
        self._pass = slice(start, start + num_tokens)
        self._kept = 0
        if self._pass.stop > self._capacity:
            self._give_up()
        return start

    def _give_up(self) -> None:
        """Keep nothing, neither what there is nor what comes."""
        self._whole = self._attends = False
        self._outputs = [None] * len(self._layers)
        self._attention = {}

    def _check_pass(self) -> None:
        """Every layer has spoken once in the pass that ends."""
        if self._whole and self._pass.stop and self._kept != len(self._layers):
            self._give_up()

    def _keeping(self, number: int, forward: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        def keep(states: torch.Tensor) -> torch.Tensor:
            output = forward(states)
            if self._whole:
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


class Replay:
    """Hands the passes of an update what a record keeps of their tokens."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.slots: torch.Tensor | None = None  # (b, L) of the pass that runs

    @contextmanager
    def over(self, slots: torch.Tensor) -> Iterator[None]:
        """Inside, a pass runs whose tokens (b, L) have these slots, -1 being padding."""
        self.slots = slots
        try:
            yield
        finally:
            self.slots = None

    def output(self, layer: int) -> torch.Tensor | None:
        """What a linear layer put out for the tokens of the pass, (b, L, n); None outside of one."""
        return None if self.slots is None else _taken(self.record.outputs[layer], self.slots)

    def attention(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`Record.attended` for the tokens of the pass; None outside of one."""
        return None if self.slots is None else self.record.attended(layer, self.slots)


def _taken(kept: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return kept.index_select(0, slots.flatten().clamp_min(0)).view(*slots.shape, *kept.shape[1:])


def passing(replay: Replay | None, slots: torch.Tensor | None) -> AbstractContextManager[None]:
    """`Replay.over`, where there is something to replay."""
    return nullcontext() if replay is None or slots is None else replay.over(slots)
