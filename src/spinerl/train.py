"""The loop: questions -> step -> evaluate -> checkpoint -> observers."""

from __future__ import annotations

import copy
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from spinerl import __version__
from spinerl.answers import Equivalence
from spinerl.config import Config
from spinerl.data import render_prompt, resolve
from spinerl.endings import EndWatch
from spinerl.engine.adapters import add_adapters, learned_nothing, save_adapters
from spinerl.engine.loading import LoadedModel, save_model
from spinerl.engine.optimiser import Optimiser
from spinerl.engine.sampler import sample_responses
from spinerl.errors import InputError
from spinerl.evaluation import evaluate, gold_metrics, gold_rewards, label_rows, stream_rows
from spinerl.guard.watch import Guard
from spinerl.maths import ENTROPY_EDGES, SELECTORS, VOTE_WEIGHTS, entropy_histogram, fork_tokens
from spinerl.memory import Memories
from spinerl.plugins import find
from spinerl.rewards import asked_by, check_reward
from spinerl.rounds import Rounds
from spinerl.runs import RunFolder, explain_disk_errors, total_bytes, write_rows
from spinerl.schedule import num_steps, question_order, rank_questions
from spinerl.step import StepState, count_votes, cuts_short, train_step, trained_rows, vote_weights
from spinerl.types import ImagePrompt, StepRecord, Vote
from spinerl.voter import SlowVoter
from spinerl.workload import Observer, Workload, open_workload

__all__ = ["adapt"]

_WORDS_LOGGED = 60  # tokens that are most often forks, in a row of tokens.jsonl


def adapt(
    config: Config,
    observer: Observer,
    *,
    resume: RunFolder | None = None,
    overwrite: bool = False,
    work: Workload | None = None,
) -> RunFolder:
    """Run the configuration to its end (or the rest of it, with `resume`) and write its folder.

    The weights, metrics and evaluations of a resumed run on a CPU equal those of an uninterrupted one bit for
    bit: every random choice is named by the seed and the step, and nothing else is carried over but the weights,
    the optimiser, `StepState` and, if asked for, responses and votes.

    Raises InputError before anything is written, RunError (NonFiniteError, a full disk) while running.
    """
    config = resolve(config)
    check_reward(config.reward)  # a misspelt name is refused now, not after the first evaluation
    find(SELECTORS, config.forks.selector, "forks.selector")
    find(VOTE_WEIGHTS, config.vote.weights, "vote.weights")
    if work is None:
        work = open_workload(config, observer)
    loaded, open_again = work.loaded, work.open_again
    assert open_again is not None
    if config.reward == "gold" and len(work.gold) < len(work.questions):
        missing = len(work.questions) - len(work.gold)
        raise InputError(
            f"method=grpo-gold learns from gold answers, and {missing} questions of {config.data.name} have none"
        )
    if config.lora.rank and config.steps:
        add_adapters(loaded.model, config.lora, config.seed, train_vision=config.model.train_vision)
        loaded.abilities.clear()
    config = config.model_copy(update={"threads": torch.get_num_threads()})  # a sum's last bit may depend on it
    run = _continue(resume, work) if resume else _begin(config, work, overwrite)
    with explain_disk_errors(run.path), Equivalence() as equivalence:
        _evaluate(run, work, config, equivalence, 0, observer)
        endings = EndWatch(loaded, config, observer.note)
        endings.see(run.rows("eval.jsonl")[0]["eval/truncated_frac"])
        ranks = rank_questions(config, loaded, work.prompts, [q.id for q in work.questions], run.predictions(step=0))
        guard = None
        if config.guard.mode != "off" and config.steps:
            render = partial(
                render_prompt,
                tokenizer=loaded.tokenizer,
                prompt=config.prompt,
                kind=config.answer.kind,
                vision=loaded.vision,
            )
            guard = Guard(run, loaded, work.questions, work.prompts, config, equivalence, render, observer.note)
            ranks = [place for place in ranks if place not in guard.held_out]
            if not ranks:
                raise InputError(f"guard.holdout={config.guard.holdout} leaves none of {len(work.questions)} questions")
        initial = copy.deepcopy(loaded.model.state_dict()) if config.stream.reset_every else None
        anchor = None
        if _needs_anchor(config):
            anchor = loaded.base if config.lora.rank else open_again()
        per_step = min(config.questions_per_step, len(ranks))
        last = num_steps(config, len(ranks))

        def new_optimiser() -> Optimiser:
            num_updates = last * config.optim.epochs * min(config.optim.minibatches, per_step)
            return Optimiser(loaded.model.parameters(), config.optim, num_updates)

        optimiser, done, state = new_optimiser(), 0, StepState()
        rounds = Rounds(config, work, ranks, per_step) if config.rollout.reuse != 1 else None
        voter = SlowVoter(open_again(), config, equivalence, observer.tokens) if config.vote.slow_decay else None
        memory = None
        if voter is not None or config.vote.memory != "off":
            memory = Memories(config, voter and voter.vote)
        kept = [one for one in (rounds, memory, voter) if one is not None]  # beside the weights, in checkpoints
        if resume:
            saved = run.load_checkpoint(loaded.model, optimiser, lambda folder: [one.load(folder) for one in kept])
            if saved is not None:
                edges = saved["band_edges"]
                done, state = saved["step"], StepState(tuple(edges) if edges else None)
            run.rewind(done)
            observer.note(f"resuming {run.path} after step {done}")
        oracle = None
        if config.reward == "gold":
            observer.note("this run learns from gold answers: an upper bound, not an adaptation without labels")
            oracle = partial(gold_rewards, gold=work.gold, config=config, equivalence=equivalence)
        if memory is not None and config.vote.memory_start and not done:
            _start_memory(memory, work.only(ranks), config, equivalence, run, observer)
        if guard is not None:
            last = guard.begin(done, last)
        for step in range(done + 1, last + 1):
            if step > last:
                break
            if initial is not None and step > 1 and (step - 1) % config.stream.reset_every == 0:
                loaded.model.load_state_dict(initial)
                optimiser, state = new_optimiser(), StepState()
            places = question_order(len(ranks), per_step, step, config.data.order, config.seed, config.stream.on)
            chosen = work.only([ranks[place] for place in places])
            observer.phase("step", len(places) * config.num_votes * config.rollout.max_new_tokens)
            asked = _answer_first(chosen, config, equivalence) if config.stream.on else ()
            record, state = train_step(
                loaded,
                anchor,
                optimiser,
                equivalence,
                chosen.questions,
                chosen.prompts,
                config,
                step,
                state,
                observer.tokens,
                oracle,
                rounds and partial(rounds.draw, step, last, observer.tokens),
                memory,
            )
            labels = label_rows(record, work.gold, config, equivalence)
            metrics = {"step": step, **record.metrics, **gold_metrics(record, labels, work.gold, config, equivalence)}
            if guard is not None:
                metrics |= guard.step(record)
            if voter is not None:
                voter.follow(loaded.model)
            if config.stream.on:
                run.append("stream.jsonl", *stream_rows(step, asked, record, work.gold, config, equivalence))
            run.append("labels.jsonl", *labels)
            run.append("metrics.jsonl", metrics)
            if config.log.sample_questions and ((step - 1) % config.log.sample_every == 0 or step == last):
                run.append("samples.jsonl", *_samples(record, loaded, config, run))
                run.append("tokens.jsonl", _token_counts(record, loaded, config))
            if not cuts_short(config):
                endings.see(metrics["rollout/truncated_frac"])
            observer.step(metrics, last)
            if guard is not None:
                last = guard.look(step, last)
            if step == last or (config.eval.every and step % config.eval.every == 0):
                _evaluate(run, work, config, equivalence, step, observer)
            if config.checkpoint.every and (step % config.checkpoint.every == 0 or step == last):
                run.save_checkpoint(
                    step,
                    loaded.model,
                    optimiser,
                    asdict(state),
                    config.checkpoint.keep,
                    lambda folder: [one.save(folder) for one in kept],
                )
                observer.checkpoint(run.path / "checkpoints" / f"step-{step:06d}")
        if guard is not None:
            outcome = guard.end(last)
            observer.note(outcome.text)
            _evaluate(run, work, config, equivalence, outcome.kept_step, observer)
            run.write_manifest({**run.manifest, "guard": asdict(outcome)})
        if config.steps:
            run.write_folder("model", lambda folder: _save(loaded, folder, config))
            if learned_nothing(run.path / "model"):
                observer.note(
                    f"the adapters saved in {run.path / 'model'} learned nothing (all 0): the model is unchanged"
                )
        run.write_manifest({**run.manifest, "finished": _now()})
        from spinerl.report import write_report

        write_report([run.path], run.path / "report.html")
    return run


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
    observer.phase("start votes", len(work.questions) * num * config.rollout.max_new_tokens)
    rollout = sample_responses(
        work.loaded, work.questions, work.prompts, num, config.rollout, (config.seed, "eval"), observer.tokens
    )
    votes = count_votes(rollout, config.answer, config.vote, equivalence, seed=config.seed)
    memory.start(work.questions, votes, vote_weights(rollout, config.vote), rollout.total_drawn, equivalence)


def _answer_first(chosen: Workload, config: Config, equivalence: Equivalence) -> tuple[Mapping[str, Any], ...]:
    """Greedy answers to a stream's new questions, by the model as it is before it adapts to them."""
    greedy_only = config.model_copy(update={"eval": config.eval.model_copy(update={"samples": 0, "max_questions": 0})})
    return evaluate(chosen.loaded, chosen.questions, chosen.prompts, chosen.gold, greedy_only, equivalence).predictions


def _needs_anchor(config: Config) -> bool:
    """Whether anything asks the initial model: otherwise no second copy is kept in memory."""
    if config.steps == 0:
        return False
    band = config.band.coefficient > 0 and config.band.edges == "initial"
    return config.anchor.weight > 0 or band or bool(asked_by(config.reward) & {"reference", "initial_embeddings"})


def _begin(config: Config, work: Workload, overwrite: bool) -> RunFolder:
    """A new run folder with its manifest, after checking that its checkpoints will fit on the disk."""
    parent = config.run_folder.absolute()
    while not parent.exists():
        parent = parent.parent
    weights = total_bytes(work.loaded.model.parameters())
    copies = (config.guard.mode == "rollback") + 3 * (config.checkpoint.keep + 1) * bool(config.checkpoint.every)
    needed = weights * (1 + copies) + 10 * 2**20
    free = shutil.disk_usage(parent).free
    if config.steps and free < needed:
        raise InputError(
            f"run={config.run_folder}: {free / 2**30:.1f} GiB free, about {needed / 2**30:.1f} GiB needed; free some "
            "space, choose another run=FOLDER, or keep fewer checkpoints (checkpoint.keep, checkpoint.every=0)"
        )
    run = RunFolder.create(config, overwrite)
    run.write_manifest(
        {
            "spinerl": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
            "platform": platform.platform(),
            **work.facts,
            "seed": config.seed,
            "uses_gold": config.reward == "gold",
            "started": _now(),
            "command": " ".join(sys.argv),
        }
    )
    return run


def _continue(run: RunFolder, work: Workload) -> RunFolder:
    """The run to resume, after checking that its model and data are still the same."""
    manifest = run.manifest
    for what in ("model", "data"):
        then, now = manifest.get(what, {}).get("fingerprint"), work.facts[what]["fingerprint"]
        if then is not None and then != now:
            raise InputError(
                f"{run.path} cannot be resumed: its {what} {work.facts[what]['name']} has changed since it began "
                f"({then} then, {now} now)"
            )
    if not manifest:  # killed before the manifest was written: nothing else has been either
        return _begin(run.config, work, overwrite=True)
    return run


def _evaluate(
    run: RunFolder, work: Workload, config: Config, equivalence: Equivalence, step: int, observer: Observer
) -> None:
    """Append a line to eval.jsonl, unless a run before the interruption already did."""
    if any(row["step"] == step for row in run.rows("eval.jsonl")):
        return
    num_questions = config.eval.max_questions or len(work.questions)
    observer.phase("evaluate", num_questions * (1 + config.eval_samples) * config.rollout.max_new_tokens)
    result = evaluate(work.loaded, work.questions, work.prompts, work.gold, config, equivalence, observer.tokens)
    (run.path / "predictions").mkdir(exist_ok=True)
    write_rows(run.path / "predictions" / f"step-{step:06d}.jsonl", result.predictions)
    metrics = {"step": step, **result.metrics}
    run.append("eval.jsonl", metrics)
    observer.evaluation(metrics)


def _save(loaded: LoadedModel, folder: Path, config: Config) -> None:
    """The adapted model as a Hugging Face folder, or its adapters alone."""
    if config.lora.rank:
        name = config.model.name
        save_adapters(loaded.model, folder, str(Path(name).resolve()) if Path(name).is_dir() else name)
    else:
        save_model(loaded, folder)


def _samples(record: StepRecord, loaded: LoadedModel, config: Config, run: RunFolder) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: the first few questions of a step with a few of their responses, token by token."""
    rows = []
    rollout, targets = record.rollout, record.targets
    for p, question in enumerate(rollout.questions[: config.log.sample_questions]):
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
    """The row of tokens.jsonl: histograms of all tokens trained on and of the forks, and the most frequent forks."""
    batch, _, entropies = trained_rows(record.rollout, config)
    fork_mask, edges = record.targets.fork_mask, torch.tensor(ENTROPY_EDGES)
    columns = fork_tokens(batch.tokens, entropies, batch.mask, fork_mask, _WORDS_LOGGED)
    return {
        "step": record.step,
        "edges": list(ENTROPY_EDGES),
        "tokens": entropy_histogram(entropies, batch.mask, edges).tolist(),
        "forks": entropy_histogram(entropies, fork_mask, edges).tolist(),
        "words": [
            {"token": loaded.tokenizer.decode([i]), "id": i, "seen": seen, "forks": forks, "entropy": round(mean, 4)}
            for i, seen, forks, mean in zip(*(column.tolist() for column in columns), strict=True)
        ],
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
