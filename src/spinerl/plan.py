"""Before a run: how many responses it will sample, how many tokens at most, how long that takes, how much memory.

What is sampled follows from the configuration.  Seconds and bytes are measured: a few steps as the run's own, with
fewer questions and shorter responses where a whole step would take too long, and extended in proportion.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from spinerl.answers import Equivalence
from spinerl.config import Config
from spinerl.data import load_data, resolve
from spinerl.engine.backend import backend_of
from spinerl.engine.kv_cache import free_bytes
from spinerl.engine.optimizer import Optimizer
from spinerl.footprint import Footprint, Remedy, estimate, foresee, held_bytes, remedies
from spinerl.guard.probe import pick_probe
from spinerl.machine import forget_peak_memory, peak_resident_bytes, tune_allocator
from spinerl.models.loading import LoadedModel
from spinerl.permission import open_code
from spinerl.rewards import alternating_rewards
from spinerl.rounds import first_step
from spinerl.schedule import num_steps, question_order
from spinerl.step import StepState, cuts_short, needs_anchor, train_step
from spinerl.workload import Workload, add_configured_adapters, open_workload
from spinerl.writing import WRITTEN

__all__ = ["Measured", "Phase", "Plan", "count_phases", "format_duration", "make_plan", "measure", "open_plan"]

_ADAM_BYTES = 8  # of a weight that learns: two float32 moments
_GROWTH = 4  # questions of the next measured step, times those of the last
_SHORTEST = 8  # tokens of the first measured responses
_KNOWN_ENDS = 0.9  # share of measured responses that ended by themselves, from which on their length is an estimate


@dataclass(frozen=True)
class Phase:
    """A part of a run: how often, how many responses in all, and at most how many tokens each."""

    name: str
    times: int
    responses: int
    max_tokens: int
    trained: int = 0  # responses that are learned from

    @property
    def tokens(self) -> int:
        """Sampled tokens at most, over all responses."""
        return self.responses * self.max_tokens


@dataclass(frozen=True)
class Measured:
    """What a few steps of this run showed; seconds are per token of the lengths in the run."""

    questions: int
    tokens: int  # longest response allowed in the measurement
    seconds: float  # that the measurement took
    rollout_s: float  # per sampled token
    update_s: float  # per token learned from, with rewards, targets and the update
    length: float | None  # mean tokens of a response; None if too few ended in the measurement
    peak_bytes: int  # of the device or of this process, in a step of the run


@dataclass(frozen=True)
class Plan:
    """The phases of a run, and what was measured (None: nothing was)."""

    phases: tuple[Phase, ...]
    measured: Measured | None = None
    free_bytes: int | None = None  # before the measurement, and what the process has already
    memory: Footprint | None = None  # estimated before the weights were read, then without paths that a check refuses
    remedies: tuple[Remedy, ...] = ()  # where that is more than there is

    def seconds(self, phase: Phase) -> tuple[float, float] | None:
        """(likely, at most) seconds of a phase; None without a measurement.

        Likely: at the mean length of the measured responses, where that is known.
        """
        if self.measured is None:
            return None
        most = phase.responses * self.measured.rollout_s + phase.trained * self.measured.update_s
        likely = min(phase.max_tokens, self.measured.length or phase.max_tokens)
        return most * likely, most * phase.max_tokens

    @property
    def tokens(self) -> int:
        """Sampled tokens at most."""
        return sum(phase.tokens for phase in self.phases)

    @property
    def total_seconds(self) -> tuple[float, float] | None:
        """(likely, at most) seconds of everything sampled and learned."""
        each = [seconds for phase in self.phases if (seconds := self.seconds(phase)) is not None]
        return (sum(low for low, _ in each), sum(high for _, high in each)) if each else None

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        said = [f"at most {self.tokens:,} tokens to sample"]
        if self.measured is not None and self.total_seconds is not None:
            likely, most = self.total_seconds
            known = self.measured.length is not None
            said.append(f"about {format_duration(likely)}" if known else f"up to {format_duration(most)}")
            said += [f"{self.measured.peak_bytes / 1e9:.1f} GB of memory"] * bool(self.measured.peak_bytes)
        return f"plan: {', '.join(said)}{self._beyond}"

    def lines(self) -> list[str]:
        """What stands below the table: how it was measured, the memory, and what may be otherwise."""
        one, said = self.measured, []
        if self.memory is not None:
            said.append(self.memory.sentence)
            said += [f"  {remedy.line}" for remedy in self.remedies]
            if not self.memory.fits:
                said.append("nothing was measured: the model was not read, for the run does not fit")
        if one is None:
            return said
        said += [
            f"measured in {one.seconds:.0f} s: {one.questions} questions a step, up to {one.tokens} tokens a response; "
            f"{1 / one.rollout_s:,.0f} tokens/s sampled, {1 / one.update_s:,.0f} tokens/s learned from"
        ]
        if one.length is None:
            said.append("too few of the measured responses ended: their mean length is not known")
        else:
            said.append(f"likely: at {one.length:.0f} tokens a response, as the unadapted model's")
        if one.peak_bytes:
            free = "" if self.free_bytes is None else f" (there are {self.free_bytes / 1e9:.1f} GB)"
            said.append(f"memory: about {one.peak_bytes / 1e9:.2f} GB in a step{free}{self._beyond}")
        return said

    def figures(self) -> dict[str, Any]:
        """All figures, for a file."""
        phases = [{**asdict(phase), "tokens": phase.tokens, "seconds": self.seconds(phase)} for phase in self.phases]
        measured = None if self.measured is None else asdict(self.measured)
        return {
            "phases": phases,
            "tokens": self.tokens,
            "seconds": self.total_seconds,
            "measured": measured,
            "free_bytes": self.free_bytes,
            "memory": None if self.memory is None else self.memory.figures(),
            "remedies": [{"keys": remedy.keys, "bytes": remedy.bytes, "fits": remedy.fits} for remedy in self.remedies],
        }

    @property
    def _beyond(self) -> str:
        """What is to be said if the memory is not there."""
        if self.measured is None or self.free_bytes is None or self.measured.peak_bytes <= self.free_bytes:
            return ""
        return (
            f"; that is more than there is ({self.free_bytes / 1e9:.1f} GB): lower questions_per_step or "
            "rollout.max_new_tokens, or set lora.rank or model.gradient_checkpointing=true"
        )


def count_phases(config: Config, num_questions: int) -> tuple[Phase, ...]:
    """The phases of a run over so many questions, if no rule of the guard ends it early."""
    longest, votes = config.rollout.max_new_tokens, config.num_votes
    held_out = len(pick_probe(num_questions, config.guard.holdout)) if config.guard.holdout and _guarded(config) else 0
    pool = num_questions - held_out
    last = num_steps(config, pool) if config.steps else 0
    evaluated = min(config.eval.max_questions or num_questions, num_questions)
    evaluations = len({0, last, *(range(config.eval.every, last, config.eval.every) if config.eval.every else ())})
    phases = [Phase("evaluation", evaluations, evaluations * evaluated * config.eval_responses, longest)]
    if not last:
        return tuple(phases)
    if config.rolls_back:
        phases.append(Phase("rollback evaluation", 1, evaluated * config.eval_responses, longest))
    start = config.vote.memory_start
    from_evaluation = config.vote.weights == "equal" and evaluated == num_questions and config.eval_samples >= start
    if config.vote.memory != "off" and start and not from_evaluation:
        phases.append(Phase("start votes", 1, pool * start, longest))
    if _guarded(config):
        probed = len(pick_probe(num_questions, config.guard.holdout or config.guard.questions))
        looks = len({0, last, *range(config.guard.every, last, config.guard.every)})
        asked = looks * probed * (1 if config.guard.perturbation == "none" else 2) + probed * config.guard.samples
        phases.append(Phase("guard", looks, asked, longest))
    if config.anchor.fisher:
        phases.append(Phase("fisher", 1, min(config.anchor.fisher_questions or pool, pool), longest))
    order, per_step = config.data.order, min(config.questions_per_step, pool)
    asked_in: defaultdict[int, set[int]] = defaultdict(set)  # by the step whose weights sample
    trained, num_views = 0, len(config.vote.views)
    for step in range(1, last + 1):
        places = question_order(pool, per_step, step, order, config.seed, config.stream)
        reuse = config.rollout.reuse
        asked_in[step if reuse == 1 else first_step(step, reuse, pool, per_step, order)].update(places)
        trained += len(places) * config.group_size * (1 + num_views * config.vote.train_views)
    asked = sum(map(len, asked_in.values()))
    sampled = asked * (1 + num_views)
    shortest = min(config.forks.num_tokens, longest) if cuts_short(config) else longest
    phases.append(Phase("steps", last, sampled * votes, shortest, trained))
    if written := sum(name in WRITTEN for name in config.vote.views):
        phases.append(Phase("writing views", last, asked * written, longest))
    if config.vote.slow_decay:
        phases.append(Phase("slow voter", last, asked * votes, longest))
    if config.stream.on:
        batches = config.stream.batch(last) + 1
        came = min(pool, batches * per_step)
        for when in ("before", "after"):
            if config.stream.answer in (when, "both"):
                phases.append(Phase(f"answers {when} adapting", batches, came, longest))
    return tuple(phases)


def format_duration(seconds: float) -> str:
    """A rough time in words.

    >>> [format_duration(s) for s in (0.4, 45, 754, 12_345)]
    ['1 s', '45 s', '13 min', '3.4 h']
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def measure(work: Workload, config: Config, seconds: float) -> Measured:
    """Run steps of the configuration whose weights stay as they are, for about so many seconds.

    First one question and responses of 8 tokens; then more questions up to the run's own, then longer responses, as far
    as the time goes.  Rewards alternate, so that every response has a gradient.
    """
    began = time.perf_counter()
    loaded, longest = work.loaded, config.rollout.max_new_tokens
    per_step = min(config.questions_per_step, len(work.questions))
    anchor = None
    if needs_anchor(config):
        anchor = loaded.base if config.lora.rank or work.open_again is None else work.open_again()
    optimizer = _Still(loaded.model.parameters(), config.optim, 1)
    before, allowed, questions, found = _reset_peak(loaded), min(_SHORTEST, longest), 1, []
    with Equivalence() as equivalence:
        while True:
            chosen = work.only(range(questions))
            keys = config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_new_tokens": allowed})})
            started = time.perf_counter()
            record, _ = train_step(
                loaded, anchor, optimizer, equivalence, chosen.questions, chosen.prompts, keys, 1, StepState(),
                oracle=lambda asked, votes: alternating_rewards(len(asked), len(votes[0].classes)),
            )  # fmt: skip
            now = time.perf_counter()
            found.append((record.metrics, questions, allowed, _peak(loaded)))
            if (questions, allowed) == (per_step, longest) or seconds - (now - began) < _GROWTH * (now - started):
                break
            if questions < per_step:
                questions = min(_GROWTH * questions, per_step)
            else:
                allowed = min(2 * allowed, longest)
    return _extended(found, config, per_step, time.perf_counter() - began, before, _held_later(loaded, config))


def open_plan(config: Config, seconds: float = 30.0) -> Plan:
    """The plan of a configuration's run: questions are read and memory is estimated first; the model is read where it
    fits and something is to be measured.  Nothing is written.  Raises InputError."""
    config = resolve(config)
    open_code(config)
    tune_allocator()
    questions = load_data(config.data, answer_kind=config.answer.kind)[0].questions
    memory = foresee(config, questions)
    if not memory.fits:
        return Plan(count_phases(config, len(questions)), memory=memory, remedies=remedies(config, questions))
    work = open_workload(config)
    add_configured_adapters(work.loaded, config)
    backend_of(work.loaded).settle(learns=config.steps > 0)
    lengths = [len(prompt) for prompt in work.prompts]
    checked = estimate(config, work.loaded, lengths, len(work.questions), memory.free_bytes)
    return replace(make_plan(work, config, seconds), memory=checked)


def make_plan(work: Workload, config: Config, seconds: float = 30.0) -> Plan:
    """The plan of a run, measured for about so many seconds (0: not at all)."""
    phases = count_phases(config, len(work.questions))
    if not seconds or not config.steps:
        return Plan(phases)
    free = int(free_bytes(work.loaded.device)) + held_bytes(work.loaded.device)
    return Plan(phases, measure(work, config, seconds), free)


class _Still(Optimizer):
    """Forgets gradients instead of applying them."""

    def step(self) -> dict[str, float]:
        self.zero_grad()
        return {}


def _extended(
    found: list[tuple[dict[str, float], int, int, int]],
    config: Config,
    per_step: int,
    seconds: float,
    before: int,
    later: int,
) -> Measured:
    """The figures of the run's own questions and lengths from those of the last measured steps."""
    metrics, questions, tokens, peak = found[-1]
    comparable = [one for one in found[:-1] if one[1] == questions]
    shorter = comparable[-1][0] if comparable and tokens < config.rollout.max_new_tokens else None
    longer = config.rollout.max_new_tokens / tokens
    rollout = _per_token("time/rollout_s", "rollout/num_drawn", metrics, shorter, longer)
    update = _per_token("time/update_s", "rollout/num_tokens", metrics, shorter, longer)
    between = (metrics["time/answers_s"] + metrics["time/targets_s"]) / metrics["rollout/num_tokens"]
    peak = before + int((peak - before) * max(1.0, longer * per_step / questions)) + later
    ended = metrics["rollout/truncated_frac"] <= 1 - _KNOWN_ENDS
    length = metrics["rollout/response_length"] if ended else None
    per_trained = (update + between) * config.num_votes / config.group_size
    return Measured(questions, tokens, seconds, rollout, per_trained, length, peak)


def _per_token(
    time_key: str, tokens_key: str, metrics: dict[str, float], shorter: dict[str, float] | None, longer: float
) -> float:
    """Seconds per token of responses `longer` times as long, by the straight line through two measured steps."""
    took, tokens = metrics[time_key], metrics[tokens_key]
    if shorter is None or tokens <= shorter[tokens_key]:
        return took / tokens
    per_token = max(0.0, took - shorter[time_key]) / (tokens - shorter[tokens_key])
    return (took + per_token * tokens * (longer - 1)) / (tokens * longer)


def _held_later(loaded: LoadedModel, config: Config) -> int:
    """Bytes that a run holds besides and the measurement does not: the optimizer's moments, the slow copy, initial
    weights and their Fisher information."""
    parameters = list(loaded.model.parameters())
    whole = sum(p.numel() * p.element_size() for p in parameters)
    moments = sum(p.numel() for p in parameters if p.requires_grad) * _ADAM_BYTES
    initial = bool(config.optim.restore or config.anchor.fisher) + bool(config.anchor.fisher)
    return moments + whole * (bool(config.vote.slow_decay) + initial)


def _guarded(config: Config) -> bool:
    return config.guard.mode != "off" and config.steps > 0


def _reset_peak(loaded: LoadedModel) -> int:
    """Forget the highest memory so far; returns what is held now, in bytes."""
    if loaded.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(loaded.device)
    else:
        forget_peak_memory()
    return held_bytes(loaded.device)


def _peak(loaded: LoadedModel) -> int:
    if loaded.device.type == "cuda":
        return torch.cuda.max_memory_allocated(loaded.device)
    return peak_resident_bytes()
