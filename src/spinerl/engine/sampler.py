"""Sampling groups of responses, with the log-probability and entropy of every token as it is drawn.

Questions enter the batch while the token budget allows; each prompt is computed once for all its responses;
finished rows leave.  Each response draws from a random stream of its own, named by (seed, question, response), so
that what it says does not depend on which rows are sampled beside it, up to floating-point ties.

A decoder owns the keys and values and continues the rows of the batch by a token; a `_Run` draws those tokens.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from transformers import StopStringCriteria

from spinerl.config import RolloutConfig
from spinerl.engine import kernels
from spinerl.engine.cache import CopyingDecoder, fitting_tokens
from spinerl.engine.draws import Truncation, draw, truncation_of, unwritable
from spinerl.engine.exchange import suits_cpu
from spinerl.engine.fused import fused_loops
from spinerl.engine.loading import LoadedModel
from spinerl.engine.products import packed_weights
from spinerl.engine.replay import Recorder, slots_for
from spinerl.engine.shared import SharedDecoder, can_attend_compiled, can_share_prompts, compiled_layers
from spinerl.errors import InputError, NonFiniteError
from spinerl.seeding import seed_of
from spinerl.types import Question, Rollout

__all__ = ["greedy_responses", "sample_responses"]

_ROWS_ON_CPU = 512  # a wider batch was measured to be no faster on a CPU
_REFILL_AT = 0.75  # questions enter when so much of the budget or less is in use: one by one they would be slow
_TURNS_PER_CHECK = 16  # on devices that must be waited for to know which rows have finished
_NO_TOKEN = 2**40  # an id beyond any vocabulary


def sample_responses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    num_responses: int,
    rollout: RolloutConfig,
    seed: tuple[object, ...],
    on_tokens: Callable[[int], None] | None = None,
    *,
    certainties: bool = False,
    limits: Sequence[int] | None = None,
    turns_per_check: int | None = None,
    record: bool = False,
) -> Rollout:
    """`num_responses` sampled responses to each question.

    Log-probabilities and entropies are those of softmax(logits / temperature) before top-k, top-p and min-p, so
    that they equal what a forward pass over the finished text gives; `Rollout.log_mass` says how much of it could be
    drawn.  Tokens that stand for images are never drawn.
    Where another engine samples for the model (`loaded.engine`), this hands the questions on to it.

    Args:
        seed: names the random streams; equal seeds give equal responses.
        on_tokens: called with the number of tokens drawn, now and then, for progress displays.
        certainties: whether to record the self-certainty of every token's distribution too.
        limits: the most tokens of a response to each question, in place of `rollout.max_new_tokens` and not over it.
        turns_per_check: tokens per row between two looks at which rows have finished; None: 1 on a CPU, else 16.
        record: whether to keep what the layers put out, for an update to take it from there (`spinerl.engine.replay`),
            where model and memory allow it.

    Raises InputError for a text in `rollout.stop` that is empty or that the tokenizer cannot write, and
    NonFiniteError for a model whose logits are not numbers.
    """
    most = [rollout.max_new_tokens] * len(questions) if limits is None else limits
    if loaded.engine is not None:
        return loaded.engine.respond(loaded, questions, prompts, num_responses, rollout, seed, most, on_tokens)
    streams = [(*seed, question.id, j) for question in questions for j in range(num_responses)]
    compiled = rollout.compiled and suits_cpu(loaded) and kernels.library() is not None
    manner = _Manner(rollout.temperature, truncation_of(rollout, loaded), streams, certainties, most, compiled)
    return _respond(loaded, questions, prompts, num_responses, rollout, manner, on_tokens, turns_per_check, record)


def greedy_responses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    rollout: RolloutConfig,
    on_tokens: Callable[[int], None] | None = None,
    *,
    turns_per_check: int | None = None,
) -> Rollout:
    """The likeliest token at every position, one response per question; figures are at temperature 1.

    `on_tokens`, `turns_per_check` and errors as for `sample_responses`.
    """
    most = [rollout.max_new_tokens] * len(questions)
    if loaded.engine is not None:
        return loaded.engine.respond(loaded, questions, prompts, 1, rollout, None, most, on_tokens)
    manner = _Manner(1.0, unwritable(loaded), None, False, most)
    return _respond(loaded, questions, prompts, 1, rollout, manner, on_tokens, turns_per_check)


@dataclass(frozen=True)
class _Manner:
    """How tokens are drawn."""

    temperature: float
    truncate: Truncation | None  # leaves the tokens that may be drawn; None: all
    streams: Sequence[tuple[object, ...]] | None  # the name of each response's random stream; None: greedy
    certainties: bool
    limits: Sequence[int]  # the most tokens of a response, by question
    compiled: bool = False  # whether a compiled loop may draw


def _respond(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    num_responses: int,
    rollout: RolloutConfig,
    manner: _Manner,
    on_tokens: Callable[[int], None] | None,
    turns_per_check: int | None,
    record: bool = False,
) -> Rollout:
    shared = rollout.share_prompts and can_share_prompts(loaded)
    turns = turns_per_check or (1 if loaded.device.type == "cpu" else _TURNS_PER_CHECK)
    weights = packed_weights(loaded) if rollout.pack_weights else nullcontext()
    loops = fused_loops(loaded) if rollout.compiled else nullcontext()
    recorder = _recorder(loaded, prompts, num_responses, max(manner.limits, default=0)) if record and shared else None
    if shared:
        compiled = rollout.compiled and can_attend_compiled(loaded)
        layers = compiled_layers(loaded) if compiled else None
        decoding = SharedDecoder(loaded, rollout.compact, compiled, recorder, layers)
    else:
        decoding = CopyingDecoder(loaded, rollout.compact)
    recording = nullcontext() if recorder is None else recorder.recording()
    with loaded.acting(), torch.inference_mode(), loops, weights, recording, decoding as decoder:
        queue = _Queue(loaded, prompts, num_responses, rollout, shared)
        records = _Run(loaded, decoder, queue, rollout, manner, recorder).records(turns, on_tokens or (lambda _: None))
        kept = None if recorder is None else recorder.record()
    rolled_out = _assembled(loaded, questions, prompts, num_responses, records)
    return replace(
        rolled_out,
        certainties=rolled_out.certainties if manner.certainties else None,
        log_mass=rolled_out.log_mass if manner.truncate is not None and manner.streams is not None else None,
        record=kept,
    )


def _recorder(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], num_responses: int, most_tokens: int
) -> Recorder | None:
    """With room for every token that may be drawn, or for as many as fit in memory."""
    num_rows = len(prompts) * num_responses
    # Prompts are padded: to a length that is at most half as much again, and 64 (`shared`).
    wanted = num_rows * most_tokens + sum(len(prompt) * 3 // 2 + 64 for prompt in prompts)
    capacity = slots_for(loaded, wanted)
    return Recorder(loaded, num_rows, most_tokens, capacity) if capacity else None


class _Queue:
    """The questions that wait, like lengths together, and what the batch may hold.

    In tokens, a batch reserves the prompts it holds and `max_new_tokens` for each of its rows.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[tuple[int, ...]],
        num_responses: int,
        rollout: RolloutConfig,
        shared: bool,
    ) -> None:
        self.prompts = prompts
        self.num_responses = num_responses
        self._shared = shared  # a prompt is held once, not once for each of its rows
        self._per_row = rollout.max_new_tokens
        self._refill = rollout.refill
        self._waiting = deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i])))
        self._max_tokens = rollout.max_cache_tokens
        self._max_rows = float("inf")
        if self._max_tokens == 0:
            self._max_tokens = fitting_tokens(loaded.model.config, loaded.model.dtype, loaded.device)
            self._max_rows = _ROWS_ON_CPU if loaded.device.type == "cpu" else self._max_rows

    def take(self, live: Sequence[int], room: bool) -> list[int]:
        """The questions to admit beside rows that answer the questions `live`; one at least if there are none.

        `room` says whether the decoder can take more beside the present ones at all.
        """
        if not self._waiting or (live and not (room and self._refill)):
            return []
        used = sum(self._tokens(question, count) for question, count in Counter(live).items())
        num_rows = len(live)
        if max(used / self._max_tokens, num_rows / self._max_rows) > _REFILL_AT:
            return []
        taken: list[int] = []
        while self._waiting:
            used += self._tokens(self._waiting[0], self.num_responses)
            num_rows += self.num_responses
            if (live or taken) and (used > self._max_tokens or num_rows > self._max_rows):
                break
            taken.append(self._waiting.popleft())
        return taken

    def _tokens(self, question: int, num_rows: int) -> int:
        return len(self.prompts[question]) * (1 if self._shared else num_rows) + num_rows * self._per_row


@dataclass
class _Rows:
    """The responses in the batch, R of them, in the decoder's order."""

    number: torch.Tensor  # (R,) which: question * num_responses + response
    drawn: torch.Tensor  # (R,) tokens drawn so far
    limit: torch.Tensor  # (R,) the most tokens
    going: torch.Tensor  # (R,) bool: not finished
    uniforms: torch.Tensor  # (R, max_new_tokens): a number for each token; (R, 0) where the likeliest is taken
    recent: torch.Tensor  # (R, n) the latest tokens, as many as can be part of a stop text

    def select(self, order: torch.Tensor) -> _Rows:
        return _Rows(*(getattr(self, field.name)[order] for field in fields(self)))

    def joined(self, other: _Rows) -> _Rows:
        return _Rows(*(torch.cat([getattr(rows, f.name) for rows in (self, other)]) for f in fields(self)))


class _Record(NamedTuple):
    """What one turn drew for the R rows then in the batch; a row counts where it is `going`."""

    number: torch.Tensor
    column: torch.Tensor
    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    certainties: torch.Tensor
    log_mass: torch.Tensor
    ended: torch.Tensor
    going: torch.Tensor


class _Run:
    """One rollout in the making."""

    def __init__(
        self,
        loaded: LoadedModel,
        decoder: SharedDecoder | CopyingDecoder,
        queue: _Queue,
        rollout: RolloutConfig,
        manner: _Manner,
        recorder: Recorder | None = None,
    ) -> None:
        self._recorder = recorder
        self._device = loaded.device
        self._decoder = decoder
        self._queue = queue
        self._max_new_tokens = rollout.max_new_tokens
        self._manner = manner
        self._end_ids = torch.tensor(loaded.end_ids, dtype=torch.int64, device=loaded.device)
        self._stop = _stop_criterion(loaded, (*rollout.stop, *loaded.stop_texts))
        self._rows = self._new_rows([])

    def records(self, turns_per_check: int, on_tokens: Callable[[int], None]) -> list[_Record]:
        """Draw until every response is finished."""
        records: list[_Record] = []
        told = 0
        logits = self._admit(None)
        while logits is not None:
            # A check falls where the next row reaches its limit, so that none is drawn for past it.
            left = (self._rows.limit - self._rows.drawn)[self._rows.going]
            turns = min(turns_per_check, int(left.min()))
            for turn in range(turns):
                if turn:
                    logits = self._step(records[-1].tokens)
                records.append(self._draw(logits))
            tokens = self._drop_finished(records[-1].tokens)
            logits = self._admit(self._step(tokens) if len(tokens) else None)
            if logits is None or len(records) - told >= _TURNS_PER_CHECK:
                on_tokens(_num_drawn(records[told:]))
                told = len(records)
        return records

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after the tokens just drawn."""
        if self._recorder is not None:
            self._recorder.begin_rows(self._rows.number, self._rows.drawn - 1)
        return self._decoder.step(tokens)

    def _admit(self, logits: torch.Tensor | None) -> torch.Tensor | None:
        """Let waiting questions in, their rows' logits below the others'."""
        num_responses = self._queue.num_responses
        live = (self._rows.number // num_responses).tolist()
        taken = self._queue.take(live, self._decoder.num_cohorts < self._decoder.max_cohorts)
        if not taken:
            return logits
        numbers = [question * num_responses + j for question in taken for j in range(num_responses)]
        self._rows = self._rows.joined(self._new_rows(numbers))
        new = self._decoder.admit([self._queue.prompts[question] for question in taken], num_responses)
        new = new.repeat_interleave(num_responses, 0)
        return new if logits is None else torch.cat([logits, new])

    def _draw(self, logits: torch.Tensor) -> _Record:
        """One token more for every row."""
        rows, manner = self._rows, self._manner
        column = rows.drawn
        uniforms = None if manner.streams is None else rows.uniforms.gather(1, column.unsqueeze(1)).squeeze(1)
        how = manner.truncate, manner.certainties
        drawn = draw(logits, manner.temperature, uniforms, *how, compiled=manner.compiled)
        tokens = drawn.tokens
        ended = torch.isin(tokens, self._end_ids)
        if self._stop is not None:
            rows.recent = torch.cat([rows.recent[:, 1:], tokens.unsqueeze(1)], dim=1)
            ended |= self._stop(rows.recent, None)  # pyright: ignore[reportArgumentType]
        # The place of what is not there is held by the log-probabilities, which cost nothing.
        certainties, log_mass = (part if len(part) else drawn.logprobs for part in (drawn.certainties, drawn.log_mass))
        figures = (drawn.logprobs.float(), drawn.entropies.float(), certainties.float(), log_mass.float())
        record = _Record(rows.number, column, tokens, *figures, ended, rows.going)
        rows.drawn = column + 1
        rows.going = rows.going & ~ended & (rows.drawn < rows.limit)
        return record

    def _drop_finished(self, tokens: torch.Tensor) -> torch.Tensor:
        """Let finished rows leave as far as the decoder likes; the last tokens of the others."""
        order = self._decoder.keep(self._rows.going.cpu())
        if order is None:
            return tokens
        order = order.to(self._device)
        self._rows = self._rows.select(order)
        return tokens[order]

    def _new_rows(self, numbers: list[int]) -> _Rows:
        streams = self._manner.streams
        uniforms = torch.empty(len(numbers), 0 if streams is None else self._max_new_tokens)
        if streams is not None:
            for row, number in zip(uniforms, numbers, strict=True):
                row.uniform_(generator=torch.Generator().manual_seed(seed_of(*streams[number])))
        number = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        limits = [self._manner.limits[i // self._queue.num_responses] for i in numbers]
        return _Rows(
            number=number,
            drawn=torch.zeros_like(number),
            limit=torch.tensor(limits, dtype=torch.int64, device=self._device),
            going=torch.ones_like(number, dtype=torch.bool),
            uniforms=uniforms.to(self._device),
            recent=number.new_full((len(number), self._stop.maximum_token_len if self._stop else 0), _NO_TOKEN),
        )


def _num_drawn(records: Sequence[_Record]) -> int:
    """How many tokens count; NonFiniteError if one was drawn from what is no distribution."""
    going = torch.cat([record.going for record in records])
    figures = torch.cat([record.logprobs for record in records])
    number, finite = torch.stack([going.sum(), (figures.isfinite() | ~going).all()]).tolist()
    if not finite:
        raise NonFiniteError("the model's logits are not finite numbers: its weights have diverged")
    return number


def _stop_criterion(loaded: LoadedModel, texts: Sequence[str]) -> StopStringCriteria | None:
    if not texts:
        return None
    if not all(texts):
        raise InputError("rollout.stop has an empty text, which would end every response at once")
    try:
        return StopStringCriteria(loaded.tokenizer, list(texts))
    except ValueError as error:
        raise InputError(f"rollout.stop={list(texts)}: {error}") from None


def _assembled(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    num_responses: int,
    records: Sequence[_Record],
) -> Rollout:
    """The records of all turns as response-aligned tensors on the CPU."""
    num_rows = len(prompts) * num_responses
    drawn = _Record(*(torch.cat(parts).cpu() for parts in zip(*records, strict=True)))
    drawn = _Record(*(part[drawn.going] for part in drawn))
    cells = (drawn.number, drawn.column)
    lengths = torch.bincount(drawn.number, minlength=num_rows)
    shape = (num_rows, int(lengths.max()))

    def aligned(values: torch.Tensor, padding: float) -> torch.Tensor:
        return torch.full(shape, padding, dtype=values.dtype).index_put_(cells, values)

    tokens = aligned(drawn.tokens, loaded.pad_id)
    finished = torch.zeros(num_rows, dtype=torch.bool).index_put_((drawn.number[drawn.ended],), torch.tensor(True))
    texts = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    return Rollout(
        questions=tuple(questions),
        prompts=tuple(prompts),
        num_responses=num_responses,
        tokens=tokens,
        mask=torch.arange(shape[1]) < lengths.unsqueeze(1),
        logprobs=aligned(drawn.logprobs, 0.0),
        entropies=aligned(drawn.entropies, 0.0),
        finished_mask=finished,
        texts=loaded.texts(texts),
        certainties=aligned(drawn.certainties, 0.0),
        log_mass=aligned(drawn.log_mass, 0.0),
    )
