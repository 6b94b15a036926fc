"""Rewards that need more than a vote, through the loop that gives them."""

from __future__ import annotations

import pytest
import torch

from spinerl.answers import Equivalence, vote
from spinerl.config import load_config
from spinerl.engine.loading import load_model
from spinerl.engine.optimiser import Optimiser
from spinerl.engine.sampler import sample_responses
from spinerl.errors import InputError
from spinerl.methods import METHODS
from spinerl.rewards import STEP_REWARDS, RewardContext, check_reward, give_rewards
from spinerl.step import StepState, train_step
from spinerl.types import Question

TEXTS = ("What is 2 + 3?", "Hi")
QUESTIONS = tuple(Question(str(i), text, answer_kind="number") for i, text in enumerate(TEXTS))


def opened(folder, *words):
    config = load_config(overrides=[f"model={folder}", "group_size=4", "rollout.max_new_tokens=12", *words])
    loaded = load_model(config.model)
    return config, loaded, [tuple(loaded.tokenizer(text).input_ids) for text in TEXTS]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_every_method_takes_a_step(model_folders, method):
    config, policy, prompts = opened(model_folders("llama"), f"method={method}", "answer.kind=text", "optim.lr=0.01")
    anchor = load_model(config.model)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    oracle = None
    if method == "grpo-gold":

        def oracle(questions, votes):
            return tuple((1.0, 0.0, 0.0, 1.0) for _ in zip(questions, votes, strict=True))

    with Equivalence() as equivalence:
        optimiser = Optimiser(policy.model.parameters(), config.optim, 1)
        record, _ = train_step(
            policy, anchor, optimiser, equivalence, QUESTIONS, prompts, config, 1, StepState(), oracle=oracle
        )
    assert all(torch.isfinite(p).all() for p in policy.model.parameters())
    if record.metrics["optim/grad_norm"] > 0:
        assert any(not torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    assert len(record.rewards[0]) == 4


def test_reference_rewards_agreement_with_what_the_initial_model_wrote(model_folders):
    config, policy, prompts = opened(model_folders("qwen3"), "method=cat")
    anchor = load_model(config.model)
    rollout = sample_responses(policy, QUESTIONS, prompts, 4, config.rollout, ("r",))
    answers = [["4", "5", None, "4"], ["7", "7", "8", "9"]]
    with Equivalence() as equivalence:
        votes = tuple(vote(own, equivalence.classes(own, "number")) for own in answers)
        context = RewardContext(config, 3, policy, anchor, rollout, votes, equivalence)
        rewards = give_rewards(context)
        assert give_rewards(context) == rewards, "the reference has a random stream of its own"
    for own, one in zip(rewards, votes, strict=True):
        rewarded = {c for c, r in zip(one.classes, own, strict=True) if r == 1.0}
        assert len(rewarded) <= 1
        assert None not in rewarded


def test_without_reward_everyone_gets_nothing(model_folders):
    config, policy, prompts = opened(model_folders("qwen3"), "method=entropy-min-loss")
    rollout = sample_responses(policy, QUESTIONS, prompts, 4, config.rollout, ("r",))
    with Equivalence() as equivalence:
        votes = tuple(vote(["1", "1", "2", None], (0, 0, 1, None)) for _ in QUESTIONS)
        rewards = give_rewards(RewardContext(config, 0, policy, None, rollout, votes, equivalence))
    assert rewards == ((0.0,) * 4,) * 2


def test_names_are_checked_before_a_run():
    for name in (*STEP_REWARDS, "majority", "gold"):
        check_reward(name)
    with pytest.raises(InputError, match="entropy"):
        check_reward("entropi")


def test_gold_is_refused_unless_asked_for_by_name():
    with pytest.raises(InputError, match="grpo-gold"):
        load_config(overrides=["method=ttrl", "reward=gold"])
    with pytest.raises(InputError, match="grpo-gold"):
        load_config(overrides=["method=grpo-gold", "reward=majority"])
    assert load_config(overrides=["method=grpo-gold"]).reward == "gold"
