"""Part update: our update against the usual dense one, with the vocabulary of a large model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from spinerl.bench.dense import dense_update
from spinerl.bench.timing import figures, interleave, peak_memory, ratios
from spinerl.bench.work import Job
from spinerl.config import Config, load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.update import score, update
from spinerl.errors import RunError
from spinerl.models.loading import LoadedModel, load_model
from spinerl.rewards import alternating_rewards
from spinerl.step import StepState, freeze_targets
from spinerl.types import Batch, Targets

__all__ = ["FRACTIONS", "Side", "measure_update", "measure_update_memory", "open_side", "prepare_update"]

FRACTIONS = (0.1, 0.2, 0.5, 1.0)
_USUAL = 0.2


@dataclass(frozen=True)
class Side:
    """A model with its optimizer and what it is to learn, by share of tokens."""

    loaded: LoadedModel
    config: Config
    optimizer: Optimizer
    batch: Batch
    targets: dict[float, Targets]

    def ours(self, fraction: float = _USUAL) -> float:
        """Our update; returns its loss."""
        rows = torch.arange(len(self.batch.tokens))
        found = update(self.loaded, None, self.batch, self.targets[fraction], self.optimizer, self.config, rows)
        return found["loss/total"]

    def dense(self, fraction: float = _USUAL) -> float:
        """The dense update; returns its loss."""
        return dense_update(self.loaded.model, self.batch, self.targets[fraction], self.optimizer, self.config)


def prepare_update(job: Job) -> None:
    """Writes the batch of random responses with its targets, so that measuring starts from a clean process.

    The old log-probabilities are a little off, as if the policy had changed since: else every ratio were 1 and the
    policy's part of the loss 0.
    """
    settings = job.settings
    loaded, config = _open(job)
    rng = torch.Generator().manual_seed(settings.seed)
    num, size = settings.update_questions, settings.update_group_size
    vocabulary = settings.update_vocabulary
    prompts = torch.randint(2, vocabulary, (num, settings.update_prompt_tokens), generator=rng).tolist()
    tokens = torch.randint(2, vocabulary, (num * size, settings.update_new_tokens), generator=rng)
    rows = tuple(tuple(prompts[i // size]) for i in range(num * size))
    batch = Batch(rows, tokens, torch.ones_like(tokens, dtype=torch.bool), 1.0)
    logprobs, entropies = score(loaded, batch, batch.mask, config.optim)
    logprobs = logprobs + 0.1 * torch.randn(tokens.shape, generator=rng)
    targets = {}
    for fraction in FRACTIONS:
        chosen = config.model_copy(update={"forks": config.forks.model_copy(update={"fraction": fraction})})
        targets[fraction], _ = freeze_targets(
            None, batch, alternating_rewards(num, size), logprobs, entropies, chosen, StepState()
        )
    torch.save((batch, targets), job.scratch / "update.pt")


def open_side(job: Job) -> Side:
    """A fresh copy of the model and the prepared batch."""
    loaded, config = _open(job)
    batch, targets = torch.load(job.scratch / "update.pt", weights_only=False)  # our own file, just written
    return Side(loaded, config, Optimizer(loaded.model.parameters(), config.optim, 1), batch, targets)


def measure_update(job: Job) -> dict[str, Any]:
    """Seconds of both updates in turns, and of ours at each share of tokens.

    The untimed first calls start from equal weights, so their losses have to agree.  Raises RunError if not.
    """
    ours, dense = open_side(job), open_side(job)
    losses: dict[str, float] = {}

    def keep(name: str, one: Callable[[], float]) -> Callable[[int], None]:
        def task(_: int) -> None:
            losses.setdefault(name, one())

        return task

    tasks = {"ours": keep("ours", ours.ours), "dense": keep("dense", dense.dense)}
    for fraction in FRACTIONS:
        if fraction != _USUAL:
            tasks[f"ours {fraction}"] = keep(f"ours {fraction}", lambda fraction=fraction: ours.ours(fraction))
    seconds = interleave(tasks, job.patience(), str(ours.loaded.device), job.note)
    if not math.isclose(losses["ours"], losses["dense"], rel_tol=1e-3, abs_tol=1e-6):
        raise RunError(f"our loss is {losses['ours']}, the dense one {losses['dense']}: they compute different things")
    tokens = int(ours.batch.mask.sum())
    seconds[f"ours {_USUAL}"] = seconds["ours"]
    return {
        **ratios("time_ratio_vs_dense", seconds["ours"], seconds["dense"]),
        **figures("seconds", seconds["ours"]),
        **figures("seconds_dense", seconds["dense"]),
        **figures("tokens_per_s", [tokens / s for s in seconds["ours"]]),
        "seconds_by_fraction": {
            str(fraction): figures("seconds", seconds[f"ours {fraction}"]) for fraction in FRACTIONS
        },
        "loss": losses["ours"],
        "loss_dense": losses["dense"],
        "tokens": tokens,
    }


def measure_update_memory(job: Job) -> dict[str, Any]:
    """Bytes that the first update of a process adds at its peak; `which` says whose, `ours` or `dense`."""
    side = open_side(job)
    work = side.ours if job.options["which"] == "ours" else side.dense
    return {"peak_memory_bytes": peak_memory(work, str(side.loaded.device))}


def _open(job: Job) -> tuple[LoadedModel, Config]:
    settings = job.settings
    config = load_config(
        overrides=[
            f"model={job.scratch / 'update'}",
            f"model.device={settings.device}",
            f"model.dtype={settings.dtype}",
            f"group_size={settings.update_group_size}",
            f"optim.lr={settings.lr}",
        ]
    )
    return load_model(config.model, config.engine), config
