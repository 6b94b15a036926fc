"""Steps whose responses another engine sampled: here our own sampler with other weights than those that learn."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from spinerl.answers import Equivalence
from spinerl.config import load_config
from spinerl.engine import vllm
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.engine.update import score
from spinerl.errors import InputError, MissingExtraError
from spinerl.models.loading import load_model
from spinerl.step import StepState, correct_mismatch, freeze_targets, train_step, trained_rows
from spinerl.types import Batch, Question
from spinerl.workload import open_workload

QUESTIONS = [Question("a", "2 + 3?"), Question("b", "7 - 4?")]
PROMPTS = [(5, 6, 7, 8), (9, 10, 11)]


class Neighbour:
    """Samples with the weights of a neighbouring model."""

    def __init__(self, behaviour, config):
        self.behaviour, self.config = behaviour, config
        self.facts = {"neighbour": "1"}

    def respond(self, loaded, questions, prompts, num_responses, rollout, seed, limits, on_tokens):
        if seed is None:
            return greedy_responses(self.behaviour, questions, prompts, rollout, on_tokens)
        drawn = sample_responses(
            self.behaviour, questions, prompts, num_responses, rollout, seed, on_tokens, limits=limits
        )
        rows = tuple(prompts[row // num_responses] for row in range(len(drawn.tokens)))
        batch = Batch(rows, drawn.tokens, drawn.mask, rollout.temperature)
        logprobs, entropies = score(loaded, batch, drawn.mask, self.config.optim)
        return dataclasses.replace(drawn, logprobs=logprobs, entropies=entropies, sampler_logprobs=drawn.logprobs)


@pytest.fixture
def scene(model_folders):
    """(configuration, a model that learns, the same with a neighbour sampling for it)"""

    def opened(*overrides):
        folder = model_folders("qwen3")
        common = ["answer.kind=text", "answer.truncated=count", "rollout.max_new_tokens=12", "group_size=6"]
        config = load_config(
            overrides=[f"model={folder}", *common, "questions_per_step=2", "rollout.temperature=0.8", *overrides]
        )
        loaded, behaviour = load_model(config.model, config.engine), load_model(config.model, config.engine)
        with torch.no_grad():
            for parameter in behaviour.model.parameters():
                parameter.add_(0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        return config, loaded, dataclasses.replace(loaded, sampler=Neighbour(behaviour, config))

    return opened


def step(config, loaded):
    optimizer = Optimizer(loaded.model.parameters(), config.optim, 1)
    with Equivalence() as equivalence:
        return train_step(loaded, None, optimizer, equivalence, QUESTIONS, PROMPTS, config, 1, StepState())[0]


def test_advantages_count_by_the_importance_weights(scene):
    config, _, served = scene("reward=frequency", "method=ttrl", "rollout.importance_cap=1.1")
    record = step(config, served)
    rollout = record.rollout
    ratios = (rollout.logprobs - rollout.sampler_logprobs).exp()
    assert float(ratios[rollout.mask].std()) > 0.05
    batch, old, entropies = trained_rows(rollout, config)
    plain, _ = freeze_targets(None, batch, record.rewards, old, entropies, config, StepState())
    wanted = plain.advantages * ratios.clamp_max(1.1)
    assert float(plain.advantages.abs().max()) > 0
    assert torch.allclose(record.targets.advantages, wanted, atol=1e-6)
    over = (ratios > 1.1)[rollout.mask].double().mean()
    assert record.metrics["mismatch/capped_frac"] == pytest.approx(float(over))
    assert 0 < record.metrics["mismatch/logprob_diff"] < record.metrics["mismatch/logprob_diff_max"]
    # Ratios are taken against the model that learns, so that a first update clips nothing.
    assert record.metrics["loss/log_ratio_max"] < 1e-4
    assert record.metrics["loss/clipped_frac"] == 0.0


def test_a_cap_of_zero_corrects_nothing_but_still_measures(scene):
    config, _, served = scene("reward=frequency", "rollout.importance_cap=0")
    record = step(config, served)
    batch, old, entropies = trained_rows(record.rollout, config)
    plain, _ = freeze_targets(None, batch, record.rewards, old, entropies, config, StepState())
    assert torch.equal(record.targets.advantages, plain.advantages)
    assert record.metrics["mismatch/weight"] == 1.0
    assert record.metrics["mismatch/logprob_diff"] > 0


def test_more_votes_than_trained_rows_and_trees(scene):
    config, _, served = scene("rollout.num_votes=8", "group_size=4", "reward=frequency", "band.weight=0")
    record = step(config, served)
    assert record.rollout.sampler_logprobs.shape == (16, record.rollout.tokens.shape[1])
    assert record.targets.advantages.shape[0] == 8
    config, _, served = scene("tree.bases=2", "tree.forks=2", "tree.branches=1")
    rollout = step(config, served).rollout
    assert rollout.sampler_logprobs.shape == rollout.tokens.shape
    assert bool((rollout.sampler_logprobs[rollout.mask] < 0).all())


def test_our_own_sampler_needs_no_correction(scene):
    config, loaded, _ = scene()
    record = step(config, loaded)
    assert record.rollout.sampler_logprobs is None
    assert not [name for name in record.metrics if name.startswith("mismatch/")]
    assert correct_mismatch(record.targets, record.rollout, config) == (record.targets, {})


def test_the_correction_takes_the_bias_away(scene):
    """The mean gradient of sampled surrogates over many draws: with weights it is that of the model's own draws."""
    config, loaded, served = scene("rollout.importance_cap=0", "rollout.max_new_tokens=1", "rollout.temperature=1")
    question, prompt = QUESTIONS[:1], PROMPTS[:1]
    many = sample_responses(served, question, prompt, 6000, config.rollout, (1,))
    with torch.no_grad():
        policy = torch.softmax(loaded.model(input_ids=torch.tensor([prompt[0]])).logits[0, -1].double(), -1)
    reward = (torch.arange(len(policy)) % 3 == 0).double()
    tokens = many.tokens[:, 0]
    wanted = policy * (reward - (policy * reward).sum())  # d E[reward] / d logits
    weights = (many.logprobs - many.sampler_logprobs).exp()[:, 0].double()
    onehot = torch.nn.functional.one_hot(tokens, len(policy)).double()

    def error(weights):
        gradient = (weights[:, None] * (reward[tokens][:, None] * (onehot - policy))).mean(0)
        return float((gradient - wanted).norm())

    assert error(weights) < 0.6 * error(torch.ones_like(weights))


def test_refusals():
    with pytest.raises(InputError, match="reward=self-certainty needs whole distributions"):
        load_config(overrides=["rollout.sampler=vllm", "method=self-certainty"])
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(MissingExtraError, match=r"pip install 'spinerl\[vllm\]'"):
            open_workload(load_config(overrides=["rollout.sampler=vllm"]))
    with pytest.raises(InputError, match=r"vllm.url=http://127.0.0.1:9 does not answer"):
        open_workload(load_config(overrides=["rollout.sampler=vllm", "vllm.url=http://127.0.0.1:9"]))


def test_a_server_listens_to_its_own_machine_only(monkeypatch):
    """Whoever reaches it can replace its weights.  vLLM is not needed to see how it would be started."""
    started: list[list[str]] = []
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")  # which it sets, and which is put back
    monkeypatch.setattr(vllm, "require_vllm", lambda: None)
    monkeypatch.setattr(vllm.os, "execve", lambda _, command, __: started.append(command))
    vllm.main(["tiny-reasoner", "--port", "8001"])
    vllm.main(["tiny-reasoner", "--host", "0.0.0.0"])
    hosts = [[command[i + 1] for i, word in enumerate(command) if word == "--host"] for command in started]
    assert hosts == [["127.0.0.1"], ["127.0.0.1", "0.0.0.0"]]  # the last one counts
