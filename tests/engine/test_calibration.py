"""Self-Calibration against its formula by loops, its recorded steps, and what it asks."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from spinerl.answers import Equivalence, frequency_reward, vote
from spinerl.calibration import REQUEST, check_of, checked_rows, score_checks
from spinerl.config import load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.update import update
from spinerl.errors import InputError, RunError
from spinerl.step import StepState, freeze_targets, rollout_metrics, sample, train_step
from tests.engine.test_episodic_rows import gradient_of, same_gradient
from tests.engine.test_methods import ANSWERS, QUESTIONS, opened, same_as_recorded
from tests.engine.test_update import gradient

CHAT = f"<|end|><|user|>{REQUEST}<|end|><|assistant|>"
SHARES = ((0.5, 0.5, 0.25, 0.0), (1.0,) * 4, (0.25, 0.75, 0.75, 0.75))  # of ANSWERS, none where there is no answer
METHOD = "self-calibration"


def sampled(config, policy, prompts, step=1):
    """(rollout, shares of votes as rewards, rows of checks, log P(Yes), entropies)."""
    rollout = sample(policy, QUESTIONS, prompts, config, step)
    with Equivalence() as equivalence:
        votes = [vote(list(own), equivalence.classes(list(own), "number")) for own in ANSWERS]
    rewards = tuple(tuple(frequency_reward(one)) for one in votes)
    batch = checked_rows(policy, rollout, torch.arange(12), config)
    return rollout, rewards, batch, *score_checks(policy, batch, config)


def test_the_gradient_is_that_of_the_formula(model_folders):
    """L = (1 / B) sum_i smooth_l1(P("Yes" | question, y_i, request) - p(a_i)), beta 1/4."""
    config, policy, _, prompts = opened(model_folders("qwen3"), METHOD)
    rollout, rewards, batch, old, entropies = sampled(config, policy, prompts)
    assert rewards == SHARES
    targets, _ = freeze_targets(None, batch, rewards, old, entropies, config, StepState())
    loss, found = gradient(config, policy, None, batch, targets)
    suffix, yes = policy.tokenizer(CHAT).input_ids, policy.tokenizer("Y").input_ids[0]
    total = 0
    for row in range(12):
        own = rollout.tokens[row, rollout.mask[row]].tolist()
        if own[-1] in policy.end_ids:
            own = own[:-1]
        logits = policy.model(torch.tensor([[*prompts[row // 4], *own, *suffix]])).logits[0, -1]
        off = torch.softmax(logits, -1)[yes] - SHARES[row // 4][row % 4]
        assert off.item() + SHARES[row // 4][row % 4] == pytest.approx(math.exp(old[row, 0].item()), abs=1e-9)
        total = total + (off.square() * 2 if off.abs() < 0.25 else off.abs() - 0.125) / 12
    assert loss == pytest.approx(total.item(), abs=1e-9)
    same_gradient(found, gradient_of(policy, total))


def test_ten_steps_are_the_recorded_ones(model_folders):
    """To record: as in tests/engine/test_methods.py."""
    config, policy, _, prompts = opened(model_folders("qwen3"), METHOD, "optim.lr=2e-3")
    optimizer, rows = Optimizer(policy.model.parameters(), config.optim, 10), []
    for step in range(10):
        rollout, rewards, batch, old, entropies = sampled(config, policy, prompts, step)
        targets, _ = freeze_targets(None, batch, rewards, old, entropies, config, StepState())
        figures = update(policy, None, batch, targets, optimizer, config, torch.arange(12))
        figures.pop("loss/log_ratio_max")  # rounding noise
        rows.append({"reward": sum(map(sum, rewards)) / 12, **figures, **rollout_metrics(rollout)})
    same_as_recorded(METHOD, rows)
    assert rows[-1]["loss/total"] < 0.7 * rows[0]["loss/total"], "it learns what it is asked for"


def test_a_step_leaves_a_record_by_the_responses_tokens(model_folders):
    keys = ["answer.kind=text", "answer.truncated=count"]
    config, policy, _, prompts = opened(model_folders("llama"), METHOD, *keys, dtype=torch.float32)
    with Equivalence() as equivalence:
        optimizer = Optimizer(policy.model.parameters(), config.optim, 1)
        record, _ = train_step(policy, None, optimizer, equivalence, QUESTIONS, prompts, config, 1, StepState())
    assert record.targets.fork_mask.shape == record.rollout.mask.shape
    assert not record.targets.fork_mask.any()
    assert record.metrics["optim/grad_norm"] > 0
    said, error = record.metrics["calibration/yes"], record.metrics["calibration/error"]
    assert 0 < said < 1
    shares = [share for own in record.rewards for share in own]
    assert abs(sum(shares) / 12 - said) <= error + 1e-6


def test_what_is_asked(model_folders):
    config, policy, _, _ = opened(model_folders("qwen3"), METHOD, dtype=torch.float32)
    decode = policy.tokenizer.decode
    suffix, yes = check_of(policy, config)
    assert (decode(suffix), decode([yes])) == (CHAT, "Y")
    plain = load_config(overrides=[f"method={METHOD}", "prompt.chat_template=off"])
    suffix, yes = check_of(policy, plain)  # a token per byte: " Yes" and " No" part at their second
    assert (decode(suffix), decode([yes])) == (f"\n{REQUEST}\nAnswer: ", "Y")

    class OneWord:
        chat_template = None

        def __call__(self, text, add_special_tokens):  # noqa: ARG002
            return {"input_ids": [7]}

    with pytest.raises(RunError, match="with the same tokens"):
        check_of(dataclasses.replace(policy, tokenizer=OneWord()), plain)


def test_a_check_that_does_not_fit_is_left_out(model_folders):
    config, policy, _, prompts = opened(model_folders("qwen3"), METHOD, dtype=torch.float32)
    rollout = sample(policy, QUESTIONS, prompts, config, 1)
    batch = checked_rows(policy, rollout, torch.arange(12), config)
    assert batch.mask.all()
    lengths = [len(prompt) for prompt in batch.prompts]
    assert len(set(lengths)) > 1

    class Short(type(policy)):
        context = sorted(lengths)[6]

    short = Short(**{field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)})
    left = checked_rows(short, rollout, torch.arange(12), config).mask[:, 0].tolist()
    assert left == [length < Short.context for length in lengths]


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("advantage.scale=std", r"set advantage\.scale=raw"),
        ("rollout.scored=truncated", r"rollout\.scored=full"),
        ("forks.selector=top-entropy", r"set forks\.selector=all"),
    ],
)
def test_keys_that_do_not_fit(key, says):
    with pytest.raises(InputError, match=says):
        load_config(overrides=[f"method={METHOD}", key])
