"""What must hold whatever the numbers: padding, order and splits change neither the loss nor its gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.engine.update import update
from spinerl.models.loading import load_model
from spinerl.step import StepState, freeze_targets, trained_rows
from spinerl.types import Batch, Question, Targets

TEXTS = ("One?", "A second, longer question?")
REWARDS = ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0))
OVERRIDES = ["group_size=3", "rollout.max_new_tokens=16", "band.weight=0.2", "anchor.weight=0.1", "anchor.scope=all"]


@pytest.fixture(scope="module")
def rollout(model_folders):
    config = load_config(overrides=[f"model={model_folders('qwen3')}", *OVERRIDES])
    policy = load_model(config.model, config.engine)
    prompts = [tuple(policy.tokenizer(text).input_ids) for text in TEXTS]
    questions = [Question(str(i), text) for i, text in enumerate(TEXTS)]
    return config, policy, sample_responses(policy, questions, prompts, 3, config.rollout, ("p",))


def targets_of(config, policy, batch, old, entropies, rewards=REWARDS, state=None):
    targets, _ = freeze_targets(policy, batch, rewards, old, entropies, config, state or StepState())
    return targets


def gradient(config, policy, batch: Batch, targets: Targets) -> list[torch.Tensor]:
    found = []

    class Recording(Optimizer):
        def step(self):
            found.extend(p.grad.clone() for p in policy.model.parameters() if p.grad is not None)
            return {}

    update(
        policy,
        policy,
        batch,
        targets,
        Recording(policy.model.parameters(), config.optim, 1),
        config,
        torch.arange(len(batch.tokens)),
    )
    policy.model.zero_grad()
    return found


def assert_close(found, expected):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 2e-6


def test_appended_padding_changes_nothing(rollout):
    config, policy, sampled = rollout
    batch, old, entropies = trained_rows(sampled, config)
    expected = gradient(config, policy, batch, targets_of(config, policy, batch, old, entropies))

    def wider(tensor):
        return torch.nn.functional.pad(tensor, (0, 5))

    padded = dataclasses.replace(batch, tokens=wider(batch.tokens), mask=wider(batch.mask))
    targets = targets_of(config, policy, padded, wider(old), wider(entropies))
    assert_close(gradient(config, policy, padded, targets), expected)


def test_permuted_questions_change_nothing(rollout):
    config, policy, sampled = rollout
    batch, old, entropies = trained_rows(sampled, config)
    expected = gradient(config, policy, batch, targets_of(config, policy, batch, old, entropies))
    order = torch.tensor([3, 4, 5, 0, 1, 2])
    swapped = Batch(tuple(batch.prompts[i] for i in order), batch.tokens[order], batch.mask[order], batch.temperature)
    targets = targets_of(config, policy, swapped, old[order], entropies[order], REWARDS[::-1])
    assert_close(gradient(config, policy, swapped, targets), expected)


def test_targets_carry_no_gradient_and_keep_to_the_mask(rollout):
    config, policy, sampled = rollout
    batch, old, entropies = trained_rows(sampled, config)
    targets = targets_of(config, policy, batch, old, entropies)
    for field in dataclasses.fields(targets):
        value = getattr(targets, field.name)
        if value is None:
            continue
        assert not value.requires_grad
        if value.shape == batch.mask.shape:
            assert not value[~batch.mask].any(), field.name


def test_minibatches_split_the_questions_and_each_normalizes_itself(rollout):
    config, policy, sampled = rollout
    batch, old, entropies = trained_rows(sampled, config)
    config = load_config(overrides=[*OVERRIDES, "anchor.weight=0", "band.weight=0"])
    targets = targets_of(config, policy, batch, old, entropies)
    optimizer = Optimizer(policy.model.parameters(), config.optim, 1)
    optimizer.step = lambda: {}
    halves = [
        update(policy, None, batch, targets, optimizer, config, torch.arange(3) + offset)["loss/policy"]
        for offset in (0, 3)
    ]
    # on-policy the ratio is 1, so a half's loss is minus the mean advantage over its own forks
    for offset, loss in zip((0, 3), halves, strict=True):
        forks = targets.fork_mask[offset : offset + 3]
        mean = targets.advantages[offset : offset + 3][forks].mean().item()
        assert loss == pytest.approx(-mean, abs=1e-5)


def test_moving_edges_are_carried_from_step_to_step(rollout):
    _, policy, sampled = rollout
    config = load_config(overrides=[*OVERRIDES, "band.edges=ema", "band.ema_decay=0.5"])
    batch, old, entropies = trained_rows(sampled, config)
    first, state = freeze_targets(policy, batch, REWARDS, old, entropies, config, StepState())
    assert first.band_low.unique().numel() == first.band_high.unique().numel() == 1
    assert state.band_edges == (first.band_low[0].item(), first.band_high[0].item())
    second, _ = freeze_targets(policy, batch, REWARDS, old, entropies * 3, config, state)
    assert second.band_high[0].item() == pytest.approx(0.5 * state.band_edges[1] + 0.5 * 3 * state.band_edges[1])


def test_initial_edges_are_those_of_the_anchor(rollout, model_folders):
    _, policy, sampled = rollout
    config = load_config(overrides=[*OVERRIDES, "band.edges=initial", "anchor.weight=0"])
    batch, old, entropies = trained_rows(sampled, config)
    # the anchor is the policy itself here, so its entropies are the sampler's up to rounding
    initial = targets_of(config, policy, batch, old, entropies)
    current = targets_of(load_config(overrides=[*OVERRIDES, "anchor.weight=0"]), policy, batch, old, entropies)
    assert torch.allclose(initial.band_high, current.band_high, atol=1e-4)
    another = load_model(load_config(overrides=[f"model={model_folders('llama')}"]).model)
    assert not torch.allclose(
        targets_of(config, another, batch, old, entropies).band_high, current.band_high, atol=1e-2
    )
