"""Sampling groups of responses, with the log-probability and entropy of every token as it is sampled.

Questions enter the batch while the token budget allows; each prompt is computed once for all its responses;
finished rows leave.  Each response is sampled from a random stream of its own, named by (seed, question, response), so
that what it says does not depend on which rows are sampled with it, up to floating-point ties.

A decoder owns the keys and values and continues the rows of the batch by a token; a `_Loop` samples those tokens.  How
the model computes meanwhile is the backend's business (`spinerl.engine.backend`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import torch
from transformers import StopStringCriteria

from spinerl.config import RolloutConfig
from spinerl.engine.backend import SamplingPath, backend_of
from spinerl.engine.kv_cache import CopyingDecoder, cache_tokens
from spinerl.engine.sampling import Sampled, Truncation, sample, truncation_of, unwritable
from spinerl.engine.shared_prefix import SharedDecoder
from spinerl.engine.steered import SteeredDecoder
from spinerl.errors import DivergedError, InputError
from spinerl.machine import to_device
from spinerl.maths import token_figures
from spinerl.models.context import limits_within
from spinerl.models.loading import LoadedModel
from spinerl.seeding import seed_of
from spinerl.types import OnTokens, Question, Rollout

__all__ = ["ROWS_ON_CPU", "Calibration", "averaged_responses", "greedy_responses", "sample_responses"]

ROWS_ON_CPU = 512  # a wider batch was measured to be no faster on a CPU
_REFILL_AT = 0.75  # questions enter when so much of the budget or less is in use: one by one they would be slow
_STEPS_PER_CHECK = 16  # on devices where reading which rows have finished means a synchronisation
_NO_TOKEN = 2**40  # an id beyond any vocabulary


class Calibration(NamedTuple):
    """Changes to every token's logits (V,) by question: (logits + bias) * scale, before `rollout.temperature`."""

    bias: torch.Tensor  # (P, V)
    scale: torch.Tensor  # (P,)


def sample_responses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    num_responses: int,
    rollout: RolloutConfig,
    seed: tuple[object, ...],
    on_tokens: OnTokens | None = None,
    *,
    certainties: bool = False,
    limits: Sequence[int] | None = None,
    steps_per_check: int | None = None,
    keep_activations: bool = False,
    calibration: Calibration | None = None,
) -> Rollout:
    """`num_responses` sampled responses to each question.

    Log-probabilities and entropies are those of softmax(logits / temperature) before top-k, top-p and min-p, so
    that they equal what a forward pass over the finished text gives; `Rollout.log_mass` says how much of it could be
    sampled.  Tokens that stand for images are never sampled.
    A response ends, cut off, where the model's context does (`spinerl.models.context`).
    A sampler of the model's own (`loaded.sampler`) does it all where there is one.

    Args:
        seed: names the random streams; equal seeds give equal responses.
        on_tokens: called now and then, for progress displays.
        certainties: whether to record the self-certainty of every token's distribution too.
        limits: the most tokens of a response to each question, in place of `rollout.max_new_tokens` and not over it.
        steps_per_check: tokens per row between two looks at which rows have finished; None: 1 on a CPU, else 16.
        keep_activations: whether an update with the same weights follows, which may reuse activations
            (`Rollout.activations`) where the backend keeps them.
        calibration: by question; figures are then of the calibrated distributions.

    Raises InputError for a text in `rollout.stop` that is empty or that the tokenizer cannot write, and for a prompt as
    long as the context; DivergedError for a model whose logits are not numbers.
    """
    most = [rollout.max_new_tokens] * len(questions) if limits is None else limits
    most = limits_within(loaded.context, prompts, most)
    if loaded.sampler is not None:
        if calibration is not None:
            raise InputError(f"rollout.sampler={rollout.sampler} cannot change logits by question; use native")
        return loaded.sampler.respond(loaded, questions, prompts, num_responses, rollout, seed, most, on_tokens)
    streams = [(*seed, question.id, j) for question in questions for j in range(num_responses)]
    if calibration is not None:
        calibration = Calibration(*(to_device(part, loaded.device) for part in calibration))
    params = _SamplingParams(
        rollout.temperature, truncation_of(rollout, loaded), streams, certainties, most, calibration=calibration
    )
    return _respond(
        loaded, questions, prompts, num_responses, rollout, params, on_tokens, steps_per_check, keep_activations
    )


def greedy_responses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    rollout: RolloutConfig,
    on_tokens: OnTokens | None = None,
    *,
    steps_per_check: int | None = None,
) -> Rollout:
    """The likeliest token at every position, one response per question; figures are at temperature 1.

    `on_tokens`, `steps_per_check` and errors as for `sample_responses`.
    """
    most = limits_within(loaded.context, prompts, [rollout.max_new_tokens] * len(questions))
    if loaded.sampler is not None:
        return loaded.sampler.respond(loaded, questions, prompts, 1, rollout, None, most, on_tokens)
    params = _SamplingParams(1.0, unwritable(loaded), None, False, most)
    return _respond(loaded, questions, prompts, 1, rollout, params, on_tokens, steps_per_check)


def averaged_responses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    together: int,
    rollout: RolloutConfig,
    on_tokens: OnTokens | None = None,
    *,
    keep_activations: bool = False,
) -> Rollout:
    """One response to every `together` questions that follow one another: the same tokens to each of them.

    Every token is the likeliest under the mean of the distributions that these prompts give, y_t = argmax_v
    sum_k pi(v | prompt_k, y_<t).  Log-probabilities and entropies are each prompt's own, at the rollout's temperature.
    It ends where the first of its prompts leaves the context.  Source: TTAug (arXiv 2510.03574).

    `on_tokens`, `keep_activations` and errors as for `sample_responses`.
    """
    assert loaded.sampler is None, "the configuration refuses another sampler"
    own = limits_within(loaded.context, prompts, [rollout.max_new_tokens] * len(questions))
    most = [min(own[i - i % together : i - i % together + together]) for i in range(len(own))]
    params = _SamplingParams(rollout.temperature, unwritable(loaded), None, False, most, together=together)
    return _respond(loaded, questions, prompts, 1, rollout, params, on_tokens, None, keep_activations)


@dataclass(frozen=True)
class _SamplingParams:
    """How tokens are sampled."""

    temperature: float
    truncate: Truncation | None  # leaves the tokens that may be sampled; None: all
    streams: Sequence[tuple[object, ...]] | None  # the name of each response's random stream; None: greedy
    certainties: bool
    limits: Sequence[int]  # the most tokens of a response, by question
    together: int = 1  # questions that follow one another and get one response, from the mean of their distributions
    calibration: Calibration | None = None


def _respond(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    num_responses: int,
    rollout: RolloutConfig,
    params: _SamplingParams,
    on_tokens: OnTokens | None,
    steps_per_check: int | None,
    keep_activations: bool = False,
) -> Rollout:
    steps = steps_per_check or (1 if loaded.device.type == "cpu" else _STEPS_PER_CHECK)
    num_rows, longest = len(prompts) * num_responses, max(params.limits, default=0)
    sizes = num_rows, longest, [len(prompt) for prompt in prompts]
    path = backend_of(loaded).sampling(*sizes, keep_activations)
    decoding = path.decoder()
    if loaded.steering is not None:
        paths = [backend_of(one).sampling(*sizes, False) for one in loaded.steering.models]
        decoding = SteeredDecoder(loaded, decoding, loaded.steering, paths)
    with loaded.acting(), torch.inference_mode(), path.running(), decoding as decoder:
        queue = _Queue(loaded, prompts, num_responses, rollout, decoder.shares_prompts, params.together)
        loop = _Loop(loaded, decoder, queue, rollout, params, path)
        sampled_steps = loop.run(steps, on_tokens or (lambda *_: None))
        kept = path.activations()
    rolled_out = _assembled(loaded, questions, prompts, num_responses, sampled_steps)
    return replace(
        rolled_out,
        certainties=rolled_out.certainties if params.certainties else None,
        log_mass=rolled_out.log_mass if params.truncate is not None and params.streams is not None else None,
        activations=kept,
    )


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
        together: int,
    ) -> None:
        """`together`: questions that follow one another enter the batch so many at once."""
        self.prompts = prompts
        self.num_responses = num_responses
        self._shared = shared  # a prompt is held once, not once for each of its rows
        self._per_row = rollout.max_new_tokens
        self._refill = not loaded.disables("refill")
        units = [range(i, i + together) for i in range(0, len(prompts), together)]
        self._waiting = deque(sorted(units, key=lambda unit: max(len(prompts[i]) for i in unit)))
        self._max_tokens = cache_tokens(loaded)
        limited = loaded.device.type == "cpu" and not loaded.settings.kv_cache_tokens
        self._max_rows = ROWS_ON_CPU if limited else float("inf")

    def __bool__(self) -> bool:
        """Whether questions wait."""
        return bool(self._waiting)

    def take(self, active: Sequence[int], has_space: bool) -> list[int]:
        """The questions to admit next to rows that answer the questions `active`; one at least if there are none.

        `has_space` says whether the decoder can take more of them at all.
        """
        if not self._waiting or (active and not (has_space and self._refill)):
            return []
        used = sum(self._tokens(question, count) for question, count in Counter(active).items())
        num_rows = len(active)
        if max(used / self._max_tokens, num_rows / self._max_rows) > _REFILL_AT:
            return []
        taken: list[int] = []
        while self._waiting:
            used += sum(self._tokens(question, self.num_responses) for question in self._waiting[0])
            num_rows += self.num_responses * len(self._waiting[0])
            if (active or taken) and (used > self._max_tokens or num_rows > self._max_rows):
                break
            taken += self._waiting.popleft()
        return taken

    def _tokens(self, question: int, num_rows: int) -> int:
        return len(self.prompts[question]) * (1 if self._shared else num_rows) + num_rows * self._per_row


@dataclass
class _Table:
    """Tensors with an entry for each of the R responses in the batch, in the decoder's order."""

    def select(self, order: torch.Tensor) -> Self:
        return type(self)(*(getattr(self, field.name)[order] for field in fields(self)))

    def joined(self, other: Self) -> Self:
        return type(self)(*(torch.cat([getattr(rows, f.name) for rows in (self, other)]) for f in fields(self)))


@dataclass
class _Rows(_Table):
    """What sampling a token needs, on the model's device."""

    number: torch.Tensor  # (R,) which: question * num_responses + response
    num_sampled: torch.Tensor  # (R,) tokens so far
    limit: torch.Tensor  # (R,) the most tokens
    active: torch.Tensor  # (R,) bool: not finished
    uniforms: torch.Tensor  # (R, max_new_tokens): a number for each token; (R, 0) where the likeliest is taken
    recent: torch.Tensor  # (R, n) the latest tokens, as many as can be part of a stop text


@dataclass
class _Known(_Table):
    """What the CPU knows of them since the latest check, so that it need not ask the device."""

    question: torch.Tensor  # (R,) which question
    left: torch.Tensor  # (R,) tokens up to the limit
    active: torch.Tensor  # (R,) bool: not finished


class _Step(NamedTuple):
    """The tokens sampled in one step for the R rows then in the batch; a row counts where it is `active`."""

    number: torch.Tensor
    column: torch.Tensor
    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    certainties: torch.Tensor
    log_mass: torch.Tensor
    ended: torch.Tensor
    active: torch.Tensor


class _Loop:
    """Samples one rollout, step by step."""

    def __init__(
        self,
        loaded: LoadedModel,
        decoder: SharedDecoder | CopyingDecoder | SteeredDecoder,
        queue: _Queue,
        rollout: RolloutConfig,
        params: _SamplingParams,
        path: SamplingPath,
    ) -> None:
        self._path = path
        self._device = loaded.device
        self._decoder = decoder
        self._queue = queue
        self._max_new_tokens = rollout.max_new_tokens
        self._params = params
        self._end_ids = to_device(torch.tensor(loaded.end_ids, dtype=torch.int64), loaded.device)
        self._stop = _stop_criterion(loaded, (*rollout.stop, *loaded.stop_texts))
        self._rows, self._known = self._new_rows([])
        self._num_admitted = 0

    def run(self, steps_per_check: int, on_tokens: OnTokens) -> list[_Step]:
        """Sample until every response is finished."""
        done: list[_Step] = []
        reported, num_finished = 0, 0
        logits = self._admit(None)
        while logits is not None:
            # A check falls where the next row reaches its limit, so that no row is sampled past it.
            num_steps = min(steps_per_check, int(self._known.left[self._known.active].min()))
            for i in range(num_steps):
                if i:
                    logits = self._step(done[-1].tokens)
                done.append(self._sample(logits))
            self._known.left -= num_steps
            due = len(done) - reported >= _STEPS_PER_CHECK
            count = self._check(done[reported:] if due else ())
            tokens = self._drop_finished(done[-1].tokens)
            logits = self._admit(self._step(tokens) if len(tokens) else None)
            if due:
                finished = self._num_admitted - int(self._known.active.sum())
                on_tokens(count, finished - num_finished)
                reported, num_finished = len(done), finished
        if reported < len(done):
            on_tokens(self._check(done[reported:]), self._num_admitted - num_finished)
        return done

    def _check(self, steps: Sequence[_Step]) -> int:
        """See which rows have finished, and count the tokens of these steps: all that waits for the device, at once.

        DivergedError if one was sampled from what is no distribution.
        """
        parts = [self._rows.active]
        if steps:
            active = torch.cat([step.active for step in steps])
            logprobs = torch.cat([step.logprobs for step in steps])
            parts += [active.sum().view(1), (logprobs.isfinite() | ~active).all().view(1)]
        read = (torch.cat(parts) if steps else parts[0]).cpu()
        num_rows = len(self._known.active)
        self._known.active = read[:num_rows].bool()
        if not steps:
            return 0
        count, finite = read[num_rows:].tolist()
        if not finite:
            raise DivergedError("the model's logits are not finite numbers: its weights have diverged")
        return count

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after the tokens just sampled."""
        self._path.begin_rows(self._rows.number, self._rows.num_sampled - 1)
        return self._decoder.step(tokens)

    def _admit(self, logits: torch.Tensor | None) -> torch.Tensor | None:
        """Let waiting questions in, their rows' logits below the others'."""
        if not self._queue:
            return logits
        num_responses = self._queue.num_responses
        active = self._known.question.tolist()
        taken = self._queue.take(active, self._decoder.num_cohorts < self._decoder.max_cohorts)
        if not taken:
            return logits
        numbers = [question * num_responses + j for question in taken for j in range(num_responses)]
        rows, known = self._new_rows(numbers)
        self._num_admitted += len(numbers)
        self._rows, self._known = self._rows.joined(rows), self._known.joined(known)
        new = self._decoder.admit([self._queue.prompts[question] for question in taken], num_responses)
        new = new.repeat_interleave(num_responses, 0)
        return new if logits is None else torch.cat([logits, new])

    def _sample(self, logits: torch.Tensor) -> _Step:
        """One token more for every row."""
        rows = self._rows
        column = rows.num_sampled
        sampled = self._sampled(logits, column)
        tokens = sampled.tokens
        ended = torch.isin(tokens, self._end_ids)
        if self._stop is not None:
            rows.recent = torch.cat([rows.recent[:, 1:], tokens.unsqueeze(1)], dim=1)
            ended |= self._stop(rows.recent, None)  # pyright: ignore[reportArgumentType]
        # Figures that were not asked for are filled with log-probabilities, at no cost; `_respond` drops them.
        optional = (sampled.certainties, sampled.log_mass)
        certainties, log_mass = (part if len(part) else sampled.logprobs for part in optional)
        figures = (sampled.logprobs.float(), sampled.entropies.float(), certainties.float(), log_mass.float())
        step = _Step(rows.number, column, tokens, *figures, ended, rows.active)
        rows.num_sampled = column + 1
        rows.active = rows.active & ~ended & (rows.num_sampled < rows.limit)
        return step

    def _sampled(self, logits: torch.Tensor, column: torch.Tensor) -> Sampled:
        params, uniforms = self._params, None
        if params.together > 1:
            return self._averaged(logits)
        if params.calibration is not None:
            question = self._rows.number // self._queue.num_responses
            bias, scale = params.calibration
            logits = (logits + bias[question]) * scale[question].unsqueeze(1)
        if params.streams is not None:
            uniforms = self._rows.uniforms.gather(1, column.unsqueeze(1)).squeeze(1)
            if params.truncate is None and not params.certainties:
                found = self._path.sample(logits, params.temperature, uniforms)
                if found is not None:
                    return found
        return sample(logits, params.temperature, uniforms, params.truncate, params.certainties)

    def _averaged(self, logits: torch.Tensor) -> Sampled:
        """The likeliest tokens of the mean distributions of rows that belong together (one response a question)."""
        params, none = self._params, logits.new_empty(0)
        numbers, group = (self._rows.number // params.together).unique(return_inverse=True)
        sums = logits.new_zeros(len(numbers), logits.shape[1], dtype=torch.float64)
        sums.index_add_(0, group, torch.softmax(logits.double(), 1))
        tokens = (sums if params.truncate is None else params.truncate(sums)).argmax(1)[group]
        logprobs, entropies = token_figures(logits, tokens, params.temperature)
        return Sampled(tokens, logprobs, entropies, none, none)

    def _drop_finished(self, tokens: torch.Tensor) -> torch.Tensor:
        """Let the decoder drop finished rows; the last tokens of the others."""
        order = self._decoder.keep(self._known.active)
        if order is None:
            return tokens
        self._known = self._known.select(order)
        order = to_device(order, self._device)
        self._rows = self._rows.select(order)
        return tokens[order]

    def _new_rows(self, numbers: list[int]) -> tuple[_Rows, _Known]:
        streams = self._params.streams
        uniforms = torch.empty(len(numbers), 0 if streams is None else self._max_new_tokens)
        if streams is not None:
            for row, number in zip(uniforms, numbers, strict=True):
                row.uniform_(generator=torch.Generator().manual_seed(seed_of(*streams[number])))
        host_number = torch.tensor(numbers, dtype=torch.int64)
        questions = host_number // self._queue.num_responses
        limits = torch.tensor([self._params.limits[i] for i in questions.tolist()], dtype=torch.int64)
        number = to_device(host_number, self._device)
        rows = _Rows(
            number=number,
            num_sampled=torch.zeros_like(number),
            limit=to_device(limits, self._device),
            active=torch.ones_like(number, dtype=torch.bool),
            uniforms=to_device(uniforms, self._device),
            recent=number.new_full((len(number), self._stop.maximum_token_len if self._stop else 0), _NO_TOKEN),
        )
        # Not the tensors of `rows`, which are changed in place where the device is a CPU.
        return rows, _Known(questions, limits.clone(), torch.ones_like(limits, dtype=torch.bool))


def _stop_criterion(loaded: LoadedModel, texts: Sequence[str]) -> StopStringCriteria | None:
    if not texts:
        return None
    if not all(texts):
        raise InputError("rollout.stop has an empty text, which would end every response at once")
    try:
        criterion = StopStringCriteria(loaded.tokenizer, list(texts))
    except ValueError as error:
        raise InputError(f"rollout.stop={list(texts)}: {error}") from None
    for name in ("embedding_vec", "target_lens"):  # else they are moved at the first token, which waits for the device
        setattr(criterion, name, to_device(getattr(criterion, name), loaded.device))
    return criterion


def _assembled(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    num_responses: int,
    steps: Sequence[_Step],
) -> Rollout:
    """The tokens of all steps as response-aligned tensors on the CPU."""
    num_rows = len(prompts) * num_responses
    all_steps = _Step(*(torch.cat(parts).cpu() for parts in zip(*steps, strict=True)))
    sampled = _Step(*(part[all_steps.active] for part in all_steps))
    cells = (sampled.number, sampled.column)
    lengths = torch.bincount(sampled.number, minlength=num_rows)
    shape = (num_rows, int(lengths.max()))

    def aligned(values: torch.Tensor, padding: float) -> torch.Tensor:
        return torch.full(shape, padding, dtype=values.dtype).index_put_(cells, values)

    tokens = aligned(sampled.tokens, loaded.pad_id)
    finished = torch.zeros(num_rows, dtype=torch.bool).index_put_((sampled.number[sampled.ended],), torch.tensor(True))
    texts = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    return Rollout(
        questions=tuple(questions),
        prompts=tuple(prompts),
        num_responses=num_responses,
        tokens=tokens,
        mask=torch.arange(shape[1]) < lengths.unsqueeze(1),
        logprobs=aligned(sampled.logprobs, 0.0),
        entropies=aligned(sampled.entropies, 0.0),
        finished_mask=finished,
        texts=loaded.texts(texts),
        certainties=aligned(sampled.certainties, 0.0),
        log_mass=aligned(sampled.log_mass, 0.0),
    )
