"""Part step: one whole training step, ours against TRL's, on the same model, questions and kind of reward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from spinerl.answers import Equivalence, count_vote, majority_reward
from spinerl.bench.peer_trl import TrlJob, fastest_rows, require_trl, run_steps
from spinerl.bench.timing import figures, interleave, peak_memory, ratios
from spinerl.bench.work import Job, Work, bench_config, open_work
from spinerl.config import Config
from spinerl.models.gguf import require_folder
from spinerl.models.loading import resolve_name
from spinerl.step import StepState, train_step

__all__ = ["measure_our_step", "measure_step", "measure_step_memory", "measure_trl_defaults", "vote_rewards"]

_ALL_TOKENS_REPEATS = 2  # a side figure: it need not double the time of the whole part
_PHASES = ("rollout", "answers", "targets", "update")


def measure_step(job: Job) -> dict[str, Any]:
    """Our step and TRL's in turns, in one process: ours runs when TRL reports the end of its step.

    Raises MissingExtraError where trl is not installed.
    """
    require_trl()
    settings = job.settings
    with Equivalence() as equivalence:
        ours = _OurStep(job, equivalence)
        peer = _trl_job(job, ours.work, equivalence)
        if settings.trl_rows:
            rows, tried = settings.trl_rows, {}
        else:
            job.note("trying TRL's rows per forward and backward")
            sample = _smaller(peer)
            rows, tried = fastest_rows(sample)
            tried = {n: seconds / sample.num_rows * peer.num_rows for n, seconds in tried.items()}
        done, patience, started = 0, job.patience(), 0.0

        def after_step() -> bool:
            nonlocal done, started
            ours.run("spine", done)
            if 0 < done <= _ALL_TOKENS_REPEATS:  # the other method has warmed up for it
                ours.run("ttrl", done)
            started = started or time.perf_counter()  # this was the warm-up
            spent = patience.is_spent(done, started)
            done += 1
            job.note(f"TRL and ours, repeat {min(done, patience.most)} of {patience.most}")
            return spent

        job.note("TRL and ours, warm-up")
        threads = torch.get_num_threads()
        theirs = run_steps(peer, 1 + patience.most, rows, after_step=after_step)[1:]
        assert torch.get_num_threads() == threads, "both sides have the same threads"
    spine, all_tokens = ours.seconds("spine"), ours.seconds("ttrl")
    return {
        **ratios("ratio_vs_trl", theirs, spine),
        **ratios("ratio_vs_trl_all_tokens", theirs[: len(all_tokens)], all_tokens),
        **figures("seconds_trl", theirs),
        **ours.figures(),
        "trl": {"rows_per_device": rows, "update_seconds_by_rows": {str(n): s for n, s in tried.items()}},
    }


def measure_our_step(job: Job) -> dict[str, Any]:
    """Our step by itself, for where TRL is missing."""
    with Equivalence() as equivalence:
        ours = _OurStep(job, equivalence)
        tasks = {method: partial(ours.run, method) for method in ("spine", "ttrl")}
        interleave(tasks, job.patience(), ours.work.device, job.note)
    return ours.figures()


def measure_step_memory(job: Job) -> dict[str, Any]:
    """Bytes that our step adds at its peak; the optimizer's state is part of it."""
    with Equivalence() as equivalence:
        ours = _OurStep(job, equivalence)
        return {"peak_memory_bytes": peak_memory(lambda: ours.run("spine", 0), ours.work.device)}


def measure_trl_defaults(job: Job) -> dict[str, Any]:
    """TRL as it comes: its default rows and gradient checkpointing, this process's allocator untouched.

    One step, without a warm-up: it is long enough.

    Raises MissingExtraError where trl is not installed.
    """
    require_trl()
    with Equivalence() as equivalence:
        work = open_work(job, _lengths(job))
        peer = _trl_job(job, work, equivalence)
        rows = 8 if peer.num_rows % 8 == 0 else peer.num_rows
        seconds: list[float] = []
        peak = peak_memory(lambda: seconds.extend(run_steps(peer, 1, rows, gradient_checkpointing=True)), work.device)
    return {**figures("seconds_trl_defaults", seconds), "peak_memory_trl_defaults_bytes": peak}


def vote_rewards(texts: Sequence[str], config: Config, equivalence: Equivalence) -> list[float]:
    """The majority reward of question-major responses, by the functions that our own step uses."""
    size = config.group_size
    rewards: list[float] = []
    for start in range(0, len(texts), size):
        group = list(texts[start : start + size])
        one = count_vote(
            group,
            [False] * len(group),
            config.answer.kind,
            equivalence,
            choices=(),
            **config.vote.rules,
        )
        rewards += majority_reward(one)
    return rewards


class _OurStep:
    """Our training step on the benchmark's questions, and what its steps reported."""

    def __init__(self, job: Job, equivalence: Equivalence) -> None:
        lengths = _lengths(job)
        self.work: Work = open_work(job, lengths)
        self._equivalence = equivalence
        # A majority reward is alike in most groups of random responses, and TTRL skips those; TRL computes all of them.
        overrides = {"spine": ["method=spine"], "ttrl": ["method=ttrl", "reward=entropy"]}
        self._configs = {method: bench_config(job, lengths, given) for method, given in overrides.items()}
        self._metrics: dict[str, list[dict[str, float]]] = {method: [] for method in self._configs}

    def run(self, method: str, repeat: int) -> None:
        """One step; repeat 0 is a warm-up and not counted."""
        work = self.work
        record, _ = train_step(
            work.loaded,
            None,
            work.optimizer,
            self._equivalence,
            work.questions,
            work.prompts,
            self._configs[method],
            repeat,
            StepState(),
        )
        if repeat:
            self._metrics[method].append(dict(record.metrics))

    def seconds(self, method: str) -> list[float]:
        """Seconds of each counted step."""
        return [metrics["time/step_s"] for metrics in self._metrics[method]]

    def figures(self) -> dict[str, Any]:
        """Medians and repeats over the counted steps, under the documented names."""
        steps = self._metrics["spine"]
        return {
            **figures("seconds", self.seconds("spine")),
            **figures("seconds_all_tokens", self.seconds("ttrl")),
            **figures("tokens_per_s", [m["time/tokens_per_s"] for m in steps]),
            "share": {
                phase: statistics.median(m[f"time/{phase}_s"] / m["time/step_s"] for m in steps) for phase in _PHASES
            },
            "fork_fraction": steps[-1]["fork/fraction"],
            "zero_variance_fraction": steps[-1]["reward/zero_variance_frac"],
        }


def _trl_job(job: Job, work: Work, equivalence: Equivalence) -> TrlJob:
    settings, folder = job.settings, resolve_name(work.config.model.name)
    require_folder(folder, work.config.model.name, "TRL")
    return TrlJob(
        folder=folder,
        texts=tuple(question.text for question in work.questions),
        group_size=settings.group_size,
        new_tokens=settings.new_tokens,
        lr=settings.lr,
        reward=lambda texts: vote_rewards(texts, work.config, equivalence),
        device=work.device,
        bfloat16=work.loaded.mixed or work.loaded.model.dtype == torch.bfloat16,
    )


def _lengths(job: Job) -> str:
    """A given model ends its responses by itself: TRL has no other way."""
    return "equal" if job.settings.model == "random" else "half"


def _smaller(peer: TrlJob) -> TrlJob:
    """The same with a quarter of the questions: enough to compare rows per forward and backward."""
    return replace(peer, texts=peer.texts[: max(1, len(peer.texts) // 4)])
