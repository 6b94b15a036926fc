"""Which weights matter to the unadapted model: the diagonal of its Fisher information, for anchor.fisher."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spinerl.config import AnchorConfig, BandConfig, Config, EntropyConfig, LossConfig
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.engine.update import update
from spinerl.models.loading import LoadedModel
from spinerl.types import Batch, OnTokens, Question, Targets

__all__ = ["estimate_fisher"]


class _Squares(Optimizer):
    """Adds up squared gradients in place of stepping."""

    def step(self) -> dict[str, float]:
        if not hasattr(self, "sums"):
            self.sums = [torch.zeros_like(master) for master in self._masters]
        for total, master in zip(self.sums, self._masters, strict=True):
            if master.grad is not None:
                total.add_(master.grad.square())
        self.zero_grad()
        return {}


def estimate_fisher(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    config: Config,
    on_tokens: OnTokens | None = None,
) -> list[torch.Tensor]:
    """For each parameter that learns F = (1/K) sum_k (d/dw (1/len_k) sum_t log pi(y_kt))^2 over K questions.

    y_k is a response of the model as it is, sampled as the rollout is, from streams of its own: no label is needed.
    Float32, or float64 for a float64 model.  Source: EATA (arXiv 2204.02610), on its own predictions; that a response
    counts by the mean over its tokens is ours.
    """
    rollout = sample_responses(loaded, questions, prompts, 1, config.rollout, (config.seed, "fisher"), on_tokens)
    plain = config.model_copy(
        update={
            "loss": LossConfig(form="nll"),
            "anchor": AnchorConfig(),
            "band": BandConfig(),
            "entropy": EntropyConfig(),
        }
    )
    targets = Targets(
        advantages=rollout.mask.double(),
        old_logprobs=rollout.logprobs,
        fork_mask=rollout.mask,
        policy_mask=rollout.mask,
        anchor_mask=None,
        anchor_logprobs=None,
        band_mask=None,
        band_low=None,
        band_high=None,
    )
    batch = Batch(rollout.prompts, rollout.tokens, rollout.mask, config.rollout.temperature)
    squares = _Squares(loaded.model.parameters(), config.optim, 1)
    for row in range(len(rollout.tokens)):
        update(loaded, None, batch, targets, squares, plain, torch.tensor([row]), on_policy=False)
    return [total.div_(len(rollout.tokens)) for total in squares.sums]
