"""The dense update that ours is measured against computes the same."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from spinerl.bench.dense import dense_loss
from spinerl.config import load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.update import score, update
from spinerl.models.loading import load_model
from spinerl.rewards import alternating_rewards
from spinerl.step import StepState, freeze_targets
from spinerl.types import Batch


def prepared(folder, *overrides):
    """(config, model, batch, targets): two prompts, three random responses each, the policy changed since."""
    config = load_config(overrides=[f"model={folder}", "group_size=3", *overrides])
    loaded = load_model(config.model, config.engine)
    loaded.model.to(torch.float64)
    rng = torch.Generator().manual_seed(0)
    prompts = tuple(tuple(range(10 * (i // 3), 10 * (i // 3) + 5)) for i in range(6))
    tokens = torch.randint(5, 200, (6, 12), generator=rng)
    batch = Batch(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool), 0.9)
    logprobs, entropies = score(loaded, batch, batch.mask, config.optim)
    logprobs = logprobs + 0.2 * torch.randn(tokens.shape, generator=rng)
    targets, _ = freeze_targets(None, batch, alternating_rewards(2, 3), logprobs, entropies, config, StepState())
    return config, loaded, batch, targets


@pytest.mark.parametrize("overrides", [["band.weight=0.3"], ["forks.fraction=0.5"], ["method=ttrl"]], ids=" ".join)
def test_loss_and_gradient_equal_ours(model_folders, overrides):
    config, loaded, batch, targets = prepared(model_folders("qwen3"), *overrides)
    model = copy.deepcopy(loaded.model)
    expected = dense_loss(model, batch, targets, config)
    expected.backward()

    class Recording(Optimizer):
        def step(self):
            return {}

    optimizer = Recording(loaded.model.parameters(), config.optim, 1)
    figures = update(loaded, None, batch, targets, optimizer, config, torch.arange(6))
    assert figures["loss/total"] == pytest.approx(expected.item(), rel=1e-9)
    largest = max(p.grad.abs().max() for p in model.parameters())
    assert largest > 1e-3
    for ours, theirs in zip(loaded.model.parameters(), model.parameters(), strict=True):
        # Norms and RoPE inside the model are float32 whatever its type.
        assert (ours.grad - theirs.grad).abs().max() < 1e-6 * largest


def test_refuses_what_it_does_not_compute(model_folders):
    config, loaded, batch, targets = prepared(model_folders("qwen3"))
    uneven = dataclasses.replace(batch, prompts=((1,), *batch.prompts[1:]))
    with pytest.raises(ValueError, match="prompts of one length"):
        dense_loss(loaded.model, uneven, targets, config)
