"""The job of a worker process, and the model, questions and configuration that its measurements share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spinerl.bench.models import random_questions
from spinerl.bench.settings import Settings
from spinerl.bench.timing import Patience
from spinerl.config import Config, load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.engine.update import update
from spinerl.models.loading import LoadedModel, load_model
from spinerl.rewards import alternating_rewards
from spinerl.step import StepState, freeze_targets, trained_rows
from spinerl.types import Batch, Question, Rollout, Targets

__all__ = ["Job", "Work", "bench_config", "open_work"]


@dataclass(frozen=True)
class Job:
    """What a worker is given: the settings (threads and device decided), a folder for files, the task's own options."""

    settings: Settings
    scratch: Path
    note: Callable[[str], None] = lambda _: None
    options: dict[str, Any] = field(default_factory=dict)

    def patience(self, most: int = 0) -> Patience:
        """How often to repeat; `most` lowers the settings' number."""
        settings = self.settings
        return Patience(min(most or settings.repeats, settings.repeats), settings.part_seconds)

    def folder(self, lengths: str) -> str:
        """The model whose responses have `equal` lengths or stop (`half`); a given model is one and the same."""
        return str(self.scratch / lengths) if self.settings.model == "random" else self.settings.model


@dataclass(frozen=True)
class Work:
    """A model with questions, ready to sample and to learn."""

    loaded: LoadedModel
    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    config: Config
    optimizer: Optimizer

    @property
    def device(self) -> str:
        return str(self.loaded.device)

    def sample(self, repeat: int = 0, config: Config | None = None, keep_activations: bool = False) -> Rollout:
        """One rollout of the configuration; another repeat gives other responses."""
        config = config or self.config
        seed = (config.seed, "bench", repeat)
        sizes = (config.group_size, config.rollout)
        return sample_responses(
            self.loaded, self.questions, self.prompts, *sizes, seed, keep_activations=keep_activations
        )

    def targets(self, rollout: Rollout, config: Config | None = None) -> tuple[Batch, Targets]:
        """What an update of this rollout learns, every second response being rewarded."""
        config = config or self.config
        batch, logprobs, entropies = trained_rows(rollout, config)
        rewards = alternating_rewards(len(self.questions), config.group_size)
        targets, _ = freeze_targets(None, batch, rewards, logprobs, entropies, config, StepState())
        return batch, targets

    def learn(self, batch: Batch, targets: Targets, config: Config | None = None) -> dict[str, float]:
        """One update from all rows."""
        rows = torch.arange(len(batch.tokens))
        return update(self.loaded, None, batch, targets, self.optimizer, config or self.config, rows)


def bench_config(job: Job, lengths: str = "equal", overrides: Sequence[str] = ()) -> Config:
    """Our configuration of the job's workload; `overrides` go in last."""
    settings = job.settings
    return load_config(
        overrides=[
            f"model={job.folder(lengths)}",
            f"model.device={settings.device}",
            f"model.dtype={settings.dtype}",
            f"seed={settings.seed}",
            f"questions_per_step={settings.questions}",
            f"group_size={settings.group_size}",
            f"rollout.max_new_tokens={settings.new_tokens}",
            f"optim.lr={settings.lr}",
            "answer.kind=number",
            "answer.truncated=count",  # responses of equal length are all cut off, and have to vote
            *overrides,
        ]
    )


def open_work(job: Job, lengths: str = "equal", overrides: Sequence[str] = ()) -> Work:
    """The job's model on its device with random questions.  `equal`: no response ends by itself."""
    settings = job.settings
    config = bench_config(job, lengths, overrides)
    loaded = load_model(config.model, config.engine)
    if lengths == "equal":
        loaded = dataclasses.replace(loaded, end_ids=())
    questions, prompts = random_questions(loaded.tokenizer, settings, settings.questions, settings.prompt_tokens)
    optimizer = Optimizer(loaded.model.parameters(), config.optim, 1)
    return Work(loaded, questions, prompts, config, optimizer)
