"""A slow copy of the model that votes in its place (vote.slow_decay).

Its weights are an exponential moving average of those that learn, as in mean-teacher training (arXiv 1703.01780).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from spinerl.answers import Equivalence
from spinerl.config import Config, VoteConfig
from spinerl.engine.sampler import sample_responses
from spinerl.errors import CheckpointError
from spinerl.figures import add_figures
from spinerl.hooks import weigh_votes
from spinerl.models.loading import LoadedModel
from spinerl.step import count_votes
from spinerl.types import OnTokens, Question, Vote

__all__ = ["SlowVoter", "slow_decay"]

_FILE = "voter.safetensors"


def slow_decay(vote: VoteConfig, step: int, last: int) -> float:
    """The share of its weights that a slow copy keeps after a step of a run whose last step is `last`.

    a_t = end - (end - start) (1 + cos(pi (t - 1) / (T - 1))) / 2 from vote.slow_decay to vote.slow_decay_end; where
    that is 0 it stays vote.slow_decay.  Source: Co-rewarding-II (arXiv 2508.00410).

    >>> from spinerl.config import load_config
    >>> vote = load_config(overrides=["vote.slow_decay=0.5", "vote.slow_decay_end=0.9"]).vote
    >>> [round(slow_decay(vote, step, 3), 9) for step in (1, 2, 3)]
    [0.5, 0.7, 0.9]
    """
    if not vote.slow_decay_end:
        return vote.slow_decay
    left = (1 + math.cos(math.pi * (step - 1) / max(1, last - 1))) / 2
    return vote.slow_decay_end - (vote.slow_decay_end - vote.slow_decay) * left


class SlowVoter:
    """Begins as the unadapted model; after each step w <- decay w + (1 - decay) (the model's weights).

    Weights of 16 bits are averaged in float32, where a step of 1e-4 of the way is not rounded away.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: Config,
        equivalence: Equivalence,
        on_tokens: OnTokens | None = None,
    ) -> None:
        """`loaded`: a copy of the unadapted model, which is changed."""
        self._loaded, self._config, self._equivalence, self._on_tokens = loaded, config, equivalence, on_tokens
        exact = (torch.float32, torch.float64)
        self._wide = {
            name: p if p.dtype in exact else p.detach().float()
            for name, p in loaded.model.named_parameters()
            if p.requires_grad
        }

    def vote(
        self, questions: Sequence[Question], prompts: Sequence[tuple[int, ...]], step: int
    ) -> tuple[tuple[Vote, ...], list[float], int]:
        """(its vote on each question, the weight of each of its responses, the tokens sampled for it)."""
        config = self._config
        seed = (config.seed, "voter", step)
        rollout = sample_responses(
            self._loaded, questions, prompts, config.num_votes, config.rollout, seed, self._on_tokens
        )
        rollout = add_figures(self._loaded, rollout, config)
        votes = count_votes(rollout, config.answer, config.vote, self._equivalence, seed=config.seed + step)
        return votes, weigh_votes(rollout, config.vote.weights), rollout.total_drawn

    @torch.no_grad()
    def follow(self, model: torch.nn.Module, step: int, last: int) -> None:
        """Move a little towards the model, after this step of a run that ends with step `last`."""
        decay = slow_decay(self._config.vote, step, last)
        for name, now in model.named_parameters():
            if now.requires_grad:
                self._wide[name].lerp_(now.to(self._wide[name].dtype), 1.0 - decay)
        self._round()

    def save(self, folder: Path) -> None:
        """Write its weights into a checkpoint's folder."""
        save_file({name: wide.detach().contiguous() for name, wide in self._wide.items()}, folder / _FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take them from there."""
        tensors = load_file(folder / _FILE)
        if tensors.keys() != self._wide.keys():
            raise CheckpointError(f"{folder / _FILE} holds {len(tensors)} tensors, and {len(self._wide)} others learn")
        for name, wide in self._wide.items():
            wide.copy_(tensors[name])
        self._round()

    def _round(self) -> None:
        """Give the copy its weights, where they are averaged in another type."""
        for name, own in self._loaded.model.named_parameters():
            if own is not self._wide.get(name, own):
                own.copy_(self._wide[name])
