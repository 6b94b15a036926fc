"""Teacher-forced passes over finished responses: which rows run together, and their hidden states.

A question's prompt is computed once for all its responses (`Prefix`): the responses run as continuations of its
keys and values, through transformers' own cache interface.  So do prompts that begin with the same tokens.  Where the
model does not allow that, or it does not pay, each row carries its prompt: [prompt, response], padded on the right,
where causal attention cannot see.  Rows end just before their last wanted token, and rows without one are not run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.pytorch_utils import Conv1D

from spinerl.config import OptimConfig
from spinerl.engine.attention import ATTENTION, exchanged
from spinerl.engine.backend import ForwardPath, backend_of
from spinerl.engine.kv_cache import begin_cache
from spinerl.engine.lm_head import head_logits
from spinerl.engine.prompts import LEAST_START, common_start
from spinerl.engine.self_check import differences, nudged, only_embeddings_learn
from spinerl.machine import to_device
from spinerl.models.loading import LoadedModel
from spinerl.types import Batch

__all__ = [
    "MicroBatch",
    "Piece",
    "Prefix",
    "check_extending",
    "graph_bytes",
    "logits",
    "micro_batch",
    "plan",
    "settle",
    "shares_prompts",
    "states_and_gradient",
    "stream_bytes",
    "wanted_states",
]

_WORTH_SHARING = 0.9  # share prompts when that leaves at most this share of the tokens
_ENOUGH_TOKENS = 2048  # a pass of so many runs at full speed: from here on it is cut rather than padded
_LITTLE_PADDING = 0.9  # rows shorter than this share of the longest are too short to be padded to it


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a batch ready for one forward pass.  N is the number of wanted tokens among them.

    `row_of`, `column_of` (N,) say which cell of the (B, T) tensors each wanted token is; `input_ids` (b, L) are
    the padded rows; `positions` (N,) is the flat position in (b, L) whose output predicts it.  `prefix_of` (b,) is the
    prefix that each row continues, or None where rows carry their prompts, `prompts` (b of them).  `rows` (b of them)
    are the batch's, `lengths` (b of them) how long they are without padding.
    """

    row_of: torch.Tensor
    column_of: torch.Tensor
    input_ids: torch.Tensor
    positions: torch.Tensor
    prefix_of: torch.Tensor | None
    prompts: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Micro-batches, and the prompts (each without its last token) that their rows continue, if they share any."""

    prefixes: tuple[tuple[int, ...], ...]
    micros: tuple[MicroBatch, ...]


def plan(
    loaded: LoadedModel, batch: Batch, wanted: torch.Tensor, optim: OptimConfig, *, pads: bool = True
) -> list[Piece]:
    """The passes that compute the wanted (B, T) tokens, each of at most `optim.micro_batch_tokens` padded tokens
    (`optim.micro_batch_rows` rows where that is given); a single longer row still runs by itself.

    `pads`: rows of unlike lengths cost padding; False where those that continue prompts run without any.
    """
    if batch.tokens.shape[1] == 0:
        return []
    columns = torch.arange(batch.tokens.shape[1])
    last = torch.where(wanted, columns, -1).amax(dim=1)
    if loaded.disables("skip"):
        last = last.clamp_min(0)
    if loaded.disables("trim"):
        last = torch.where(last >= 0, batch.mask.sum(dim=1) - 1, last)
    # The output at position p predicts token p + 1: to predict response token t, a row needs t response tokens.
    ends = {row: t for row, t in enumerate(last.tolist()) if t >= 0}
    if _pays(batch, ends) and shares_prompts(loaded):
        return _shared_pieces(batch, wanted, ends, optim, loaded, pads)
    lengths = {row: len(batch.prompts[row]) + t for row, t in ends.items()}
    micros = [
        micro_batch(batch, wanted, rows, ends, loaded.pad_id, None)
        for rows in _cut(_ordered(lengths, loaded), lengths, optim.micro_batch_rows, optim.micro_batch_tokens)
    ]
    return [Piece((), (micro,)) for micro in micros]


def wanted_states(
    loaded: LoadedModel, micro: MicroBatch, prefix: Prefix | None, path: ForwardPath | None = None
) -> torch.Tensor:
    """What predicts the wanted tokens: last hidden states (N, d), for `logits` to turn into logits.

    `path`: how the pass runs; None: as the model's backend would for one that reuses nothing.
    """
    path = path or backend_of(loaded).forward()
    ids = to_device(micro.input_ids, loaded.device)
    positions = to_device(micro.positions, loaded.device)
    if prefix is not None:
        more, extends = prefix.continuation(micro)
    else:
        more, extends = loaded.image_inputs(micro.prompts, ids.shape[1]), False
    attention = exchanged(loaded.model, ATTENTION) if extends else nullcontext()
    with path.passing(micro, ids.shape[1]), loaded.acting(), attention:
        if _splits_head(loaded):
            states = loaded.model.base_model(input_ids=ids, use_cache=prefix is not None, **more)[0]
        else:
            states = loaded.model(input_ids=ids, use_cache=prefix is not None, **more).logits
    return states.flatten(0, 1)[positions]


def logits(loaded: LoadedModel, states: torch.Tensor) -> torch.Tensor:
    """Logits (n, V) of some of the rows that `wanted_states` gave."""
    return head_logits(loaded.model, states) if _splits_head(loaded) else states


class Prefix:
    """The keys and values of a piece's prompts, computed once.

    With gradient enabled its rows may run, and go backward, one micro-batch after the other: they differentiate
    down to the keys and values, whose gradients add up, and `backward` takes the sum through the prompts once.

    `path` as for `wanted_states`; `least_start` as `least` for `common_start`, whose tokens run once.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prefixes: Sequence[tuple[int, ...]],
        path: ForwardPath | None = None,
        least_start: int = LEAST_START,
    ) -> None:
        self._path = path or backend_of(loaded).forward()
        self._device = loaded.device
        self._lengths = [len(p) for p in prefixes]
        width = max(self._lengths)
        padded = [[*p, *([loaded.pad_id] * (width - len(p)))] for p in prefixes]
        # Padding on the right: no prompt token sees it, and continuations are masked from it.
        ids = to_device(torch.tensor(padded), loaded.device)
        more = loaded.image_inputs(prefixes, width)
        start = 0 if loaded.vision is not None else common_start(prefixes, least_start)
        cache = self._begun(loaded, prefixes, ids, start)
        with self._path.passing(prefixes, width, start), loaded.acting():
            loaded.model.base_model(input_ids=ids[:, start:], past_key_values=cache, use_cache=True, **more)
        self._width = width
        self._next_positions = torch.tensor(self._lengths) + loaded.offsets(prefixes)
        self._computed: list[torch.Tensor] = []
        self._leaves: list[torch.Tensor] = []
        layers: list[Any] = list(cache.layers)
        for layer in layers:
            layer.keys, layer.values = self._leaf(layer.keys), self._leaf(layer.values)
        self._cache, self._layers = cache, layers

    def _begun(
        self, loaded: LoadedModel, prefixes: Sequence[tuple[int, ...]], ids: torch.Tensor, start: int
    ) -> DynamicCache:
        """A cache with the keys and values of the first `start` tokens, which these prompts share."""
        cache = DynamicCache(config=loaded.model.config)
        if start:
            common = DynamicCache(config=loaded.model.config)
            with self._path.passing(prefixes[:1], start), loaded.acting():
                loaded.model.base_model(input_ids=ids[:1, :start], past_key_values=common, use_cache=True)
            layers: list[Any] = list(common.layers)
            begin_cache(cache, ((layer.keys, layer.values) for layer in layers), len(ids))
        return cache

    def continuation(self, micro: MicroBatch) -> tuple[dict[str, object], bool]:
        """The model arguments that make a micro-batch's rows continue their prompts, and whether they do so without
        copies (`ForwardPath.extend`)."""
        assert micro.prefix_of is not None
        prefix_of = to_device(micro.prefix_of, self._device)
        cache = self._path.extend(self._layers, self._lengths, micro.prefix_of)
        extends = cache is not None
        if cache is None:
            cache = copy.copy(self._cache)
            cache.layers = [self._continued(layer, prefix_of) for layer in self._layers]
        positions = self._next_positions[micro.prefix_of].unsqueeze(1) + torch.arange(micro.input_ids.shape[1])
        arguments: dict[str, object] = {"past_key_values": cache, "position_ids": to_device(positions, self._device)}
        lengths = torch.tensor(self._lengths)[micro.prefix_of].unsqueeze(1)
        if not extends and bool((lengths < self._width).any()):
            real = torch.arange(self._width) < lengths
            mask = torch.cat([real, real.new_ones(micro.input_ids.shape)], dim=1)
            arguments["attention_mask"] = to_device(mask, self._device).long()
        return arguments, extends

    def backward(self) -> None:
        """Carry the gradients that have gathered at the keys and values through the prompts."""
        pairs = [(c, leaf.grad) for c, leaf in zip(self._computed, self._leaves, strict=True) if leaf.grad is not None]
        if pairs:
            torch.autograd.backward([c for c, _ in pairs], [g for _, g in pairs])

    def _leaf(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.requires_grad:
            return tensor
        leaf = tensor.detach().requires_grad_()
        self._computed.append(tensor)
        self._leaves.append(leaf)
        return leaf

    @staticmethod
    def _continued(layer: Any, prefix_of: torch.Tensor) -> Any:
        other = copy.copy(layer)
        if len(layer.keys) == 1:  # one question: a view, for `update` copies it once more anyway
            other.keys, other.values = (
                tensor.expand(len(prefix_of), *tensor.shape[1:]) for tensor in (layer.keys, layer.values)
            )
        else:
            other.batch_select_indices(prefix_of)
        return other


def graph_bytes(loaded: LoadedModel) -> int:
    """About how many bytes of a token a pass keeps for its way back: inputs and outputs of linear layers, an input that
    several of them read (queries, keys and values; gate and up) once."""
    layers, hidden = _sizes(loaded)
    return max(1, sum(map(sum, _linear(loaded))) - 3 * layers * hidden) * loaded.model.dtype.itemsize


def stream_bytes(loaded: LoadedModel) -> int:
    """The same of a pass that keeps only the residual stream, with what going back through one layer takes."""
    layers, hidden = _sizes(loaded)
    of_one = sum(outputs for _, outputs in _linear(loaded)) // layers
    return (layers * hidden + 2 * of_one) * loaded.model.dtype.itemsize


def _linear(loaded: LoadedModel) -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear layers of the backbone, of whichever class."""
    found = []
    for module in loaded.model.base_model.modules():
        if isinstance(module, torch.nn.Linear):  # one in 4 bits has its weight in another shape
            found.append((module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            found.append(tuple(module.weight.shape))
    return found


def _sizes(loaded: LoadedModel) -> tuple[int, int]:
    """(layers, width of the residual stream)."""
    text = loaded.model.config.get_text_config(decoder=True)
    return max(1, int(text.num_hidden_layers)), int(text.hidden_size)


def settle(loaded: LoadedModel) -> None:
    """Run the self-checks of passes now."""
    _splits_head(loaded)
    shares_prompts(loaded)


def _splits_head(loaded: LoadedModel) -> bool:
    """Whether backbone and head, run apart, give the model's own logits."""

    def check() -> str | None:
        ids = torch.arange(6, device=loaded.device).unsqueeze(0) + 1
        with torch.no_grad():
            states = loaded.model.base_model(input_ids=ids, use_cache=False)[0]
            whole = loaded.model(input_ids=ids, use_cache=False).logits
            return differences([("logits", head_logits(loaded.model, states[0]))], {"logits": whole[0]})

    return loaded.capabilities.allows("split_head", check)


def shares_prompts(loaded: LoadedModel) -> bool:
    """Whether rows that continue a prompt's keys and values give the same states, and the same gradient."""
    if loaded.disables("shared-prefix"):
        return False
    if any(getattr(module, "gradient_checkpointing", False) for module in loaded.model.modules()):
        return False  # layers that are computed a second time would enter the cache twice
    return loaded.capabilities.allows("shared_prompts", lambda: check_extending(loaded, ForwardPath(loaded)))


def check_extending(loaded: LoadedModel, path: ForwardPath) -> str | None:
    """What differs between rows that continue shared prompts by this path, and rows that carry theirs; None: nothing.

    Two prompts of unlike lengths that begin alike, two rows each.
    """
    tokens = torch.arange(16).view(4, 4) + 2
    prompts = ((3, 4, 5), (3, 4, 5), (3, 8, 7, 6, 5), (3, 8, 7, 6, 5))
    batch = Batch(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool), 1.0)
    ends = dict.fromkeys(range(4), 3)
    apart = [Piece((), (micro_batch(batch, batch.mask, list(ends), ends, loaded.pad_id, None),))]
    together = _shared_pieces(batch, batch.mask, ends, OptimConfig(), loaded)

    def again() -> dict[str, torch.Tensor]:
        with nudged(loaded.model):
            return states_and_gradient(loaded, apart, path)

    expected = states_and_gradient(loaded, apart, path)
    return differences(states_and_gradient(loaded, together, path).items(), expected, again)


def states_and_gradient(loaded: LoadedModel, pieces: list[Piece], path: ForwardPath) -> dict[str, torch.Tensor]:
    """Wanted states, by row and column, and a gradient of them that reaches the input embeddings: for self-checks."""
    found = {}
    with only_embeddings_learn(loaded.model) as weight:
        for piece in pieces:
            prefix = Prefix(loaded, piece.prefixes, path, least_start=1) if piece.prefixes else None
            for micro in piece.micros:
                states = wanted_states(loaded, micro, prefix, path)
                cells = zip(micro.row_of.tolist(), micro.column_of.tolist(), strict=True)
                found |= dict(zip(cells, states.detach(), strict=True))
                grad = torch.linspace(-1, 1, states.shape[1], device=states.device, dtype=states.dtype)
                states.backward(grad.expand(states.shape))
            if prefix is not None:
                prefix.backward()
        assert weight.grad is not None
        states = torch.stack([found[cell] for cell in sorted(found)])
        return {"hidden states": states, "the gradient of input embeddings": weight.grad}


def _slides(loaded: LoadedModel) -> bool:
    """Whether some layer sees a window of columns, where padding inside a row would count as distance."""
    return any(type(layer) is not DynamicLayer for layer in DynamicCache(config=loaded.model.config).layers)


def _pays(batch: Batch, ends: dict[int, int]) -> bool:
    """Whether sharing saves enough tokens, prompts of one token (nothing to share) aside."""
    apart = sum(len(batch.prompts[row]) + t for row, t in ends.items())
    prompts = {batch.prompts[row] for row in ends}
    together = sum(len(prompt) - 1 for prompt in prompts) + sum(t + 1 for t in ends.values())
    return all(len(prompt) > 1 for prompt in prompts) and together <= _WORTH_SHARING * apart


def _shared_pieces(
    batch: Batch,
    wanted: torch.Tensor,
    ends: dict[int, int],
    optim: OptimConfig,
    loaded: LoadedModel,
    pads: bool = True,
) -> list[Piece]:
    """Whole questions together while they fit; the rows of a piece cut into micro-batches."""
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row in ends:
        rows_of.setdefault(batch.prompts[row], []).append(row)
    lengths = {row: t + 1 for row, t in ends.items()}  # the prompt's last token, then t response tokens
    pieces = []
    for prompts in _together(rows_of, lengths, optim, may_pad=not _slides(loaded)):
        prefixes = tuple(prompt[:-1] for prompt in prompts)
        number = {prompt: i for i, prompt in enumerate(prompts)}
        rows = {row: lengths[row] for prompt in prompts for row in rows_of[prompt]}
        budget = max(1, optim.micro_batch_tokens - len(prompts) * max(map(len, prefixes)))
        least_filled = _LITTLE_PADDING if pads else 0.0
        cuts = _cut(_ordered(rows, loaded), rows, optim.micro_batch_rows, budget, least_filled)
        pieces.append(
            Piece(
                prefixes,
                tuple(micro_batch(batch, wanted, cut, ends, loaded.pad_id, number) for cut in cuts),
            )
        )
    return pieces


def _together(
    rows_of: dict[tuple[int, ...], list[int]], lengths: dict[int, int], optim: OptimConfig, may_pad: bool
) -> Iterator[list[tuple[int, ...]]]:
    """Prompts, longest first, in chunks whose prompts and rows fit into one pass."""
    chunk: list[tuple[int, ...]] = []
    rows = 0
    used = 0
    for prompt in sorted(rows_of, key=lambda prompt: (-len(prompt), prompt)):
        own = sum(lengths[row] for row in rows_of[prompt])
        fits = used + len(prompt) + own <= optim.micro_batch_tokens
        if optim.micro_batch_rows:
            fits = rows + len(rows_of[prompt]) <= optim.micro_batch_rows
        alike = bool(chunk) and (len(prompt) == len(chunk[0]) or (may_pad and len(prompt) >= 0.5 * len(chunk[0])))
        if chunk and not (fits and alike):
            yield chunk
            chunk, used, rows = [], 0, 0
        chunk.append(prompt)
        used += len(chunk[0]) + own
        rows += len(rows_of[prompt])
    if chunk:
        yield chunk


def _ordered(lengths: dict[int, int], loaded: LoadedModel) -> list[int]:
    """Rows, the longest first."""
    return list(lengths) if loaded.disables("sort") else sorted(lengths, key=lambda row: (-lengths[row], row))


def _cut(
    rows: Sequence[int],
    lengths: dict[int, int],
    max_rows: int,
    max_tokens: int,
    least_filled: float = _LITTLE_PADDING,
) -> Iterator[list[int]]:
    """The rows in chunks of at most `max_rows` rows, or of at most `max_tokens` padded tokens, in which rows fill at
    least this share of the width."""
    chunk: list[int] = []
    width = 0
    for row in rows:
        wider = max(width, lengths[row])
        if max_rows:
            full = len(chunk) == max_rows
        else:
            full = (len(chunk) + 1) * wider > max_tokens or (
                len(chunk) * width >= _ENOUGH_TOKENS and lengths[row] < least_filled * width
            )
        if chunk and full:
            yield chunk
            chunk, wider = [], lengths[row]
        chunk.append(row)
        width = wider
    if chunk:
        yield chunk


def micro_batch(
    batch: Batch,
    wanted: torch.Tensor,
    rows: list[int],
    ends: dict[int, int],
    pad_id: int,
    number: dict[tuple[int, ...], int] | None = None,
) -> MicroBatch:
    """These rows, each up to its end (the column of its last wanted token), which is not an input itself.

    Rows are [prompt, response], or with `number` (of each prompt's prefix) [last prompt token, response].
    """
    if number is not None:  # a prompt's rows together
        rows = sorted(rows, key=lambda row: number[batch.prompts[row]])
    prompts = tuple(batch.prompts[row] for row in rows)
    heads = prompts if number is None else [prompt[-1:] for prompt in prompts]
    lengths = tuple(len(head) + ends[row] for head, row in zip(heads, rows, strict=True))
    width = max(lengths)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    for i, (head, row) in enumerate(zip(heads, rows, strict=True)):
        ids[i, : len(head)] = torch.tensor(head)
        ids[i, len(head) : len(head) + ends[row]] = batch.tokens[row, : ends[row]]
    local, column_of = wanted[rows].nonzero(as_tuple=True)
    head_lengths = torch.tensor([len(head) for head in heads])
    return MicroBatch(
        row_of=torch.tensor(rows)[local],
        column_of=column_of,
        input_ids=ids,
        positions=local * width + head_lengths[local] + column_of - 1,
        prefix_of=None if number is None else torch.tensor([number[prompt] for prompt in prompts]),
        prompts=prompts,
        rows=tuple(rows),
        lengths=lengths,
    )
