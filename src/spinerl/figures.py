"""Figures of a rollout's tokens that cost more than sampling, computed where a vote's weights or a reward name one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from spinerl.config import Config
from spinerl.engine.update import token_margins
from spinerl.hooks import figures_of
from spinerl.maths import TOKEN_FIGURES
from spinerl.models.loading import LoadedModel
from spinerl.rewards import asked_by
from spinerl.types import Batch, Rollout

__all__ = ["FIGURES", "add_figures", "asked_figures"]


def _margins(policy: LoadedModel, rollout: Rollout, config: Config) -> torch.Tensor:
    """`maths.top_margins` of every token's distribution, by a pass of the model that sampled."""
    prompts = tuple(rollout.prompts[row // rollout.num_responses] for row in range(len(rollout.tokens)))
    batch = Batch(prompts, rollout.tokens, rollout.mask, config.rollout.temperature)
    return token_margins(policy, batch, config.optim)


def _line_ends(policy: LoadedModel, rollout: Rollout, config: Config) -> torch.Tensor:  # noqa: ARG001
    """Whether a token's text has the end of a line in it."""
    ids = rollout.tokens[rollout.mask].unique()
    ends = [index for index in ids.tolist() if "\n" in str(policy.tokenizer.decode([index]))]
    return torch.isin(rollout.tokens, torch.tensor(ends, dtype=rollout.tokens.dtype)) & rollout.mask


FIGURES: dict[str, Callable[[LoadedModel, Rollout, Config], torch.Tensor]] = {
    "margins": _margins,
    "line_ends": _line_ends,
}
"""By the names in `maths.TOKEN_FIGURES`: (the model that sampled, its rollout) -> (B, T), 0 or False on padding."""


def asked_figures(config: Config) -> list[str]:
    """The figures that vote.weights or the reward ask for."""
    return [name for name in TOKEN_FIGURES if name in {*figures_of(config.vote.weights), *asked_by(config.reward)}]


def add_figures(policy: LoadedModel, rollout: Rollout, config: Config) -> Rollout:
    """The rollout with what is asked for; itself where that is nothing."""
    found = {name: FIGURES[name](policy, rollout, config) for name in asked_figures(config)}
    return replace(rollout, figures=found) if found else rollout
