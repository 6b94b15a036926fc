"""Sampling under top-p, top-k and min-p: how much could be drawn, and learning from the truncated distribution."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from spinerl import step as step_module
from spinerl.answers import Equivalence
from spinerl.config import load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.engine.tree import tree_responses
from spinerl.engine.vllm import VllmSampler, _Response
from spinerl.errors import RunError
from spinerl.models.loading import load_model
from spinerl.step import StepState, freeze_targets, rollout_metrics, train_step, trained_rows
from tests.engine.test_update import QUESTIONS, REWARDS, TEXTS, dense_reference, gradient, prepared

CUTS = {
    "top-p": {"top_p": 0.8},
    "top-k": {"top_k": 5},
    "min-p": {"min_p": 0.1},
    "top-k and top-p": {"top_p": 0.8, "top_k": 5},
    "top-p and min-p": {"top_p": 0.9, "min_p": 0.1},
    "all three": {"top_p": 0.8, "top_k": 5, "min_p": 0.1},
}
CLOSE = 1e-5  # of a border, where float32 may decide otherwise than float64


def kept_tokens(p, top_p=1.0, top_k=0, min_p=0.0):
    """(ids that may be drawn, whether one is a hair's breadth from a border) of probabilities p, a list."""
    ids = sorted(range(len(p)), key=lambda v: -p[v])
    close = False
    if top_k:
        close |= abs(p[ids[top_k - 1]] - p[ids[top_k]]) < CLOSE
        ids = ids[:top_k]
    if top_p < 1.0:
        total, reached, own = sum(p[v] for v in ids), 0.0, []
        for v in ids:  # the likeliest, until they reach top_p
            close |= abs(reached / total - top_p) < CLOSE
            if reached / total >= top_p:
                break
            own.append(v)
            reached += p[v]
        ids = own
    close |= min_p > 0.0 and any(abs(p[v] - min_p * p[ids[0]]) < CLOSE for v in ids)
    return {v for v in ids if p[v] >= min_p * p[ids[0]]}, close


def distributions(model, prompt, response, temperature):
    """(T, V) float64 probabilities at a response's tokens by the plainest forward there is."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response.tolist()]])).logits[0, len(prompt) - 1 : -1]
    return torch.softmax(logits.double() / temperature, -1)


def opened(folder, *overrides):
    config = load_config(overrides=[f"model={folder}", "rollout.max_new_tokens=16", "group_size=4", *overrides])
    loaded = load_model(config.model, config.engine)
    return config, loaded, [tuple(loaded.tokenizer(text).input_ids) for text in TEXTS]


def cut_overrides(cut):
    return [f"rollout.{key}={value}" for key, value in cut.items()]


def masses(loaded, rollout, cut, temperature):
    """By row and column, or None near a border: the log-probabilities of the token and of all that may be drawn, the
    token counted in, and whether it is one of them."""
    found = {}
    for row, prompt in enumerate(p for p in rollout.prompts for _ in range(rollout.num_responses)):
        response = rollout.tokens[row][rollout.mask[row]]
        for column, p in enumerate(distributions(loaded.model, prompt, response, temperature).tolist()):
            kept, close = kept_tokens(p, **cut)
            token = int(response[column])
            mass = sum(p[v] for v in kept | {token})
            found[row, column] = None if close else (math.log(p[token]), math.log(mass), token in kept)
    return found


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("architecture", ["qwen3", "gemma2"])
def test_log_mass_is_that_of_the_tokens_that_could_be_drawn(model_folders, architecture, cut):
    config, loaded, prompts = opened(model_folders(architecture), *cut_overrides(CUTS[cut]), "rollout.temperature=0.7")
    rollout = sample_responses(loaded, QUESTIONS, prompts, 4, config.rollout, ("m",))
    expected = masses(loaded, rollout, CUTS[cut], 0.7)
    sure = {cell: pair for cell, pair in expected.items() if pair is not None}
    assert len(expected) == int(rollout.mask.sum())
    assert len(sure) > 0.9 * len(expected)
    for cell, (logprob, log_mass, inside) in sure.items():
        assert inside, "what was drawn could be drawn"
        assert rollout.logprobs[cell].item() == pytest.approx(logprob, abs=1e-4)
        assert rollout.log_mass[cell].item() == pytest.approx(log_mass, abs=1e-4)
        assert rollout.sampled_logprobs[cell].item() == pytest.approx(logprob - log_mass, abs=2e-4)
    assert (rollout.log_mass <= 0).all()
    assert not rollout.log_mass[~rollout.mask].any()
    cut_off = [
        1 - math.exp(rollout.log_mass[cell].item() if pair is None else pair[1]) for cell, pair in expected.items()
    ]
    mean = sum(cut_off) / len(cut_off)
    assert mean > 0.03, "something was cut off"
    assert rollout_metrics(rollout)["rollout/truncated_mass"] == pytest.approx(mean, abs=1e-5)


def test_without_truncation_there_is_no_log_mass(model_folders):
    config, loaded, prompts = opened(model_folders("qwen3"))
    rollout = sample_responses(loaded, QUESTIONS, prompts, 4, config.rollout, ("m",))
    assert rollout.log_mass is None
    assert "rollout/truncated_mass" not in rollout_metrics(rollout)
    assert rollout.sampled_logprobs is rollout.logprobs
    config, loaded, prompts = opened(model_folders("qwen3"), "rollout.top_p=0.8")
    assert greedy_responses(loaded, QUESTIONS, prompts, config.rollout).log_mass is None


def test_branches_of_a_tree_have_it_too(model_folders):
    overrides = ["tree.bases=2", "tree.forks=1", "tree.branches=1", *cut_overrides(CUTS["all three"])]
    config, loaded, prompts = opened(model_folders("qwen3"), *overrides)
    rollout = tree_responses(loaded, QUESTIONS, prompts, config, ("t",))
    for cell, pair in masses(loaded, rollout, CUTS["all three"], 1.0).items():
        if pair is not None:
            assert rollout.log_mass[cell].item() == pytest.approx(pair[1], abs=1e-4)
    assert not rollout.log_mass[~rollout.mask].any()


# ---- learning


def reference(config, policy, anchor, batch, targets, cut):
    """(loss, gradients, share of sampled tokens outside the kept set), by loops, in float64, from raw logits.

    The policy term is of the truncated distribution, whose set is fixed; band, anchor and entropy of the full one.
    """
    total, outside = torch.zeros((), dtype=torch.float64), 0
    num_forks = int(targets.fork_mask.sum())
    for row in range(len(batch.tokens)):
        prompt, length = list(batch.prompts[row]), int(batch.mask[row].sum())
        ids = torch.tensor([prompt + batch.tokens[row, :length].tolist()])
        logits = policy.model(ids).logits[0] / batch.temperature
        with torch.no_grad():
            anchor_logits = anchor.model(ids).logits[0] / batch.temperature
        for i in range(length):
            if not targets.fork_mask[row, i]:
                continue
            p = torch.softmax(logits[len(prompt) + i - 1], 0)
            q = torch.softmax(anchor_logits[len(prompt) + i - 1], 0)
            token, advantage = int(batch.tokens[row, i]), targets.advantages[row, i]
            kept, _ = kept_tokens(p.tolist(), **cut)
            outside += token not in kept
            mass = sum(p[v] for v in kept | {token})
            ratio = torch.exp(torch.log(p[token] / mass) - targets.old_logprobs[row, i].double())
            clipped = torch.clamp(ratio, 1 - config.loss.clip_low, 1 + config.loss.clip_high)
            total = total - torch.minimum(ratio * advantage, clipped * advantage) / num_forks
            entropy = -(p * torch.log(p)).sum()
            edges = entropy - targets.band_high[row], targets.band_low[row] - entropy
            over, under = (distance if distance > 1e-4 else 0 * distance for distance in edges)
            total = total + config.band.weight * (over + under) / num_forks
            if config.anchor.estimator == "exact":
                kl = (p * (torch.log(p) - torch.log(q))).sum()
            else:
                d = torch.log(p[token]) - torch.log(q[token])
                kl = torch.exp(-d) - 1 + d
            total = total + config.anchor.weight * kl / num_forks
    total.backward()
    gradients = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return total.item(), gradients, outside / num_forks


@pytest.mark.parametrize(
    ("cut", "estimator", "moved"),
    [("top-p", "k3", 0.0), ("all three", "exact", 0.0), ("top-p", "exact", 0.05), ("all three", "k3", 0.05)],
)
def test_scored_truncated_equals_a_dense_float64_reference(model_folders, cut, estimator, moved):
    overrides = ["rollout.scored=truncated", *cut_overrides(CUTS[cut]), "band.weight=0.3", "anchor.weight=0.2"]
    folder = model_folders("qwen3")
    config, policy, anchor, batch, targets, _ = prepared(
        folder, *overrides, f"anchor.estimator={estimator}", dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(moved * torch.randn(parameter.shape, generator=generator))
    loss, found = gradient(config, policy, anchor, batch, targets)
    expected_loss, expected, outside = reference(config, policy, anchor, batch, targets, CUTS[cut])
    assert (outside > 0.02) == (moved > 0), "some sampled tokens could no longer be drawn"
    assert loss == pytest.approx(expected_loss, rel=1e-7)
    largest = max(g.abs().max() for g in expected.values())
    assert largest > 1e-2
    for name in expected:
        assert (found[name] - expected[name]).abs().max() <= 1e-7 * largest, name
    full = config.model_copy(update={"rollout": config.rollout.model_copy(update={"scored": "full"})})
    _, other = gradient(full, policy, anchor, batch, targets)
    assert max((found[name] - other[name]).abs().max() for name in found) > 1e-3, "the two are not the same"


def test_scored_truncated_does_not_depend_on_micro_batches_or_chunks(model_folders):
    overrides = ["rollout.scored=truncated", *cut_overrides(CUTS["all three"]), "band.weight=0.3", "anchor.weight=0.2"]
    loss, whole = gradient(*prepared(model_folders("llama"), *overrides, dtype=torch.float64))
    cut = [*overrides, "optim.micro_batch_rows=5", "optim.head_chunk=3"]
    other_loss, other = gradient(*prepared(model_folders("llama"), *cut, dtype=torch.float64))
    assert loss == pytest.approx(other_loss, abs=1e-10)
    for name in whole:
        assert (whole[name] - other[name]).abs().max() < 1e-10, name


@pytest.mark.parametrize(
    "case", [["band.weight=0.3"], ["anchor.weight=0.2", "anchor.scope=all"]], ids=["band", "anchor"]
)
def test_scored_full_is_as_without_truncation(model_folders, case):
    config, policy, anchor, batch, targets, entropies = prepared(
        model_folders("qwen3"), *case, *cut_overrides(CUTS["all three"]), dtype=torch.float64, shift=0.1
    )
    loss, found = gradient(config, policy, anchor, batch, targets)
    expected_loss, expected = dense_reference(config, policy, anchor, batch, targets, entropies)
    assert loss == pytest.approx(expected_loss, abs=1e-9)
    for name in expected:
        assert (found[name] - expected[name]).abs().max() <= 1e-9, name


def step(loaded, prompts, config, monkeypatch, look=lambda *_: None):
    """(record, figures of each update) of a step whose rewards are REWARDS; `look` is called before each update."""
    seen, update = [], step_module.update

    def watched(policy, anchor, batch, targets, optimizer, config, rows, on_policy=True):
        look(batch, targets, rows)
        seen.append(update(policy, anchor, batch, targets, optimizer, config, rows, on_policy=on_policy))
        return seen[-1]

    monkeypatch.setattr(step_module, "update", watched)
    optimizer = Optimizer(loaded.model.parameters(), config.optim, 2)
    with Equivalence() as equivalence:
        record, _ = train_step(
            loaded, None, optimizer, equivalence, QUESTIONS, prompts, config, 1, StepState(), oracle=lambda *_: REWARDS
        )
    return record, seen


@pytest.mark.parametrize("scored", ["full", "truncated"])
def test_ratios_of_a_first_update_are_one(model_folders, monkeypatch, scored):
    overrides = [
        "method=ttrl",
        f"rollout.scored={scored}",
        *cut_overrides(CUTS["all three"]),
        "rollout.temperature=0.8",
    ]
    config, loaded, prompts = opened(model_folders("qwen3"), *overrides)
    record, (figures,) = step(loaded, prompts, config, monkeypatch)
    assert figures["loss/log_ratio_max"] < 1e-4
    assert figures["loss/clipped_frac"] == 0.0
    assert figures["optim/grad_norm"] > 0
    mass = record.rollout.log_mass
    of = record.rollout.logprobs - mass if scored == "truncated" else record.rollout.logprobs
    assert torch.equal(record.targets.old_logprobs, of)
    assert record.metrics["rollout/truncated_mass"] > 0.03


def test_gspo_takes_truncated_ratios_of_whole_responses(model_folders, monkeypatch):
    overrides = [
        "loss=gspo",
        "method=ttrl",
        "rollout.scored=truncated",
        *cut_overrides(CUTS["all three"]),
        "optim.lr=0.003",
    ]
    config, loaded, prompts = opened(model_folders("qwen3"), *overrides, "optim.minibatches=2", "loss.clip_low=0.9")
    expected = []

    def look(batch, targets, rows):
        """The policy loss with the weights as they are: the mean over responses of the clipped ratio times A."""
        own = []
        for row in rows.tolist():
            response = batch.tokens[row][batch.mask[row]]
            log_ratios = []
            for i, p in enumerate(distributions(loaded.model, batch.prompts[row], response, 1.0).tolist()):
                kept, _ = kept_tokens(p, **CUTS["all three"])
                token = int(response[i])
                mass = sum(p[v] for v in kept | {token})
                log_ratios.append(math.log(p[token] / mass) - targets.old_logprobs[row, i].item())
            s, advantage = math.exp(sum(log_ratios) / len(log_ratios)), targets.advantages[row, 0].item()
            low, high = 1 - config.loss.clip_low, 1 + config.loss.clip_high
            own.append(min(s * advantage, max(low, min(high, s)) * advantage))
        expected.append(-sum(own) / len(own))

    _, (first, second) = step(loaded, prompts, config, monkeypatch, look)
    assert first["loss/log_ratio_max"] < 1e-5
    assert second["loss/log_ratio_max"] > 1e-3
    assert first["loss/policy"] == pytest.approx(expected[0], abs=1e-5)
    assert second["loss/policy"] == pytest.approx(expected[1], abs=2e-4)
    assert abs(second["loss/policy"]) > 0.01


# ---- another engine that samples


class Side:
    """Stands where vLLM does: draws by loops with weights it was given, its log-probabilities of what it draws from."""

    version = "0"

    def __init__(self, model, config, listens):
        self.model, self.config, self.listens = model, config, listens

    def take(self, weights):
        weights = {name: weight.clone() for name, weight in weights}
        if self.listens:
            self.model.load_state_dict(weights, strict=False)

    def ask(self, requests, _on_tokens):
        return [[self.response(request, j) for j in range(request.settings["n"])] for request in requests]

    def rest(self):
        pass

    def response(self, request, number):
        settings = request.settings
        cut = {key: settings[key] for key in ("top_p", "top_k")}
        generator = torch.Generator().manual_seed(settings["seed"] + number)
        tokens, logprobs = [], []
        while len(tokens) < settings["max_tokens"]:
            with torch.no_grad():
                logits = self.model(torch.tensor([[*request.prompt, *tokens]])).logits[0, -1].double()
            p = torch.softmax(logits / settings["temperature"], -1)
            # As vLLM does: min-p first, and top-p of what that leaves.
            left = torch.where(p >= settings["min_p"] * p.max(), p, 0.0)
            kept = [v for v in kept_tokens((left / left.sum()).tolist(), **cut)[0] if left[v] > 0]
            chosen = int(torch.multinomial(p[kept], 1, generator=generator))
            tokens.append(kept[chosen])
            logprobs.append(math.log(p[kept[chosen]] / p[kept].sum()))
            if tokens[-1] in settings["stop_token_ids"]:
                return _Response(tokens, logprobs, True)
        return _Response(tokens, logprobs, False)


def served(folder, *overrides, cut="top-p", listens=True):
    """(configuration, a model that learns and a `Side` with other weights to sample for it, prompts)"""
    short = ["rollout.temperature=0.8", "rollout.max_new_tokens=8", "vllm.max_mismatch=0.02"]
    config, loaded, prompts = opened(folder, *cut_overrides(CUTS[cut]), *short, *overrides)
    other = load_model(config.model, config.engine)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in other.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    engine = VllmSampler(config, Side(other.model, config, listens))
    return config, dataclasses.replace(loaded, sampler=engine), prompts


@pytest.mark.parametrize(("cut", "scored"), [("top-p", "full"), ("top-p and min-p", "truncated")])
def test_truncation_is_no_mismatch(model_folders, monkeypatch, cut, scored):
    config, loaded, prompts = served(model_folders("qwen3"), f"rollout.scored={scored}", "method=ttrl", cut=cut)
    record, (figures,) = step(loaded, prompts, config, monkeypatch)
    rollout, metrics = record.rollout, record.metrics
    # Compared with the full distribution's, the engine's log-probabilities would be off by far more than is allowed.
    assert -rollout.log_mass[rollout.mask].mean() > 2 * config.vllm.max_mismatch
    assert metrics["mismatch/logprob_diff"] < 1e-4
    assert metrics["mismatch/logprob_diff_max"] < 1e-3
    assert metrics["mismatch/weight"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["mismatch/kl"] == pytest.approx(0.0, abs=1e-6)
    batch, old, entropies = trained_rows(rollout, config)
    plain, _ = freeze_targets(None, batch, REWARDS, old, entropies, config, StepState())
    assert torch.allclose(record.targets.advantages, plain.advantages, atol=1e-3)
    assert figures["loss/log_ratio_max"] < 1e-4
    assert torch.equal(
        record.targets.old_logprobs, rollout.logprobs - (rollout.log_mass if scored == "truncated" else 0)
    )


def test_another_model_is_found_behind_the_truncation(model_folders, monkeypatch):
    config, loaded, prompts = served(model_folders("qwen3"), listens=False)
    with pytest.raises(RunError, match=r"vllm\.max_mismatch=0\.02"):
        sample_responses(loaded, QUESTIONS, prompts, 4, config.rollout, ("v",))
    lenient = ["vllm.max_mismatch=9", "method=ttrl", "rollout.importance_cap=1.5"]
    config, loaded, prompts = served(model_folders("qwen3"), *lenient, listens=False)
    record, _ = step(loaded, prompts, config, monkeypatch)
    rollout = record.rollout
    batch, old, entropies = trained_rows(rollout, config)
    plain, _ = freeze_targets(None, batch, REWARDS, old, entropies, config, StepState())
    assert record.metrics["mismatch/logprob_diff"] > 0.05
    # One distribution over the other, both truncated: each token's advantage counts by it, at most 1.5 times.
    fresh, capped = load_model(config.model, config.engine), 0
    for (row, column), (logprob, log_mass, _) in masses(fresh, rollout, CUTS["top-p"], 0.8).items():
        ratio = math.exp(logprob - log_mass - rollout.sampler_logprobs[row, column].item())
        capped += ratio > 1.5
        expected = plain.advantages[row, column].item() * min(ratio, 1.5)
        assert record.targets.advantages[row, column].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert record.metrics["mismatch/capped_frac"] == pytest.approx(capped / int(rollout.mask.sum()))
    assert capped
