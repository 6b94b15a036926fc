"""Decoding many responses to one prompt while its keys and values are held, and read, once.

Prompts that enter together and begin with the same tokens (an instruction, worked examples) compute these once.

The model runs as it is; only its attention function is exchanged, through transformers' `AttentionInterface`, and
its cache.  For each new token a row's query meets the keys of its question's prompt, all rows of a question in one
matmul, and the keys of its own earlier tokens, under one softmax.

Questions that enter the batch together are a cohort: all rows of a cohort have the same number of new tokens, so
that nothing but prompts of unlike lengths ever needs a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from spinerl.engine.attention import ATTENTION, AttendingLayer, implementation
from spinerl.engine.kv_cache import begin_cache
from spinerl.engine.prompts import LEAST_START, common_start
from spinerl.engine.self_check import differences
from spinerl.machine import to_device
from spinerl.models.capabilities import Unsupported
from spinerl.models.loading import LoadedModel

__all__ = [
    "BLOCK",
    "BLOCK_ON_CPU",
    "PREFILL_TOKENS",
    "Cohort",
    "LayerState",
    "SharedDecoder",
    "SharedLayer",
    "can_share_prompts",
    "check_decoding",
]

Comparison = Callable[[Iterable[tuple[str, torch.Tensor]], Mapping[str, torch.Tensor]], str | None]
"""As `spinerl.engine.self_check.differences`."""

BLOCK_ON_CPU, BLOCK = 64, 256  # tokens whose keys lie together; small blocks are fast on a CPU only
PREFILL_TOKENS = 8192  # padded prompt tokens per forward pass
_COMPACT_AT = 1 / 32  # finished rows leave once they are this share of a cohort: only as many rows are moved


def can_share_prompts(loaded: LoadedModel) -> bool:
    """Whether `SharedDecoder` gives this model's own logits, and is not disabled."""
    if loaded.disables("shared-prefix"):
        return False
    return loaded.capabilities.allows("shared_prefix", lambda: check_decoding(loaded, SharedDecoder(loaded)))


@torch.no_grad()
def check_decoding(loaded: LoadedModel, decoding: SharedDecoder, compare: Comparison = differences) -> str | None:
    """What differs, by `compare`, between logits by this decoder and by the model's own passes; None if nothing does.

    Three prompts of unlike lengths, two responses each: two that begin alike, and one that enters two tokens later.
    """
    decoding.least_start = 1
    entering = {0: ((3, 4, 5, 6, 7), (3, 4, 9)), 2: ((8, 9),)}  # by token
    vocab_size = loaded.model.config.get_text_config().vocab_size
    tokens = (torch.arange(24, device=loaded.device).view(6, 4) * 7 + 2) % vocab_size
    found: list[list[torch.Tensor]] = []
    with decoding as decoder:
        for t in range(4):
            if t in entering:
                found += [[logits.expand(2, -1)] for logits in decoder.admit(entering[t], 2)]
            logits = decoder.step(tokens[: 2 * len(found), t])
            for rows, new in zip(found, logits.split(2), strict=True):
                rows.append(new)
    expected = {}
    for i, (t, prompt) in enumerate((t, prompt) for t, prompts in entering.items() for prompt in prompts):
        ids = torch.tensor([prompt, prompt], device=loaded.device)
        ids = torch.cat([ids, tokens[2 * i : 2 * i + 2, t:]], dim=1)
        logits = loaded.model(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 :]
        expected[f"logits after prompt {i}"] = logits
    return compare(zip(expected, (torch.stack(rows, dim=1) for rows in found), strict=True), expected)


class SharedDecoder:
    """A batch of rows that continue shared prompts; to be used in a `with` statement, which exchanges the attention.

    Rows are in the order in which they were admitted, until `keep` moves them.

    Raises Unsupported, when it is made or used, for an architecture it cannot run.
    """

    shares_prompts = True
    max_cohorts = 8  # each costs some operations per layer and token
    least_start = LEAST_START  # of `common_start`

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._compact = not loaded.disables("compact")
        self._cohorts: list[Any] = []  # of Cohort, or of what `_cohort` gives
        self._windows = _windows(loaded.model)
        self._cache = Cache(layers=[self._layer(i) for i in range(len(self._windows))])
        self._ordinary = implementation(loaded.model)

    def _layer(self, number: int) -> SharedLayer:
        """The layer of this number for the model's cache."""
        return SharedLayer(number, self._windows[number], self._cohorts)

    def _cohort(
        self, lengths: list[int], offsets: torch.Tensor, num_responses: int, layers: list[LayerState]
    ) -> Cohort:
        return Cohort(lengths, offsets, num_responses, layers)

    def _begin_prompts(self, prompts: Sequence[tuple[int, ...]], width: int, start: int = 0) -> None:
        """Called before the pass of these prompts, padded to this width, from token `start` on."""

    def __enter__(self) -> Self:
        self._loaded.model.set_attn_implementation(ATTENTION)
        return self

    def __exit__(self, *_: object) -> None:
        self._loaded.model.set_attn_implementation(self._ordinary)

    @property
    def num_cohorts(self) -> int:
        """How many cohorts the batch is made of."""
        return len(self._cohorts)

    def admit(self, prompts: Sequence[tuple[int, ...]], num_responses: int) -> torch.Tensor:
        """Logits (Q, V) after each of these prompts, each of which gets `num_responses` rows at the end of the batch.

        Prompts of like lengths should stand side by side.
        """
        for cohort in self._cohorts:
            cohort.release()
        self._loaded.model.set_attn_implementation(self._ordinary)
        try:
            logits = []
            for chunk in _of_like_length(prompts):
                chunk_logits, layers = self._prefill(chunk)
                offsets = self._loaded.offsets(chunk)
                self._cohorts.append(self._cohort([len(p) for p in chunk], offsets, num_responses, layers))
                logits.append(chunk_logits)
        finally:
            self._loaded.model.set_attn_implementation(ATTENTION)
        return torch.cat(logits)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (R, V) after one more token in each row; `tokens` (R,)."""
        for cohort in self._cohorts:
            cohort.begin_token()
        positions = torch.cat([cohort.positions for cohort in self._cohorts])
        output = self._loaded.model(
            input_ids=tokens.unsqueeze(1),
            position_ids=positions.unsqueeze(1),
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def keep(self, active: torch.Tensor) -> torch.Tensor | None:
        """Drop finished rows, where that pays; `active` (R,) on the CPU says which rows are not finished.

        Returns an index (R',): the old numbers of the rows now in the batch, in their new order; None if nothing
        changed.
        """
        cohorts, orders, start = [], [], 0
        for cohort, mask in zip(self._cohorts, active.split([c.num_rows for c in self._cohorts]), strict=True):
            order = torch.arange(len(mask))
            num_active = int(mask.sum())
            if num_active == 0 or (self._compact and len(mask) - num_active > _COMPACT_AT * len(mask)):
                order = _filling_holes(mask)
            if num_active:
                cohorts.append(cohort)
                if len(order) < len(mask):
                    cohort.select(order)
            orders.append(order + start)
            start += len(mask)
        self._cohorts[:] = cohorts
        order = torch.cat(orders)
        return order if len(order) < len(active) else None

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, list[LayerState]]:
        """Logits after the prompts, and their keys and values.  Padding on the right is seen by no prompt token."""
        width = max(map(len, prompts))
        start = 0 if self._loaded.vision is not None else common_start(prompts, self.least_start)
        common = self._prompt_pass([prompts[0][:start]], start, 0, [])[1] if start else []
        step = max(1, PREFILL_TOKENS // (width - start))
        logits: list[torch.Tensor] = []
        chunks: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        for first in range(0, len(prompts), step):
            chunk_logits, pairs = self._prompt_pass(prompts[first : first + step], width, start, common)
            logits.append(chunk_logits)
            chunks.append(pairs)
        layers = [
            tuple(torch.cat(tensors) for tensors in zip(*pairs, strict=True)) for pairs in zip(*chunks, strict=True)
        ]
        if len(layers) != len(self._windows):
            raise Unsupported("not every layer keeps keys and values of its own")
        return torch.cat(logits), [LayerState(keys, values) for keys, values in layers]

    def _prompt_pass(
        self,
        prompts: Sequence[tuple[int, ...]],
        width: int,
        start: int,
        common: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Logits after these prompts, padded to this width, and their keys and values by layer.  Those of their first
        `start` tokens are known, `common` (1, Hkv, start, D)."""
        loaded = self._loaded
        rows = [[*prompt[start:], *[loaded.pad_id] * (width - len(prompt))] for prompt in prompts]
        last = to_device(torch.tensor([len(prompt) - start - 1 for prompt in prompts]), loaded.device)
        cache = DynamicCache()  # without the configuration: sliding layers too keep the whole prompt
        begin_cache(cache, common, len(prompts))
        more = loaded.image_inputs(prompts, width)
        self._begin_prompts(prompts, width, start)
        logits = _last_logits(loaded.model, to_device(torch.tensor(rows), loaded.device), last, cache, more)
        return logits, [(layer.keys, layer.values) for layer in cache.layers]  # pyright: ignore


def _windows(model: PreTrainedModel) -> list[int | None]:
    """How far each layer sees, by the configuration; None for all the way.  Unsupported for layers of other kinds."""
    if "chunked_attention" in (getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()):
        raise Unsupported("attention in chunks")
    windows: list[int | None] = []
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            windows.append(layer.sliding_window)
        elif type(layer) is DynamicLayer:
            windows.append(None)
        else:
            raise Unsupported(f"a cache layer of type {type(layer).__name__}")
    return windows


def _of_like_length(prompts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Cut where one prompt is so much longer than another that padding would cost more than a cohort of its own."""
    chunk: list[tuple[int, ...]] = []
    for prompt in prompts:
        lengths = [len(p) for p in chunk] + [len(prompt)]
        if max(lengths) > 1.5 * min(lengths) + 64:
            yield chunk
            chunk = []
        chunk.append(prompt)
    yield chunk


def _last_logits(
    model: PreTrainedModel, ids: torch.Tensor, last: torch.Tensor, cache: DynamicCache, more: dict[str, Any]
) -> torch.Tensor:
    """Logits (Q, V) at position `last` (Q,) of each row, the head being applied only there."""
    head: Any = model.get_output_embeddings()

    def gather(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0][torch.arange(len(last), device=last.device), last].unsqueeze(1), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        return model(input_ids=ids, past_key_values=cache, use_cache=True, **more).logits[:, 0]
    finally:
        handle.remove()


def _filling_holes(keep: torch.Tensor) -> torch.Tensor:
    """The order of the kept rows that moves the fewest: the last ones go where others leave."""
    count = int(keep.sum())
    order = torch.arange(count)
    order[~keep[:count]] = count + keep[count:].nonzero().squeeze(1)
    return order


@dataclass
class LayerState:
    """One layer's keys and values for one cohort: Q prompts of padded length L, R rows, Hkv heads of width D.

    The rows' own tokens are kept in blocks of neighbouring columns, (R or more, Hkv, block, D) each: nothing is ever
    copied to grow, and memory is read in long stretches.
    """

    prompt_keys: torch.Tensor  # (Q, Hkv, L, D)
    prompt_values: torch.Tensor
    blocks: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def keep_prompts(self, questions: torch.Tensor, longest: int) -> None:
        """Forget all prompts but these, cut to this length."""
        self.prompt_keys = self.prompt_keys[:, :, :longest][questions]
        self.prompt_values = self.prompt_values[:, :, :longest][questions].contiguous()

    def grow(self, num_rows: int, column: int, size: int) -> bool:
        """Add a block for this column where there is none yet; whether that was so."""
        if column // size < len(self.blocks):
            return False
        shape = (num_rows, self.prompt_keys.shape[1], size)
        of_keys, of_values = (t.new_empty(*shape, t.shape[3]) for t in (self.prompt_keys, self.prompt_values))
        self.blocks.append((of_keys, of_values))
        return True

    def write(self, column: int, size: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put one token's keys and values (R, Hkv, 1, D) into a column, blocks being of this size."""
        self.grow(len(keys), column, size)
        number, offset = divmod(column, size)
        for block, new in zip(self.blocks[number], (keys, values), strict=True):
            block[: len(new), :, offset] = new[:, :, 0]

    def own(self, num_rows: int, first: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of the rows' own tokens from `first` up to `length`, in chunks (R * Hkv, n, D)."""
        chunks = []
        start = 0
        for keys, values in self.blocks:
            span = slice(max(0, first - start), length - start)
            start += keys.shape[2]
            if first < start:
                chunks.append((keys[:num_rows].flatten(0, 1)[:, span], values[:num_rows].flatten(0, 1)[:, span]))
        return chunks


class Cohort:
    """Questions that entered the batch together, with all their rows: R rows, Q questions.

    `lse` (R, H) is the log-sum-exp of the latest attention's scores, for those who need it (None: not kept).
    """

    lse: torch.Tensor | None = None

    def __init__(
        self,
        prompt_lengths: list[int],
        offsets: torch.Tensor,
        num_responses: int,
        layers: list[LayerState],
    ) -> None:
        self.layers = layers
        self._device = layers[0].prompt_keys.device
        self._lengths = prompt_lengths  # prompt tokens, per question
        self._offsets = offsets  # (Q,) what images add to the positions after the prompt
        self._question_of = torch.arange(len(prompt_lengths)).repeat_interleave(num_responses)  # (R,)
        self._length = 0  # tokens of every row's own, the present one included
        self._arrange()

    @property
    def num_rows(self) -> int:
        return len(self._question_of)

    @property
    def positions(self) -> torch.Tensor:
        """(R,) where the rows' present token stands in the text."""
        return self._prompt_end_of_row + (self._length - 1)

    @property
    def furthest_position(self) -> int:
        """The largest of `positions`, without waiting for the device."""
        return self._furthest_end + self._length - 1

    def begin_token(self) -> None:
        """Every row gets one more token."""
        self._length += 1
        self._visible_columns.clear()

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the present token's keys and values, (R, Hkv, 1, D)."""
        size = BLOCK_ON_CPU if keys.device.type == "cpu" else BLOCK
        self.layers[layer].write(self._length - 1, size, keys, values)

    def select(self, order: torch.Tensor) -> None:
        """Keep the rows `order` (R',), one at least, as `_filling_holes` gave them."""
        holes = (order >= len(order)).nonzero().squeeze(1)
        if len(holes):
            to, source = to_device(holes, self._device), to_device(order[holes], self._device)
            for tensor in (tensor for state in self.layers for block in state.blocks for tensor in block):
                tensor[to] = tensor[source]
        active, self._question_of = self._question_of[order].unique(return_inverse=True)
        if len(active) < len(self._lengths):
            self._keep_prompts(active)
        self._arrange()

    def _keep_prompts(self, questions: torch.Tensor) -> None:
        """Keep only the prompts of these questions, an index into all."""
        self._lengths, self._offsets = [self._lengths[i] for i in questions.tolist()], self._offsets[questions]
        longest, index = max(self._lengths), to_device(questions, self._device)
        for state in self.layers:
            state.keep_prompts(index, longest)

    def release(self) -> None:
        """Free the memory of rows that have left."""
        rows = self.num_rows
        for state in self.layers:
            state.blocks = [
                (keys[:rows].clone(), values[:rows].clone()) if len(keys) > rows else (keys, values)
                for keys, values in state.blocks
            ]

    def attend(
        self, layer: int, query: torch.Tensor, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        """Attention's output for each row's present token: (R, 1, H, D) for queries (R, H, 1, D)."""
        state = self.layers[layer]
        rows, heads, _, head_dim = query.shape
        kv_heads = state.prompt_keys.shape[1]
        # A key head's own query heads are so many queries to the same keys: no key is ever repeated.
        queries = (query * scaling).reshape(rows * kv_heads, heads // kv_heads, head_dim)
        first = 0 if window is None else max(0, self._length - window)  # the first own token that a row sees
        own = state.own(rows, first, self._length)
        output, lse = _weighted(queries, own, softcap)
        start, hidden = self._visible(window)
        if start < state.prompt_keys.shape[2]:
            grouping = self._grouping(kv_heads)
            prompts = [(state.prompt_keys.flatten(0, 1)[:, start:], state.prompt_values.flatten(0, 1)[:, start:])]
            to_prompts = _weighted(grouping.by_question(queries), prompts, softcap, hidden)
            prompt_output, prompt_lse = map(grouping.by_row, to_prompts)
            # Both are normalized over their own tokens: weigh them as one softmax over all would.
            output = torch.lerp(output, prompt_output, torch.sigmoid(prompt_lse - lse).to(output.dtype))
        return output.view(rows, 1, heads, -1)

    def _visible(self, window: int | None) -> tuple[int, torch.Tensor | None]:
        """The first prompt column that any row sees, and which columns (Q, n) from there on a question's do not."""
        if window not in self._visible_columns:
            longest, shortest = max(self._lengths), min(self._lengths)
            start = 0 if window is None else max(0, shortest + self._length - window)
            hidden = None
            if shortest < longest and start < longest:
                lengths = self._device_lengths.unsqueeze(1)
                columns = torch.arange(start, longest, device=self._device)
                hidden = columns >= lengths
                if window is not None:
                    hidden |= columns < lengths + (self._length - window)
            self._visible_columns[window] = start, hidden
        return self._visible_columns[window]

    def _grouping(self, kv_heads: int) -> _Grouping:
        if kv_heads not in self._groupings:
            self._groupings[kv_heads] = _Grouping(self._question_of, kv_heads, self._device)
        return self._groupings[kv_heads]

    def _arrange(self) -> None:
        """Recompute what depends on which rows there are."""
        self._groupings: dict[int, _Grouping] = {}
        self._visible_columns: dict[int | None, tuple[int, torch.Tensor | None]] = {}
        lengths = torch.tensor(self._lengths)
        ends = (lengths + self._offsets)[self._question_of]
        self._furthest_end = int(ends.max())
        self._prompt_end_of_row = to_device(ends, self._device)
        self._device_lengths = to_device(lengths, self._device)


class _Grouping:
    """Carries tensors between the order of rows and the order of questions, per key head.

    (R * Hkv, a, n), one entry per row and head, and (Q * Hkv, G * a, n), one per question and head with its rows
    below one another.  G is the largest number of rows any question has; where one has fewer, there is filling.
    """

    def __init__(self, question_of: torch.Tensor, kv_heads: int, device: torch.device) -> None:
        counts = question_of.bincount()
        self._questions, self._most = len(counts), int(counts.max())
        rows = question_of.argsort(stable=True)
        questions = question_of[rows]
        rank = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[questions]  # among its question's rows
        row_at = torch.zeros(self._questions, 1, self._most, dtype=torch.int64)
        row_at[questions, 0, rank] = rows
        rank_of_row = torch.empty_like(rank)
        rank_of_row[rows] = rank
        heads = torch.arange(kv_heads)
        self._heads = kv_heads
        self._gather = to_device((row_at * kv_heads + heads[:, None]).flatten(), device)
        at = (question_of[:, None] * kv_heads + heads) * self._most + rank_of_row[:, None]
        self._scatter = to_device(at.flatten(), device)

    def by_question(self, tensor: torch.Tensor) -> torch.Tensor:
        _, a, n = tensor.shape
        return tensor.index_select(0, self._gather).view(self._questions * self._heads, self._most * a, n)

    def by_row(self, tensor: torch.Tensor) -> torch.Tensor:
        groups, ga, n = tensor.shape
        return tensor.view(groups * self._most, ga // self._most, n).index_select(0, self._scatter)


def _weighted(
    queries: torch.Tensor,
    chunks: Sequence[tuple[torch.Tensor, torch.Tensor]],
    softcap: float | None,
    hidden: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention's output over only these keys and values, and the log-sum-exp of its scores.

    (N, a, D) and (N, a, 1), in float32 or better, for queries (N, a, D) and chunks of keys and values (N, n, D).
    `hidden` (Q, n), for a single chunk, says which keys the queries of the Q-th part of N do not see.
    """
    scores = [torch.bmm(queries, keys.transpose(1, 2)) for keys, _ in chunks]
    joined = scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)
    if softcap is not None:
        joined = joined.div_(softcap).tanh_().mul_(softcap)
    if hidden is not None:  # the lowest number rather than -inf: a row may see none of them
        parts = joined.view(len(hidden), -1, hidden.shape[1])
        parts.masked_fill_(hidden.unsqueeze(1), torch.finfo(joined.dtype).min)
    wide = torch.promote_types(joined.dtype, torch.float32)
    weights = torch.softmax(joined, dim=-1, dtype=wide)
    # The largest weight is exp(0) / sum: the sum is found without another pass of exponentials.
    lse = joined.amax(dim=-1, keepdim=True) - weights.amax(dim=-1, keepdim=True).log_()
    parts = weights.to(queries.dtype).split([s.shape[-1] for s in scores], dim=-1)
    output = torch.bmm(parts[0], chunks[0][1])
    for part, (_, values) in zip(parts[1:], chunks[1:], strict=True):
        output += torch.bmm(part, values)  # faster than baddbmm where there are few queries to a key
    return output, lse


class SharedLayer(AttendingLayer):
    """One layer of all cohorts."""

    def __init__(self, number: int, window: int | None, cohorts: Sequence[Cohort]) -> None:
        super().__init__()
        self._number = number
        self._window = window
        self._cohorts = cohorts

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        rows = [cohort.num_rows for cohort in self._cohorts]
        for cohort, keys, values in zip(self._cohorts, key_states.split(rows), value_states.split(rows), strict=True):
            cohort.write(self._number, keys, values)
        return self, self

    def get_seq_length(self) -> int:
        return max((cohort.furthest_position for cohort in self._cohorts), default=0)

    def attend(self, query: torch.Tensor, scaling: float, softcap: float | None, window: int | None) -> torch.Tensor:
        if query.shape[2] != 1:
            raise Unsupported("shared decoding takes one token per row")
        if window != self._window:
            raise Unsupported(f"attention sees {window} tokens back, the configuration says {self._window}")
        rows = query.split([cohort.num_rows for cohort in self._cohorts])
        outputs = [
            cohort.attend(self._number, queries, scaling, softcap, window)
            for cohort, queries in zip(self._cohorts, rows, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
