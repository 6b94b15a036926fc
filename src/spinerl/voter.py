"""A slow copy of the model that votes in its place (vote.slow_decay).

Its weights are an exponential moving average of those that learn, as in mean-teacher training (arXiv 1703.01780).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from spinerl.answers import Equivalence
from spinerl.config import Config
from spinerl.engine.loading import LoadedModel
from spinerl.engine.sampler import sample_responses
from spinerl.hooks import weigh_votes
from spinerl.runs import load_learned, save_learned
from spinerl.step import count_votes
from spinerl.types import OnTokens, Question, Vote

__all__ = ["SlowVoter"]

_FILE = "voter.safetensors"


class SlowVoter:
    """Begins as the unadapted model; after each step w <- decay w + (1 - decay) (the model's weights)."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: Config,
        equivalence: Equivalence,
        on_tokens: OnTokens | None = None,
    ) -> None:
        """`loaded`: a copy of the unadapted model, which is changed."""
        self._loaded, self._config, self._equivalence, self._on_tokens = loaded, config, equivalence, on_tokens

    def vote(
        self, questions: Sequence[Question], prompts: Sequence[tuple[int, ...]], step: int
    ) -> tuple[tuple[Vote, ...], list[float], int]:
        """(its vote on each question, the weight of each of its responses, the tokens sampled for it)."""
        config = self._config
        seed = (config.seed, "voter", step)
        rollout = sample_responses(
            self._loaded, questions, prompts, config.num_votes, config.rollout, seed, self._on_tokens
        )
        votes = count_votes(rollout, config.answer, config.vote, self._equivalence, seed=config.seed + step)
        return votes, weigh_votes(rollout, config.vote.weights), rollout.total_drawn

    @torch.no_grad()
    def follow(self, model: torch.nn.Module) -> None:
        """Move a little towards the model."""
        for own, now in zip(self._loaded.model.parameters(), model.parameters(), strict=True):
            if now.requires_grad:
                own.lerp_(now, 1.0 - self._config.vote.slow_decay)

    def save(self, folder: Path) -> None:
        """Write its weights into a checkpoint's folder."""
        save_learned(self._loaded.model, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Take them from there."""
        load_learned(self._loaded.model, folder / _FILE)
