"""The update against an independent dense float64 reference, and against itself under every split."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import statistics

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.engine.update import score, update
from spinerl.errors import NonFiniteError
from spinerl.models.loading import load_model
from spinerl.step import StepState, freeze_targets, trained_rows
from spinerl.types import Question
from tests.models import ARCHITECTURES, compute_norms_in_float64

TEXTS = ("What is 2 + 3?", "Hi", "A longer question, with more words.")
QUESTIONS = tuple(Question(str(i), text) for i, text in enumerate(TEXTS))
REWARDS = ((1.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.0))  # one group without variance


def prepared(folder, *overrides, dtype=torch.float32, shift=0.0, start=""):
    """(config, policy, anchor, batch, targets, entropies) of a real rollout.

    Its old log-probabilities are moved by `shift`, as if the policy had changed since.  Prompts begin with `start`.
    """
    config = load_config(
        overrides=[
            f"model={folder}",
            "group_size=4",
            "rollout.max_new_tokens=20",
            "rollout.temperature=0.9",
            *overrides,
        ]
    )
    policy = load_model(config.model, config.engine)
    policy.model.to(dtype)
    anchor = load_model(config.model, config.engine)
    anchor.model.to(dtype)
    if dtype == torch.float64:
        compute_norms_in_float64(policy.model)
        compute_norms_in_float64(anchor.model)
    with torch.no_grad():  # the anchor is another model, so that its terms are not zero
        generator = torch.Generator().manual_seed(1)
        for parameter in anchor.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(dtype))
    prompts = [tuple(policy.tokenizer(start + text).input_ids) for text in TEXTS]
    rollout = sample_responses(policy, QUESTIONS, prompts, 4, config.rollout, ("u",))
    batch, old, entropies = trained_rows(rollout, config)
    targets, _ = freeze_targets(anchor, batch, REWARDS, old + shift * batch.mask, entropies, config, StepState())
    return config, policy, anchor, batch, targets, entropies


def gradient(config, policy, anchor, batch, targets, _entropies=None, rows=None):
    """(loss, gradients by name) of one update from these rows (None: all), the weights left as they were."""
    kept = copy.deepcopy(policy.model.state_dict())
    captured: dict[str, torch.Tensor] = {}

    class Recording(Optimizer):
        def step(self):
            for name, parameter in policy.model.named_parameters():
                captured[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            return {}

    optimizer = Recording(policy.model.parameters(), config.optim, 1)
    rows = torch.arange(len(batch.tokens)) if rows is None else rows
    policy = dataclasses.replace(policy, settings=config.engine)
    figures = update(policy, anchor, batch, targets, optimizer, config, rows)
    policy.model.load_state_dict(kept)
    policy.model.zero_grad()
    return figures["loss/total"], captured


def dense_reference(config, policy, anchor, batch, targets, sampled_entropies):
    """The formulas of METHOD section 2 by loops over tokens, in float64, one row at a time, no shared code."""
    total = torch.zeros((), dtype=torch.float64)
    rho, t = config.forks.fraction, config.rollout.temperature
    forks = {}
    for row in range(len(batch.tokens)):
        length = int(batch.mask[row].sum())
        entropies = [sampled_entropies[row, i].item() for i in range(length)]
        count = length if config.forks.selector == "all" else math.ceil(rho * length - 1e-9)
        forks[row] = set(sorted(range(length), key=lambda i: (-entropies[i], i))[:count])
    num_forks = sum(len(f) for f in forks.values())
    num_tokens = int(batch.mask.sum())
    everywhere = config.anchor.scope == "all"
    per = num_tokens if config.loss.normalizer == "response-tokens" else num_forks
    beta_low, beta_high = (
        config.band.weight if own is None else own for own in (config.band.weight_low, config.band.weight_high)
    )
    for row in range(len(batch.tokens)):
        prompt = list(batch.prompts[row])
        length = int(batch.mask[row].sum())
        ids = torch.tensor([prompt + batch.tokens[row, :length].tolist()])
        logits = policy.model(ids).logits[0].double() / t
        with torch.no_grad():
            anchor_logits = anchor.model(ids).logits[0].double() / t
        group = REWARDS[row // 4]
        mean = sum(group) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / 3)
        advantage = (group[row % 4] - mean) / (std + config.advantage.eps) if std else 0.0
        fork_entropies = sorted(sampled_entropies[row, i].item() for i in forks[row])

        def quantile(q, values=fork_entropies):
            place = q * (len(values) - 1)
            below = math.floor(place)
            above = min(below + 1, len(values) - 1)
            return values[below] + (values[above] - values[below]) * (place - below)

        low, high = quantile(config.band.low), quantile(config.band.high)
        if config.band.edges == "median-mad":
            high = statistics.median(fork_entropies)
            low = max(0.0, high - 1.4826 * max(1e-6, statistics.median(abs(h - high) for h in fork_entropies)))
        for i in range(length):
            p = torch.softmax(logits[len(prompt) + i - 1], 0)
            q = torch.softmax(anchor_logits[len(prompt) + i - 1], 0)
            token = batch.tokens[row, i]
            if i in forks[row]:
                ratio = torch.exp(torch.log(p[token]) - targets.old_logprobs[row, i].double())
                clipped = torch.clamp(ratio, 1 - config.loss.clip_low, 1 + config.loss.clip_high)
                total = total - torch.minimum(ratio * advantage, clipped * advantage) / per
                entropy = -(p * torch.log(p)).sum()
                over, under = (d if d > 1e-4 else 0 * d for d in (entropy - high, low - entropy))
                power = 1 if config.band.shape == "hinge" else 2
                total = total + (beta_high * over**power + beta_low * under**power) / per
                if config.entropy.scope == "forks":
                    total = total + config.entropy.weight * entropy / per
            if config.anchor.weight and (i in forks[row] or everywhere):
                d = torch.log(p[token]) - torch.log(q[token])
                kl = {
                    "k1": lambda d=d: d,
                    "k2": lambda d=d: d * d / 2,
                    "k3": lambda d=d: torch.exp(-d) - 1 + d,
                    "exact": lambda p=p, q=q: (p * (torch.log(p) - torch.log(q))).sum(),
                }[config.anchor.estimator]()
                total = total + config.anchor.weight * kl / (num_tokens if everywhere else num_forks)
    total.backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in policy.model.named_parameters()
    }
    policy.model.zero_grad()
    return total.item(), gradients


CASES = {
    "spine": ["band.weight=0.3"],
    "squared band, wide clip, anchor k3 on forks": [
        "band.weight=0.3",
        "band.shape=squared",
        "loss.clip_high=0.4",
        "anchor.weight=0.2",
    ],
    "anchor k2 on all tokens": ["anchor.weight=0.2", "anchor.estimator=k2", "anchor.scope=all"],
    "anchor k1": ["anchor.weight=0.2", "anchor.estimator=k1"],
    "exact anchor": ["anchor.weight=0.2", "anchor.estimator=exact", "band.weight=0.1"],
    "ttrl": ["method=ttrl"],
    "one of two band weights, squared": ["band.weight=0.3", "band.weight_low=0", "band.shape=squared"],
    "edges from median and deviation": ["band.weight=0.3", "band.edges=median-mad"],
    "means over all response tokens": [
        "loss.normalizer=response-tokens",
        "band.weight_low=0.4",
        "band.weight_high=0.1",
        "anchor.weight=0.2",
        "entropy.weight=-0.05",
        "entropy.scope=forks",
    ],
}


@pytest.mark.parametrize("shift", [0.0, 0.15, -0.3], ids=["on-policy", "ratio under 1", "ratio over 1"])
@pytest.mark.parametrize("case", CASES)
def test_equals_dense_float64_reference(model_folders, case, shift):
    config, policy, anchor, batch, targets, entropies = prepared(
        model_folders("qwen3"), *CASES[case], dtype=torch.float64, shift=shift
    )
    loss, gradients = gradient(config, policy, anchor, batch, targets)
    expected_loss, expected = dense_reference(config, policy, anchor, batch, targets, entropies)
    assert loss == pytest.approx(expected_loss, abs=1e-9)
    assert max(g.abs().max() for g in expected.values()) > 1e-3, "a gradient worth comparing"
    for name in expected:
        assert (gradients[name] - expected[name]).abs().max() <= 1e-9, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "overrides", [["band.weight=0.2"], ["method=ttrl", "anchor.weight=0.1"]], ids=["spine", "ttrl"]
)
def test_any_micro_batch_size_gives_the_same_gradient(model_folders, architecture, overrides):
    seen = []
    for rows in (1, 3, 8, 12):
        prepared_rows = prepared(model_folders(architecture), *overrides, f"optim.micro_batch_rows={rows}")
        seen.append(gradient(*prepared_rows))
    for (loss, gradients), (other_loss, other) in itertools.combinations(seen, 2):
        assert loss == pytest.approx(other_loss, abs=1e-6)
        for name in gradients:
            assert (gradients[name] - other[name]).abs().max() < 1e-6, name


def test_response_tokens_do_not_depend_on_micro_batches(model_folders):
    overrides = ["loss.normalizer=response-tokens", "band.weight=0.2", "band.weight_low=0.4", "anchor.weight=0.1"]
    seen = []
    for rows in (1, 5, 12):
        whole = prepared(model_folders("llama"), *overrides, f"optim.micro_batch_rows={rows}", dtype=torch.float64)
        seen.append([gradient(*whole), gradient(*whole, rows=torch.tensor([0, 1, 3, 8, 10]))])
    for part in (0, 1):
        loss, gradients = seen[0][part]
        assert max(g.abs().max() for g in gradients.values()) > 1e-3
        for other_loss, other in (pair[part] for pair in seen[1:]):
            assert loss == pytest.approx(other_loss, abs=1e-12)
            for name in gradients:
                assert (gradients[name] - other[name]).abs().max() < 1e-12, name


@pytest.mark.parametrize(
    ("band", "selection", "estimator"),
    [
        (["band.weight=0.3"], [], "k3"),
        (["band.weight_low=0.4", "band.weight_high=0.05"], [], "exact"),
        (["band.weight_low=0.4", "band.weight_high=0.05"], ["forks.selector=otsu", "band.edges=median-mad"], "k2"),
    ],
    ids=["one band weight", "two", "second version"],
)
def test_either_normalizer_says_the_same_with_converted_weights(model_folders, band, selection, estimator):
    """gradient(response-tokens, lambda) = rho gradient(token, lambda / rho), rho the share of forks in the update."""
    common = [*band, *selection, f"anchor.estimator={estimator}", "entropy.weight=0.1", "entropy.scope=forks"]
    printed = prepared(
        model_folders("qwen3"), *common, "loss.normalizer=response-tokens", "anchor.weight=0.2", dtype=torch.float64
    )
    _, *rest = printed
    batch, targets = rest[2:4]
    shares = []
    for rows in (list(range(12)), [4, 5, 8, 9, 11]):
        rho = int(targets.fork_mask[rows].sum()) / int(batch.mask[rows].sum())
        overrides = [
            *common,
            "loss.normalizer=token",
            f"anchor.weight={0.2 / rho!r}",
            f"model={model_folders('qwen3')}",
        ]
        converted = load_config(overrides=["rollout.temperature=0.9", *overrides])
        loss, found = gradient(*printed, rows=torch.tensor(rows))
        other_loss, other = gradient(converted, *rest, rows=torch.tensor(rows))
        assert loss == pytest.approx(rho * other_loss, abs=1e-9)
        assert max(g.abs().max() for g in found.values()) > 1e-3, "a gradient worth comparing"
        for name in found:
            assert (found[name] - rho * other[name]).abs().max() <= 1e-9, name
        shares.append(rho)
    assert shares[0] != shares[1], "each update has a share of its own"
    assert max(shares) < 0.9


def test_the_first_tokens_are_as_many_as_configured(model_folders):
    _, _, _, batch, targets, _ = prepared(model_folders("qwen2"), "forks.selector=first", "forks.num_tokens=3")
    assert torch.equal(targets.fork_mask, batch.mask & (torch.arange(batch.mask.shape[1]) < 3))


def test_scoring_by_token_budget_equals_scoring_at_once(model_folders):
    _, policy, _, batch, targets, _ = prepared(model_folders("llama"))
    optim = load_config().optim
    at_once = score(policy, batch, batch.mask, optim)
    by_budget = score(policy, batch, batch.mask, optim.model_copy(update={"micro_batch_tokens": 40}))
    forks_only = score(policy, batch, targets.fork_mask, optim)
    for whole, cut, forks in zip(at_once, by_budget, forks_only, strict=True):
        assert torch.allclose(whole, cut, atol=1e-5)
        assert torch.allclose(whole * targets.fork_mask, forks, atol=1e-5)


def test_a_step_that_says_nothing_changes_nothing(model_folders):
    config, policy, anchor, batch, targets, _ = prepared(model_folders("qwen2"), "optim.lr=0.1", "band.weight=0")
    targets = dataclasses.replace(targets, advantages=torch.zeros_like(targets.advantages))
    before = copy.deepcopy(policy.model.state_dict())
    optimizer = Optimizer(policy.model.parameters(), config.optim, 1)
    figures = update(policy, anchor, batch, targets, optimizer, config, torch.arange(12))
    assert figures["optim/grad_norm"] == 0.0
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_non_finite_loss_stops_before_the_update(model_folders):
    config, policy, anchor, batch, targets, _ = prepared(model_folders("qwen2"))
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[3] = torch.inf
    before = copy.deepcopy(policy.model.state_dict())
    optimizer = Optimizer(policy.model.parameters(), config.optim, 1)
    with pytest.raises(NonFiniteError, match="before the update"):
        update(policy, anchor, batch, targets, optimizer, config, torch.arange(12))
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_gradient_checkpointing_gives_the_same_gradient(model_folders):
    plain = prepared(model_folders("llama"), "band.weight=0.2")
    saving = prepared(model_folders("llama"), "band.weight=0.2", "model.gradient_checkpointing=true")
    _, expected = gradient(*plain)
    _, found = gradient(*saving)
    assert any(getattr(m, "gradient_checkpointing", False) for m in saving[1].model.modules())
    assert not saving[1].model.training
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-6), name


def test_bfloat16_model_learns_through_float32_masters(model_folders):
    config = load_config(overrides=[f"model={model_folders('qwen3')}", "model.dtype=bfloat16", "optim.lr=1e-6"])
    loaded = load_model(config.model, config.engine)
    weight = loaded.model.get_output_embeddings().weight
    start = weight.detach().clone()
    optimizer = Optimizer([weight], config.optim, 4000)
    for _ in range(1500):  # each step is far under bfloat16's resolution
        optimizer.zero_grad()
        weight.grad = torch.ones_like(weight)
        optimizer.collect()
        optimizer.step()
    assert weight.dtype == torch.bfloat16
    assert (weight < start).float().mean() > 0.5
    assert (start - weight).mean().item() == pytest.approx(1500e-6, rel=0.2)


def test_schedule_and_its_resumption():
    parameter = torch.nn.Parameter(torch.zeros(1))
    config = load_config(overrides=["optim.lr=1.0", "optim.warmup_steps=2", "optim.schedule=cosine"]).optim

    def rates(optimizer, count):
        out = []
        for _ in range(count):
            parameter.grad = torch.ones(1)
            out.append(optimizer.step()["optim/lr"])
        return out

    # warm-up 0, 1/2, then cosine from 1 to 0 over the 4 that are left: (1 + cos(pi k / 4)) / 2
    expected = [0.0, 0.5, 1.0, 0.8535534, 0.5, 0.1464466]
    first = Optimizer([parameter], config, 6)
    assert rates(first, 3) == pytest.approx(expected[:3])
    second = Optimizer([parameter], config, 6)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert rates(second, 3) == pytest.approx(expected[3:])
