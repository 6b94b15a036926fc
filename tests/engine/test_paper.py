"""The paper's page: equations (1) to (12) of arXiv 2511.17938v1 by loops from raw logits, against the engine's step.

Settings are those of `configs/paper/`, on small random models of the recipes' families; nothing here is shared with the
package but the models' own forward passes.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from spinerl.answers import Equivalence, majority_reward, vote
from spinerl.config import load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.update import update
from spinerl.models.loading import load_model
from spinerl.step import StepState, freeze_targets, sample, trained_rows
from spinerl.types import Question
from tests.engine.test_vision import picture, single_row
from tests.models import compute_norms_in_float64
from tests.vision_models import image_place

RECIPES = {file.stem: file for file in (Path(__file__).parents[2] / "configs" / "paper").glob("*.yaml")}
FAMILIES = {"qwen2.5-math-1.5b": "qwen2", "qwen3-1.7b": "qwen3", "qwen2.5-vl-3b": "qwen2_5_vl"}
ANSWERS = (("4", "4", "5", None, "4", "7", "5", "4"), ("1", "2", "2", "2", "3", "2", "2", None))
SMALL = ("rollout.max_new_tokens=12", "model.dtype=float32", "model.gradient_checkpointing=false", "threads=1")


@pytest.fixture(scope="module")
def scenes(model_folders, vision_model_folders):
    """A function: recipe -> its configuration, the policy, an anchor that the policy has left, and a rollout."""
    made = {}

    def scene(name):
        if name in made:
            return made[name]
        vision = FAMILIES[name].endswith("_vl")
        folder = (vision_model_folders if vision else model_folders)(FAMILIES[name])
        config = load_config(RECIPES[name], [f"model.name={folder}", *SMALL])
        policy, anchor = (load_model(config.model, config.engine) for _ in range(2))
        for loaded in (policy, anchor):
            loaded.model.to(torch.float64)
            compute_norms_in_float64(loaded.model)
        with torch.no_grad():
            for parameter in anchor.model.parameters():
                parameter.mul_(1.03)
        if vision:
            place = image_place(folder)
            prompts = (policy.vision.prompt(f"Look {place} now", [picture(16, 16)]), _ids(policy, "no picture"))
        else:
            prompts = (_ids(policy, "What is 2 + 3?"), _ids(policy, "A longer question, with more words."))
        questions = tuple(Question(str(i), "", answer_kind="number") for i in range(2))
        made[name] = (config, policy, anchor, sample(policy, questions, prompts, config, 1))
        return made[name]

    return scene


def _ids(loaded, text):
    return tuple(loaded.tokenizer(text)["input_ids"])


def quantile(values, q):
    values = sorted(values)
    place = q * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def page(config, policy, anchor, rollout, rows, shift):
    """(loss, old log-probabilities by cell, entropies by cell, forks by row) as the paper prints them, over these rows.

    `shift` is added to log pi_old where the token's number is odd, so that ratios leave 1 and some are clipped.
    """
    n, temperature = config.group_size, config.rollout.temperature
    assert (n, config.forks.fraction, config.band.low, config.band.high) == (8, 0.2, 0.1, 0.5)
    logs, anchor_logs, tokens = {}, {}, {}
    for i in rows:
        length = int(rollout.mask[i].sum())
        prompt = rollout.prompts[i // n]
        tokens[i] = rollout.tokens[i, :length].tolist()
        logits = single_row(policy, prompt, tokens[i])[len(prompt) - 1 : -1] / temperature
        logs[i] = torch.log_softmax(logits, -1)
        with torch.no_grad():
            anchor_logs[i] = torch.log_softmax(
                single_row(anchor, prompt, tokens[i])[len(prompt) - 1 : -1] / temperature, -1
            )

    reward, advantage = {}, {}
    for q, answers in enumerate(ANSWERS):
        y_star = Counter(a for a in answers if a is not None).most_common(1)[0][0]
        for i in range(n):
            reward[q * n + i] = float(answers[i] == y_star)  # (1)
        group = [reward[q * n + i] for i in range(n)]
        mean = sum(group) / n
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / (n - 1))
        for i in range(n):
            advantage[q * n + i] = (group[i] - mean) / (std + 1e-6)  # (2)

    old, entropies, forks = {}, {}, {}
    num_tokens = sum(len(tokens[i]) for i in rows)  # E over (i, t): all response tokens of the update
    num_forks = 0
    policy_sum = band_sum = kl_sum = torch.zeros((), dtype=torch.float64)
    for i in rows:
        h = [-(log_p.exp() * log_p).sum() for log_p in logs[i]]  # (6)
        values = [x.item() for x in h]
        count = max(1, math.ceil(0.2 * len(h) - 1e-9))
        forks[i] = set(sorted(range(len(h)), key=lambda t, v=values: (-v[t], t))[:count])
        own = [values[t] for t in forks[i]]
        h_low, h_high = quantile(own, 0.10), quantile(own, 0.50)  # (7), (8)
        for t, token in enumerate(tokens[i]):
            m = float(t in forks[i])
            log_p, log_q = logs[i][t], anchor_logs[i][t]
            entropies[i, t] = values[t]
            old[i, t] = log_p[token].item() + (shift if t % 2 else 0.0)
            rho = (log_p[token] - old[i, t]).exp()  # (3)
            clipped = rho.clamp(1 - config.loss.clip_low, 1 + config.loss.clip_high)
            surrogate = torch.minimum(rho * advantage[i], clipped * advantage[i])  # (4)
            if config.anchor.estimator == "exact":
                kl = (log_p.exp() * (log_p - log_q)).sum()  # (5)
            else:
                d = log_p[token] - log_q[token]
                kl = (-d).exp() - 1 + d
            over, under = (x if x > 1e-4 else 0 * x for x in (h[t] - h_high, h_low - h[t]))  # (9)
            policy_sum = policy_sum + m * surrogate
            kl_sum = kl_sum + m * kl
            band_sum = band_sum + m * (config.band.weights[0] * under + config.band.weights[1] * over)
            num_forks += m
    l_kl = (kl_sum / num_tokens) / (num_forks / num_tokens)  # (5)
    r_band = band_sum / num_tokens  # (10)
    loss = -policy_sum / num_tokens + config.anchor.weight * l_kl + r_band  # (11), (12)
    return loss, old, entropies, forks


@pytest.mark.parametrize("micro_rows", [1, 3, 16], ids=["micro-batches of 1", "of 3", "of all"])
@pytest.mark.parametrize(
    "overrides", [[], ["anchor.estimator=exact", "band.weight_low=0.02"]], ids=["recipe", "exact KL"]
)
@pytest.mark.parametrize("name", RECIPES)
def test_the_step_is_the_papers_page(scenes, name, overrides, micro_rows):
    config, policy, anchor, rollout = scenes(name)
    folder = config.model.name
    overrides = [f"model.name={folder}", *SMALL, *overrides, f"optim.micro_batch_rows={micro_rows}"]
    config = load_config(RECIPES[name], overrides)
    rows = list(range(16)) if micro_rows != 3 else list(range(8, 16))  # also only the second question: a minibatch
    policy.model.zero_grad()
    loss, old, entropies, forks = page(config, policy, anchor, rollout, rows, shift=0.5)
    loss.backward()
    expected = {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in policy.model.named_parameters()
    }
    policy.model.zero_grad()

    with Equivalence() as equivalence:
        votes = [vote(list(answers), equivalence.classes(list(answers), "number")) for answers in ANSWERS]
    batch, sampled, sampled_entropies = trained_rows(rollout, config)
    exact, exact_entropies = sampled.double(), sampled_entropies.double()
    for (i, t), value in old.items():
        assert abs(exact[i, t].item() - value) < 0.5 * (t % 2) + 1e-4, "the sampler's log-probability is pi_old's"
        assert abs(exact_entropies[i, t].item() - entropies[i, t]) < 1e-4
        exact[i, t], exact_entropies[i, t] = value, entropies[i, t]
    rewards = [majority_reward(one) for one in votes]
    targets, _ = freeze_targets(anchor, batch, rewards, exact, exact_entropies, config, StepState())
    for i in rows:
        assert set(targets.fork_mask[i].nonzero().flatten().tolist()) == forks[i]
    found = {}

    class Recording(Optimizer):
        def step(self):
            for n, p in policy.model.named_parameters():
                found[n] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
            return {}

    optimizer = Recording(policy.model.parameters(), config.optim, 1)
    figures = update(policy, anchor, batch, targets, optimizer, config, torch.tensor(rows), on_policy=False)
    policy.model.zero_grad()
    assert figures["loss/clipped_frac"] > 0
    assert figures["loss/total"] == pytest.approx(loss.item(), abs=1e-9)
    assert max(g.abs().max() for g in expected.values()) > 1e-3
    for n, value in expected.items():
        assert (found[n] - value).abs().max() <= 1e-9, n
    if policy.vision is not None and 0 in rows:  # the question with a picture
        learned = [n for n in expected if "visual" in n and expected[n].abs().max() > 1e-6]
        assert learned, "the vision tower learns, as in the paper"


def test_a_response_of_one_token_has_a_fork(scenes):
    config, _, _, rollout = scenes("qwen3-1.7b")
    short = rollout.of_questions([0])
    mask = short.mask.clone()
    mask[:, 1:] = False
    batch, old, entropies = trained_rows(short, config)
    one = batch.__class__(batch.prompts, batch.tokens, mask, batch.temperature)
    targets, _ = freeze_targets(
        None, one, [(1.0, 0.0) * 4], old * mask, entropies * mask, _without_anchor(config), StepState()
    )
    assert torch.equal(targets.fork_mask, mask)


def _without_anchor(config):
    return config.model_copy(update={"anchor": config.anchor.model_copy(update={"weight": 0.0})})
