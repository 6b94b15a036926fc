"""One sampling pass without updates: is adapting to these questions likely to help?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from spinerl.answers import Equivalence
from spinerl.answers.shared import shared_share
from spinerl.config import Config
from spinerl.data import resolve
from spinerl.endings import EndWatch
from spinerl.engine.sampler import sample_responses
from spinerl.figures import add_figures
from spinerl.guard.forecast import Forecast, forecast
from spinerl.guard.pressure import PressureRun, pressure_run
from spinerl.guard.probe import pick_probe
from spinerl.guard.signals import concentration
from spinerl.guard.size import size_note
from spinerl.models.loading import LoadedModel
from spinerl.observer import Observer
from spinerl.permission import open_code
from spinerl.schedule import question_order
from spinerl.step import count_votes, rollout_metrics
from spinerl.types import Vote
from spinerl.workload import Workload, add_configured_adapters, open_workload

__all__ = ["preflight"]


def preflight(
    config: Config, observer: Observer | None = None, *, given: LoadedModel | None = None
) -> tuple[Forecast, dict[str, Any]]:
    """The forecast for a model (or the one given) and questions, and every figure behind it, without gold answers.

    `guard.preflight_questions` of the questions are asked, with `num_votes` responses each.  With `guard.probe_steps` a
    short run follows (`spinerl.guard.pressure`), after which the weights are what they were.  Raises InputError.
    """
    open_code(config, None if observer is None else observer.note)
    work = open_workload(resolve(config), observer, given)
    num_all = len(work.questions)
    asked = pick_probe(len(work.questions), config.guard.preflight_questions or len(work.questions))
    work = work.only(asked)
    seed = (config.seed, "preflight")
    num_responses = len(work.questions) * config.num_votes
    if observer is not None:
        observer.phase("preflight", num_responses * config.rollout.max_new_tokens, num_responses)
    on_tokens = None if observer is None else observer.tokens
    rollout = sample_responses(
        work.loaded, work.questions, work.prompts, config.num_votes, config.rollout, seed, on_tokens
    )
    rollout = add_figures(work.loaded, rollout, config)
    with Equivalence() as equivalence:
        votes = count_votes(rollout, config.answer, config.vote, equivalence, seed=config.seed)
        labels = [one.pseudo_label for one in votes]
        alike = concentration(equivalence.classes(labels))
        kinds = [config.answer.kind_of(question.answer_kind) for question in work.questions]
        shared = shared_share(work.questions, labels, kinds, equivalence)
        pressed = None
        if config.guard.probe_steps:
            if given is None:
                add_configured_adapters(work.loaded, config)
            pressed = _pressed(work, votes, config, equivalence, observer)
    keys = config.guard
    expected = forecast(votes, keys.no_go, keys.go, config.seed, shared, keys.max_shared)
    described = rollout_metrics(rollout)
    if observer is not None:
        EndWatch(work.loaded, config, observer.note).see(described["rollout/truncated_frac"])
    figures = {
        "model": config.model.name,
        "data": config.data.name,
        **asdict(expected),
        "num_all": num_all,
        "size": size_note(num_all),
        **({} if pressed is None else {"probe_run": {**asdict(pressed), "sentence": pressed.sentence}}),
        "concentration": alike,
        "response_length": described["rollout/response_length"],
        "truncated_frac": described["rollout/truncated_frac"],
        "entropy": described["rollout/entropy"],
        "questions": [
            {"id": q.id, "pseudo_label": one.pseudo_label, "majority_frac": one.majority_frac, "votes": len(one.counts)}
            for q, one in zip(work.questions, votes, strict=True)
        ],
    }
    return expected, figures


def _pressed(
    work: Workload, votes: Sequence[Vote], config: Config, equivalence: Equivalence, observer: Observer | None
) -> PressureRun:
    """A short run at high pressure on these questions, to which the unadapted model gave these votes."""
    num, per_step = len(work.questions), min(config.questions_per_step, len(work.questions))
    steps = range(1, config.guard.probe_steps + 1)
    chosen = [work.only(question_order(num, per_step, step, "shuffled", config.seed)) for step in steps]
    batches = [(one.questions, one.prompts) for one in chosen]
    first = {question.id: one.pseudo_label for question, one in zip(work.questions, votes, strict=True)}
    return pressure_run(work.loaded, batches, first, config, equivalence, work.open_again, observer)
