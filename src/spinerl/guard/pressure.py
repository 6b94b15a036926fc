"""A short run at high pressure: at which step do the pseudo-labels collapse?

Every reward made of a model's own votes sharpens what the model prefers, and then collapses; a model that takes longer
gains more before.  The collapse step of a short run with a raised learning rate says so at a fraction of the cost.
Source: URLVR (arXiv 2603.08660); that it is read off the labels, without gold answers, and how, is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spinerl.answers import Equivalence
from spinerl.config import Config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.snapshot import Snapshot
from spinerl.errors import InputError, NonFiniteError
from spinerl.guard.signals import kept_labels
from spinerl.models.loading import LoadedModel
from spinerl.observer import Observer
from spinerl.step import StepState, needs_anchor, train_step
from spinerl.types import Question

__all__ = ["PressureRun", "collapse_step", "pressure_run"]

_HALF = 0.5


@dataclass(frozen=True)
class PressureRun:
    """What a short run at high pressure showed.

    `rows`: per step the share of labels that are the unadapted model's (`agreement`) and the mean majority fraction,
    both of responses sampled before the step's update.  `collapse_step`: None if the labels held.
    """

    steps: int
    pressure: float
    collapse_step: int | None
    rows: tuple[Mapping[str, Any], ...]

    @property
    def sentence(self) -> str:
        """The outcome in a line."""
        run = f"probe run, {self.steps} steps at {self.pressure:g} times the learning rate"
        if self.collapse_step is None:
            return f"{run}: the labels held"
        if self.collapse_step > len(self.rows):
            return f"{run}: the weights diverged in step {self.collapse_step}"
        first, there = self.rows[0], self.rows[self.collapse_step - 1]
        return (
            f"{run}: the labels collapsed at step {self.collapse_step} (like the first labels: "
            f"{100 * first['agreement']:.0f} to {100 * there['agreement']:.0f} %, majority fraction: "
            f"{100 * first['majority_frac']:.0f} to {100 * there['majority_frac']:.0f} %)"
        )


def collapse_step(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The first step from which on, two in a row, a figure is under half of what it was at step 1; None: none is.

    The figures are `agreement` and `majority_frac`; of the last step one is enough.

    >>> collapse_step([{"agreement": a, "majority_frac": 0.9} for a in (0.8, 0.3, 0.7, 0.3, 0.2)])
    4
    """
    fallen = [any(row[key] < _HALF * rows[0][key] for key in ("agreement", "majority_frac")) for row in rows]
    for i, low in enumerate(fallen):
        if low and all(fallen[i : i + 2]):
            return i + 1
    return None


def pressure_run(
    loaded: LoadedModel,
    batches: Sequence[tuple[Sequence[Question], Sequence[tuple[int, ...]]]],
    first: Mapping[str, str | None],
    config: Config,
    equivalence: Equivalence,
    open_again: Callable[[], LoadedModel] | None = None,
    observer: Observer | None = None,
) -> PressureRun:
    """Take a step on each batch at `guard.pressure` times the learning rate; the weights are what they were after.

    Votes are the steps' own: views, memories, slow copies and reused responses are left out.

    Args:
        loaded: the unadapted model.
        batches: (questions, their prompts) of each step.
        first: the label that the unadapted model's votes gave to each question, by its id.
        open_again: reads a second copy of the model, for methods that compare with one.

    Raises InputError where a second copy is needed and cannot be had.
    """
    keys, anchor = _pressed(config), None
    if needs_anchor(keys):
        if keys.lora.rank:
            anchor = loaded.base
        elif open_again is None:
            raise InputError("guard.probe_steps: this method compares with a second copy of the model; name the model")
        else:
            anchor = open_again()
    num_responses = sum(len(questions) for questions, _ in batches) * keys.num_votes
    if observer is not None:
        observer.phase("probe run", num_responses * keys.rollout.max_new_tokens, num_responses)
    on_tokens = None if observer is None else observer.tokens
    initial, state, rows = Snapshot(loaded.model), StepState(), list[dict[str, Any]]()
    updates = len(batches) * keys.optim.epochs * keys.optim.minibatches
    optimizer = Optimizer(loaded.model.parameters(), keys.optim, updates)
    found = None
    try:
        for step, (questions, prompts) in enumerate(batches, 1):
            record, state = train_step(
                loaded, anchor, optimizer, equivalence, questions, prompts, keys, step, state, on_tokens
            )
            labels = [one.pseudo_label for one in record.fresh_votes]
            agreement = kept_labels([question.id for question in questions], labels, first, equivalence)
            majority = record.metrics["label/majority_frac"]
            rows.append({"step": step, "agreement": agreement or 0.0, "majority_frac": majority})
        found = collapse_step(rows)
    except NonFiniteError:
        found = collapse_step(rows) or len(rows) + 1
    finally:
        optimizer.zero_grad()
        initial.restore()
    return PressureRun(len(batches), keys.guard.pressure, found, tuple(rows))


def _pressed(config: Config) -> Config:
    """The configuration of a run at high pressure, which has its own votes only."""
    changes: dict[str, dict[str, Any]] = {
        "optim": {"lr": config.optim.lr * config.guard.pressure, "schedule": "constant", "warmup_steps": 0},
        "vote": {"views": [], "pool": "sum", "train_views": False, "unsure_margin": 0.0, "memory": "off",
                 "memory_start": 0, "slow_decay": 0.0, "slow_decay_end": 0.0},
        "rollout": {"reuse": 1},
        "anchor": {"fisher": 0.0},
    }  # fmt: skip
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update=sections)
