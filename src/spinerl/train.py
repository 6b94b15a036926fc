"""The loop: questions -> step -> evaluate -> checkpoint -> observers."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spinerl.alignment import Alignment
from spinerl.answers import Equivalence
from spinerl.cards import adapted_card, base_license, write_card
from spinerl.config import STANDARD_INPUT, Config
from spinerl.data import resolve
from spinerl.data.standard_input import copy_name, write_copy
from spinerl.endings import EndWatch
from spinerl.engine.backend import backend_of
from spinerl.engine.fisher import estimate_fisher
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.episodes import Episodes
from spinerl.errors import DivergedError, InputError, NonFiniteError, RunError
from spinerl.evaluation import (
    adapted_rows,
    begin_evaluation,
    evaluate,
    gold_agrees,
    gold_metrics,
    gold_rewards,
    label_rows,
    stream_rows,
)
from spinerl.feedback import Feedback
from spinerl.figures import add_figures
from spinerl.files import quoted
from spinerl.guard.saturation import saturation_note, saturation_step
from spinerl.guard.size import COLLAPSED, size_note
from spinerl.guard.watch import Guard
from spinerl.hooks import weigh_votes
from spinerl.maths import ENTROPY_EDGES, entropy_histogram, frequent_tokens
from spinerl.memory import Memories
from spinerl.models.adapters import learned_nothing, save_adapters
from spinerl.models.loading import LoadedModel, save_model
from spinerl.models.precision import with_dtype
from spinerl.models.weights import listed, not_finite
from spinerl.observer import Observer
from spinerl.paths import absolute_paths
from spinerl.permission import open_code
from spinerl.plan import make_plan
from spinerl.rounds import Rounds
from spinerl.runs import RunFolder, explain_failures, total_bytes, write_rows
from spinerl.schedule import num_steps, question_order, rank_questions, within_agreement
from spinerl.scoring import over_limit_line, stream_figures
from spinerl.step import StepState, count_votes, cuts_short, needs_anchor, train_step, trained_rows
from spinerl.trackers import check_installed
from spinerl.trackers.observer import Trackers
from spinerl.types import ImagePrompt, Rollout, StepRecord, Vote
from spinerl.views import Views
from spinerl.voter import SlowVoter
from spinerl.workload import (
    Workload,
    add_configured_adapters,
    changed_numerics,
    check_unchanged,
    open_workload,
    renderer,
    versions,
)

__all__ = ["adapt", "check_disk", "check_gold"]

_SMALL_MODEL = 50_000_000  # parameters up to which a run is begun without measuring first how long it will take
_WORDS_LOGGED = 60  # tokens that are most often forks, or followers, in a row of tokens.jsonl


def adapt(
    config: Config,
    observer: Observer,
    *,
    resume: RunFolder | None = None,
    overwrite: bool = False,
    work: Workload | None = None,
    other_numerics: bool = False,
) -> RunFolder:
    """Run the configuration to its end (or the rest of it, with `resume`) and write its folder.

    The weights, metrics and evaluations of a resumed run on a CPU equal those of an uninterrupted one bit for
    bit: every random choice is named by the seed and the step, and nothing else is carried over but the weights,
    the optimizer, `StepState` and, if asked for, responses and votes.

    Raises InputError before anything is written, RunError (NonFiniteError, a full disk) while running.
    """
    folder = config.run_folder if resume is None else resume.path
    config = absolute_paths(resolve(config))  # a run can be continued from any folder
    run = resume
    try:
        if run is not None:
            _take(run)
            if run.needs_no_more:
                observer.note(f"{run.path} is finished")
                if not (run.path / "report.html").is_file():
                    _write_report(run)
                return run
            config = with_dtype(config, run.manifest.get("dtype"))
        _check_functions(config, run, observer)
        check_installed(config.track.to)
        if run is None:
            RunFolder(folder).check_free(overwrite)  # rather now than after a large model was read
        work = _ready(config, work or open_workload(config, observer))
        config = config.model_copy(update={"threads": torch.get_num_threads()})  # a sum's last bit may depend on it
        if run is None:
            config, write_questions = _own_questions(config, work, folder)
            run = _begin(config, work, overwrite, folder, write_questions)
        else:
            _check_resumable(run, work, other_numerics)
        if not run.manifest:  # a new run's, or lost since, or killed before it was written
            _write_first_manifest(run, work, config)
            _announce(work, config, observer)
        with (
            explain_failures(run.path, _resume_command(run)),
            Equivalence() as equivalence,
            Trackers(run, config, observer) as tracked,
        ):
            session = _Session(run, work, config, equivalence, tracked)
            session.start(resume is not None)
            session.train()
            session.finish()
        run.remove_checkpoints(config.checkpoint.keep)  # trackers too have it all now
        return run
    except (KeyboardInterrupt, BrokenPipeError) as error:
        if run is not None:
            error.add_note(f"`{_resume_command(run)}` {run.still}")
        raise
    finally:
        if run is not None:
            run.unlock()


def _check_functions(config: Config, run: RunFolder | None, observer: Observer) -> None:
    """Refuse a misspelt name now, not after the first evaluation; of a run that goes on say where it began."""
    try:
        open_code(config, observer.note)
    except InputError as error:
        began = None if run is None else run.manifest.get("folder")
        if isinstance(began, str) and began != str(Path.cwd()):
            raise InputError(f"{error}; the run began in {began}, where modules are searched for too") from None
        raise


def _resume_command(run: RunFolder) -> str:
    return f"spinerl adapt --resume {quoted(run.path)}"


def _ready(config: Config, work: Workload) -> Workload:
    """The workload, its model with the adapters that learn; InputError for a method that it does not suit."""
    check_gold(config, len(work.questions), len(work.gold))
    add_configured_adapters(work.loaded, config)
    return work


def check_gold(config: Config, num_questions: int, num_gold: int) -> None:
    """InputError for a method that learns from gold answers where questions have none."""
    if config.uses_gold and num_gold < num_questions:
        missing = num_questions - num_gold
        raise InputError(
            f"method={config.method} learns from gold answers, and {missing} questions of {config.data.name} have none"
        )


class _Session:
    """One run from where it is to its end."""

    def __init__(
        self, run: RunFolder, work: Workload, config: Config, equivalence: Equivalence, observer: Trackers
    ) -> None:
        self._run, self._work, self._config = run, work, config
        self._equivalence, self._observer = equivalence, observer
        self._loaded = work.loaded
        self._open_again = work.open_again
        self._oracle = None
        self._pooled: tuple[int, list[int]] | None = None  # the step it was chosen after, the questions
        if config.reward == "gold":
            observer.note("this run learns from gold answers: an upper bound, not an adaptation without labels")
            self._oracle = partial(gold_rewards, gold=work.gold, config=config, equivalence=equivalence)
        self._feedback = None
        if config.feedback.questions:
            observer.note(
                f"in each step of this run gold answers say yes or no to {config.feedback.questions} of its labels: "
                "not an adaptation without labels"
            )
            self._feedback = Feedback(
                config, partial(gold_agrees, gold=work.gold, config=config, equivalence=equivalence)
            )

    def start(self, resumed: bool) -> None:
        """Evaluate the initial model, and bring everything to where the run is: its beginning, or its checkpoint."""
        config, work, run, observer = self._config, self._work, self._run, self._observer
        if not resumed:
            observer.begin(0)
        self._evaluate(0)
        self._endings = EndWatch(self._loaded, config, self._observer.note)
        self._endings.see(run.rows("eval.jsonl")[0].get("eval/truncated_frac", 0.0))
        self._said_unselected = False
        ids = [question.id for question in work.questions]
        self._ranks = rank_questions(config, self._loaded, work.prompts, ids, run.predictions(step=0))
        self._guard = self._new_guard()
        self._episodes = Episodes(self._loaded, config, self._equivalence)
        self._alignment = Alignment(self._loaded.model) if config.log.alignment and config.steps else None
        self._anchor = None
        if needs_anchor(config):
            self._anchor = self._loaded.base if config.lora.rank else self._copy()
        self._fisher = None
        if config.anchor.fisher and config.steps:
            asked = work.only(self._ranks[: config.anchor.fisher_questions or None])
            observer.phase("fisher", len(asked.questions) * config.rollout.max_new_tokens)
            self._fisher = (
                config.anchor.fisher,
                estimate_fisher(self._loaded, asked.questions, asked.prompts, config, observer.tokens),
            )
        self._per_step = min(config.questions_per_step, len(self._ranks))
        self._last = num_steps(config, len(self._ranks))
        self._optimizer, self._done, self._state = self._new_optimizer(), 0, StepState()
        self._rounds = Rounds(config, work, self._ranks, self._per_step) if config.rollout.reuse != 1 else None
        self._voter = None
        if config.vote.slow_decay:
            self._voter = SlowVoter(self._copy(), config, self._equivalence, self._observer.tokens)
        self._memory = None
        if self._voter is not None or config.vote.memory != "off":
            self._memory = Memories(config, self._voter and self._voter.vote)
        self._views = Views(config, renderer(self._loaded, config), self._equivalence) if config.vote.views else None
        # What checkpoints hold next to the weights.
        self._kept = [one for one in (self._rounds, self._memory, self._voter, self._feedback) if one is not None]
        if resumed:
            self._restore()
            self._observer.begin(self._done)
        if self._memory is not None and config.vote.memory_start and not self._done:
            _start_memory(self._memory, work.only(self._ranks), config, self._equivalence, run, self._observer)
        if self._guard is not None:
            self._last = self._guard.begin(self._done, self._last)

    def train(self) -> None:
        """All steps that are left; where numbers stop being finite, the guard may end the run with the best weights.

        Otherwise NonFiniteError names the step.
        """
        while self._done < self._last:
            try:
                self._advance(self._done + 1)
            except NonFiniteError as error:
                # Logits are of the weights that the step before left; all else is of the step itself.
                blamed = f"after step {self._done}" if isinstance(error, DivergedError) else f"in step {self._done + 1}"
                advice = f"; lower optim.lr (now {self._config.optim.lr:g})" if "optim.lr" not in str(error) else ""
                why = f"{blamed}, {error}{advice}"
                if self._guard is None or not self._guard.rescues(why):
                    raise type(error)(why) from None
                self._last = self._done

    def _advance(self, step: int) -> None:
        """One step, and what is due after it."""
        config, guard = self._config, self._guard
        if self._episodes.resets_before(step):
            self._episodes.reset()
            self._optimizer, self._state = self._new_optimizer(), StepState()
        self._step(step)
        self._done = step
        if guard is not None:
            self._last = guard.look(step, self._last)
        if step == self._last and config.stream.episodic:
            self._episodes.reset()
        if step == self._last or (config.eval.every and step % config.eval.every == 0):
            self._evaluate(step)
        if config.checkpoint.every and (step % config.checkpoint.every == 0 or step == self._last):
            self._save_checkpoint(step)

    def finish(self) -> None:
        """The guard's outcome, the adapted model and the report."""
        run, config = self._run, self._config
        if self._guard is not None:
            outcome = self._guard.end(self._last)
            self._observer.note(outcome.text)
            self._evaluate(outcome.kept_step)
            run.write_manifest({**run.manifest, "guard": asdict(outcome)})
        if config.steps:
            broken = not_finite(self._loaded.model.named_parameters())
            if broken:
                raise NonFiniteError(f"no model is written: weights that are not finite, {listed(broken)}")
            card = adapted_card(run.config, run.manifest, run.rows("eval.jsonl"), self._last, self._loaded)
            run.write_folder("model", lambda folder: _save(self._loaded, folder, config, card))
            if learned_nothing(run.path / "model"):
                folder = run.path / "model"
                self._observer.note(f"the adapters saved in {folder} learned nothing (all 0): the model is unchanged")
        rows = run.rows("metrics.jsonl")
        if num := sum(map(_selected_nothing, rows)):
            self._observer.note(
                f"forks.selector={config.forks.selector} selected no token in {num} of {len(rows)} steps "
                "(fork/fraction is 0 in metrics.jsonl): no response was learned from in them"
            )
        saturated = saturation_step([row["reward/mean"] for row in rows if "reward/mean" in row])
        if saturated is not None and config.reward not in ("constant", "none"):
            run.write_manifest({**run.manifest, "saturation_step": saturated})
            if said := saturation_note(saturated, len(rows)):
                self._observer.note(said)
        if config.stream.on:
            figures = stream_figures(run.rows("stream.jsonl"), config.eval.confidence)
            run.write_manifest({**run.manifest, "stream": figures})
        run.write_manifest({**run.manifest, "finished": _now()})
        _write_report(run)

    def _step(self, step: int) -> None:
        """One training step, and its lines in the run folder."""
        config, run, work, observer = self._config, self._run, self._work, self._observer
        order = config.data.order
        pool = self._pool(step)
        places = question_order(len(pool), self._per_step, step, order, config.seed, config.stream)
        chosen = work.only([pool[place] for place in places])
        num_asked = self._rounds.num_asked(step, self._last) if self._rounds else len(places)
        num_asked *= 1 + len(config.vote.views)  # with vote.unsure_margin the most there can be
        asked_for = num_asked * config.num_votes
        observer.phase("step", asked_for * config.rollout.max_new_tokens, asked_for)
        before = self._episodes.before(step, chosen)
        if self._alignment is not None:
            self._alignment.begin()
        record, self._state = train_step(
            self._loaded,
            self._anchor,
            self._optimizer,
            self._equivalence,
            chosen.questions,
            chosen.prompts,
            config,
            step,
            self._state,
            observer.tokens,
            self._oracle,
            self._draws(chosen, step),
            self._memory or self._views or self._feedback,
        )
        labels = label_rows(record, work.gold, config, self._equivalence)
        metrics = {
            "step": step,
            **record.metrics,
            **gold_metrics(record, labels, work.gold, config, self._equivalence),
        }
        if self._alignment is not None:
            metrics |= self._alignment.figures()
        if self._guard is not None:
            metrics |= self._guard.step(record)
        if self._voter is not None:
            self._voter.follow(self._loaded.model, step, num_steps(config, len(self._ranks)))
        after = self._episodes.after(step, self._last, chosen)
        if before is not None:
            run.append("stream.jsonl", *stream_rows(step, before.rows, record, work.gold, config, self._equivalence))
        if after is not None:
            run.append("stream.jsonl", *adapted_rows(step, after.rows))
        if config.stream.on:
            metrics["stream/num_tokens"] = sum(float(one.num_tokens) for one in (before, after) if one is not None)
        run.append("labels.jsonl", *labels)
        run.append("metrics.jsonl", metrics)
        if config.log.sample_questions and ((step - 1) % config.log.sample_every == 0 or step == self._last):
            run.append("samples.jsonl", *_samples(record, self._loaded, config, run))
            run.append("tokens.jsonl", _token_counts(record, self._loaded, config))
        if said := over_limit_line(metrics.get("label/over_limit", 0)):
            observer.note(f"step {step}: {said}")
        if not cuts_short(config):
            self._endings.see(metrics["rollout/truncated_frac"])
        observer.step(metrics, self._last)
        if _selected_nothing(metrics) and not self._said_unselected:
            self._said_unselected = True
            num = int(metrics["rollout/num_tokens"])
            observer.note(f"step {step}: forks.selector={config.forks.selector} selected none of {num} tokens")

    def _pool(self, step: int) -> list[int]:
        """The questions a step takes its own from: all, or by data.min_agreement and max_agreement those of medium
        agreement, by the votes before the present round of `data.agreement_every` steps."""
        data = self._config.data
        if not data.by_agreement:
            return self._ranks
        before = (step - 1) // data.agreement_every * data.agreement_every
        if self._pooled is None or self._pooled[0] != before:
            latest = {
                row["id"]: float(row["majority_frac"]) for row in self._run.predictions(0) if "majority_frac" in row
            }
            for row in self._run.rows("labels.jsonl"):
                if row["step"] <= before:
                    latest[row["id"]] = row["majority_frac"]
            ids = [self._work.questions[place].id for place in self._ranks]
            kept = within_agreement(latest, ids, data.min_agreement, data.max_agreement, self._per_step)
            self._pooled = before, [self._ranks[place] for place in kept]
        return self._pooled[1]

    def _draws(self, chosen: Workload, step: int) -> Callable[[], tuple[Rollout, int]] | None:
        """What gives a step its responses, where it does not sample them itself."""
        tokens = self._observer.tokens
        if self._views is not None:
            return partial(self._views.draw, self._loaded, chosen.questions, chosen.prompts, step, tokens)
        return self._rounds and partial(self._rounds.draw, step, self._last, tokens)

    def _copy(self) -> LoadedModel:
        assert self._open_again is not None
        return self._open_again()

    def _new_optimizer(self) -> Optimizer:
        optim = self._config.optim
        span = self._config.stream.steps_between_resets or self._last
        num_updates = min(span, self._last) * optim.epochs * min(optim.minibatches, self._per_step)
        return Optimizer(self._loaded.model.parameters(), optim, num_updates, self._fisher)

    def _new_guard(self) -> Guard | None:
        """The guard, its held-out questions taken from those to adapt to."""
        config, work, loaded = self._config, self._work, self._loaded
        if config.guard.mode == "off" or not config.steps:
            return None
        note = self._observer.note
        guard = Guard(
            self._run,
            loaded,
            work.questions,
            work.prompts,
            config,
            self._equivalence,
            renderer(loaded, config),
            note,
            self._open_again,
            self._observer,
        )
        self._ranks = [place for place in self._ranks if place not in guard.held_out]
        if not self._ranks:
            raise InputError(f"guard.holdout={config.guard.holdout} leaves none of {len(work.questions)} questions")
        return guard

    def _restore(self) -> None:
        """Go back to the newest checkpoint, if there is one."""
        run = self._run
        saved = run.load_checkpoint(
            self._loaded.model,
            self._optimizer,
            lambda folder: [one.load(folder) for one in self._kept],
            self._observer.note,
        )
        if saved is not None:
            edges = saved["band_edges"]
            self._done, self._state = saved["step"], StepState(tuple(edges) if edges else None)
        run.rewind(self._done)
        run.remove_checkpoints(self._config.checkpoint.keep_meanwhile)  # a process that was killed was about to
        self._observer.note(f"resuming {run.path} after step {self._done}")

    def _save_checkpoint(self, step: int) -> None:
        self._run.save_checkpoint(
            step,
            self._loaded.model,
            self._optimizer,
            asdict(self._state),
            self._config.checkpoint.keep_meanwhile,
            lambda folder: [one.save(folder) for one in self._kept],
        )
        self._observer.checkpoint(self._run.path / "checkpoints" / f"step-{step:06d}")

    def _evaluate(self, step: int) -> None:
        """Append a line to eval.jsonl, unless a session before the interruption already did."""
        run, work, config = self._run, self._work, self._config
        if any(row["step"] == step for row in run.rows("eval.jsonl")):
            return
        begin_evaluation(self._observer, len(work.questions), config)
        result = evaluate(
            work.loaded, work.questions, work.prompts, work.gold, config, self._equivalence, self._observer.tokens
        )
        (run.path / "predictions").mkdir(exist_ok=True)
        write_rows(run.path / "predictions" / f"step-{step:06d}.jsonl", result.predictions)
        metrics = {"step": step, **result.metrics}
        run.append("eval.jsonl", metrics)
        self._observer.evaluation(metrics)


def _start_memory(
    memory: Memories, work: Workload, config: Config, equivalence: Equivalence, run: RunFolder, observer: Observer
) -> None:
    """Let the unadapted model vote on every question.

    The responses are the first of those that an evaluation draws, so that before step 1 may have them already.
    """
    num = config.vote.memory_start
    rows = {row["id"]: row for row in run.predictions(step=0)}
    drawn = [rows.get(question.id, {}) for question in work.questions]
    if config.vote.weights == "equal" and all(len(row.get("lengths", ())) >= num for row in drawn):
        votes = [Vote(tuple(row["answers"][:num]), tuple(row["classes"][:num]), (), None, None, 0.0) for row in drawn]
        num_tokens = sum(sum(row["lengths"][:num]) for row in drawn)
        memory.start(work.questions, votes, [1.0] * (num * len(votes)), num_tokens, equivalence)
        return
    num_responses = len(work.questions) * num
    observer.phase("start votes", num_responses * config.rollout.max_new_tokens, num_responses)
    rollout = sample_responses(
        work.loaded, work.questions, work.prompts, num, config.rollout, (config.seed, "eval"), observer.tokens
    )
    rollout = add_figures(work.loaded, rollout, config)
    votes = count_votes(rollout, config.answer, config.vote, equivalence, seed=config.seed)
    memory.start(work.questions, votes, weigh_votes(rollout, config.vote.weights), rollout.total_drawn, equivalence)


def _selected_nothing(metrics: Mapping[str, Any]) -> bool:
    """Whether no token of a step was selected to be trained on, though some were sampled."""
    return metrics.get("fork/fraction") == 0 and metrics.get("rollout/num_tokens", 0) > 0


def _begin(
    config: Config, work: Workload, overwrite: bool, folder: Path, write_questions: Callable[[], None] | None
) -> RunFolder:
    """A new run folder, after checking that its checkpoints will fit on the disk."""
    check_disk(config, folder, total_bytes(work.loaded.model.parameters()))
    return RunFolder.create(config, overwrite, folder, write_questions)


def check_disk(config: Config, folder: Path, weights: int) -> None:
    """InputError where a run's checkpoints, of a model of so many bytes, will not fit on the disk."""
    parent = folder.absolute()
    while not os.path.exists(parent):
        parent = parent.parent
    copies = (config.rolls_back) + 3 * (config.checkpoint.keep_meanwhile + 1) * bool(config.checkpoint.every)
    needed = weights * (1 + copies) + 10 * 2**20
    free = shutil.disk_usage(parent).free
    if config.steps and free < needed:
        raise InputError(
            f"run={folder}: {free / 2**30:.1f} GiB free, about {needed / 2**30:.1f} GiB needed; free some "
            "space, choose another run=FOLDER, or keep fewer checkpoints (checkpoint.keep, checkpoint.every=0)"
        )


def _own_questions(config: Config, work: Workload, folder: Path) -> tuple[Config, Callable[[], None] | None]:
    """The configuration of a run that keeps what standard input held, and what writes it there; else as it is, None."""
    if config.data.name != STANDARD_INPUT or config.data.path is not None:
        return config, None
    file = folder.absolute() / copy_name(config.data)
    update: dict[str, Any] = {"name": str(file)}
    if config.data.image_folder is None and any(question.images for question in work.questions):
        update["image_folder"] = os.getcwd()
    return config.model_copy(update={"data": config.data.model_copy(update=update)}), partial(write_copy, file)


def _announce(work: Workload, config: Config, observer: Observer) -> None:
    """Say if there are too many questions, or not all come, and what a run takes that is long enough to be measured."""
    if config.stream.on and config.steps:
        batches = -(-len(work.questions) // config.questions_per_step)
        if (needed := batches * config.stream.steps_each) > config.steps:
            came = (config.stream.batch(config.steps) + 1) * config.questions_per_step
            observer.note(f"stream: {came} of {len(work.questions)} questions come; all of them with steps={needed}")
    if config.steps and not config.stream.on and not config.uses_gold and len(work.questions) >= COLLAPSED:
        observer.note(size_note(len(work.questions)) or "")
    large = work.facts["model"]["num_parameters"] > _SMALL_MODEL
    if config.steps and (config.log.plan == "on" or (config.log.plan == "auto" and large)):
        observer.phase("plan", 0)
        observer.note(make_plan(work, config).sentence)


def _write_first_manifest(run: RunFolder, work: Workload, config: Config) -> None:
    backend = backend_of(work.loaded)
    backend.settle(learns=config.steps > 0)
    stated = base_license(config.model)
    run.write_manifest(
        {
            **versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            **work.facts,
            "model": {**work.facts["model"], **({"license": stated} if stated else {})},
            "engine": {**backend.machine(), **work.loaded.capabilities.facts()},
            "seed": config.seed,
            "uses_gold": config.uses_gold,
            "started": _now(),
            "command": " ".join(sys.argv),
            "folder": str(Path.cwd()),
        }
    )


def _write_report(run: RunFolder) -> None:
    from spinerl.report import write_report

    try:
        write_report([run.path], run.path / "report.html")
    except InputError as error:
        raise RunError(f"the run is finished, but has no report: {error}; see `spinerl report`") from None


def _take(run: RunFolder) -> None:
    """Lock an interrupted run, and clear away what a kill left of files in the making.

    InputError for a folder that is no run's, RunError for one that cannot be written as it is.
    """
    if not run.is_marked:
        raise InputError(
            f"{run.path} has a config.yaml and nothing else of a run; to begin one: `spinerl adapt "
            f"{quoted(run.path / 'config.yaml')} run=FOLDER`"
        )
    run.lock()
    run.check_places()
    run.sweep()


def _check_resumable(run: RunFolder, work: Workload, other_numerics: bool) -> None:
    """Check that a run's model and data are still the same, and that this machine computes as the one did where it
    began (`other_numerics` allows another)."""
    manifest = run.manifest
    check_unchanged(str(run.path), manifest, work)
    changed = changed_numerics(manifest, work.loaded)
    if changed and not other_numerics:
        raise InputError(
            f"{run.path} would end with other numbers here than where it began ({'; '.join(changed)}); go on all the "
            f"same with `{_resume_command(run)} --allow-different-numerics`"
        )
    if not changed:
        try:
            work.loaded.capabilities.restore(manifest.get("engine", {}))
        except (TypeError, ValueError, KeyError, AttributeError):
            raise RunError(
                f"{run.path / 'manifest.json'} is damaged (`engine` is not as it was written); delete it, and "
                f"`{_resume_command(run)}` {run.still} without it"
            ) from None


def _save(loaded: LoadedModel, folder: Path, config: Config, card: str) -> None:
    """The adapted model as a Hugging Face folder, or only its adapters, with its card."""
    if config.lora.rank:
        name = config.model.name
        save_adapters(loaded.model, folder, str(Path(name).resolve()) if Path(name).exists() else name)
    else:
        save_model(loaded, folder)
    write_card(folder, card)


def _samples(record: StepRecord, loaded: LoadedModel, config: Config, run: RunFolder) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: a few questions of a step with a few of their responses, token by token.

    Of a step's questions always those first in one fixed order, so that the same ones are met again at later steps.
    """
    rows = []
    rollout, targets = record.rollout, record.targets
    ranks = [zlib.crc32(question.id.encode("utf-8", "backslashreplace")) for question in rollout.questions]
    for p in sorted(sorted(range(len(ranks)), key=ranks.__getitem__)[: config.log.sample_questions]):
        question = rollout.questions[p]
        one, prompt = record.votes[p], rollout.prompts[p]
        responses = []
        for j in range(min(config.log.sample_responses, config.group_size)):
            row, trained = p * rollout.num_responses + j, p * config.group_size + j
            length = int(rollout.mask[row].sum())
            responses.append(
                {
                    "text": rollout.texts[row],
                    "answer": one.answers[j],
                    "reward": record.rewards[p][j],
                    "advantage": targets.advantages[trained, 0].item() if length else 0.0,
                    "truncated": not rollout.finished_mask[row].item(),
                    "tokens": [loaded.tokenizer.decode([t]) for t in rollout.tokens[row, :length].tolist()],
                    "entropies": [round(h, 4) for h in rollout.entropies[row, :length].tolist()],
                    "forks": targets.fork_mask[trained, :length].tolist(),
                }
            )
        rows.append(
            {
                "step": record.step,
                "question_id": question.id,
                "question": question.text,
                "prompt": prompt.shown.text
                if isinstance(prompt, ImagePrompt)
                else loaded.tokenizer.decode(list(prompt)),
                "images": [run.keep_image(image) for image in question.images],
                "pseudo_label": one.pseudo_label,
                "majority_frac": one.majority_frac,
                "votes": dict(zip(one.class_answers, one.counts, strict=True)),
                "num_abstained": sum(c is None for c in one.classes),
                "responses": responses,
            }
        )
    return rows


def _token_counts(record: StepRecord, loaded: LoadedModel, config: Config) -> dict[str, Any]:
    """The row of tokens.jsonl: histograms of all tokens trained on and of the forks; the most frequent of either."""
    batch, _, entropies = trained_rows(record.rollout, config)
    fork_mask, edges = record.targets.fork_mask, torch.tensor(ENTROPY_EDGES)

    def words(what: str, mask: torch.Tensor) -> list[dict[str, Any]]:
        columns = frequent_tokens(batch.tokens, entropies, batch.mask, mask, _WORDS_LOGGED)
        return [
            {"token": loaded.tokenizer.decode([i]), "id": i, "seen": seen, what: count, "entropy": round(mean, 4)}
            for i, seen, count, mean in zip(*(column.tolist() for column in columns), strict=True)
        ]

    return {
        "step": record.step,
        "edges": list(ENTROPY_EDGES),
        "tokens": entropy_histogram(entropies, batch.mask, edges).tolist(),
        "forks": entropy_histogram(entropies, fork_mask, edges).tolist(),
        "words": words("forks", fork_mask),
        "followers": words("followers", batch.mask & ~fork_mask),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
