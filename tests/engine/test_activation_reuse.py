"""An update from what sampling computed is the update that computes it once more."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spinerl.answers import Equivalence
from spinerl.config import LoraConfig, load_config
from spinerl.engine import forward
from spinerl.engine.cpu import activations as activations_module
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.models.adapters import add_adapters
from spinerl.models.loading import load_model
from spinerl.step import StepState, freeze_targets, train_step, trained_rows
from tests.engine.test_savings import relative_gap
from tests.engine.test_update import QUESTIONS, REWARDS, TEXTS, gradient
from tests.models import ARCHITECTURES, compute_norms_in_float64, needs_loops, without, write_model

OVERRIDES = ("group_size=4", "rollout.max_new_tokens=20", "band.weight=0.2", "optim.max_grad_norm=0")


def recorded(folder, *overrides, dtype=torch.float32, adapters=False, start=""):
    """(config, policy, batch with a record, targets) of a rollout that was recorded; prompts begin with `start`."""
    config = load_config(overrides=[f"model={folder}", *OVERRIDES, *overrides])
    policy = load_model(config.model, config.engine)
    policy.model.to(dtype)
    if dtype == torch.float64:
        compute_norms_in_float64(policy.model)
    if adapters:
        add_adapters(policy.model, LoraConfig(rank=2), 0)
    prompts = [tuple(policy.tokenizer(start + text).input_ids) for text in TEXTS]
    votes = config.num_votes
    rollout = sample_responses(policy, QUESTIONS, prompts, votes, config.rollout, ("u",), keep_activations=True)
    batch, old, entropies = trained_rows(rollout, config)
    targets, _ = freeze_targets(None, batch, REWARDS, old, entropies, config, StepState())
    return config, policy, batch, targets


def compared(config, policy, batch, targets):
    """The gap between the gradient with a record and without, and the losses."""
    assert batch.activations is not None
    found_loss, found = gradient(config, policy, None, batch, targets)
    assert policy.capabilities.uses("activation_reuse")
    loss, expected = gradient(config, policy, None, dataclasses.replace(batch, activations=None), targets)
    return relative_gap(found, expected), abs(found_loss - loss)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.float64, 1e-10)], ids=["f32", "f64"])
@pytest.mark.parametrize("head_dim", [8, pytest.param(16, marks=needs_loops)])
def test_same_gradient(tmp_path, monkeypatch, architecture, dtype, limit, head_dim):
    """Heads of 16 go through compiled attention and layers, where the model is of their make."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(  # eager attention takes its softmax in float32
        torch.nn.functional,
        "softmax",
        lambda s, dim, dtype=None, **_: softmax(s, dim=dim, dtype=None if s.dtype == torch.float64 else dtype),
    )
    folder = write_model(architecture, tmp_path, spread=0.1, head_dim=head_dim)
    if architecture == "gpt2":  # its matmuls are not linear layers
        assert recorded(folder, dtype=dtype)[2].activations is None
        return
    # In float32 rounding decides on which side of a band's edge a token lies that is within 1e-6 of it: none there.
    overrides = ["band.weight=0"] if dtype == torch.float32 else []
    config, policy, *others = recorded(folder, *overrides, dtype=dtype)
    gap, loss_gap = compared(config, policy, *others)
    assert gap <= limit
    assert loss_gap <= limit
    usual = architecture in {"qwen2", "qwen3", "llama"} and dtype == torch.float32 and head_dim == 16
    assert policy.capabilities.uses("layer_reuse") == usual


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.micro_batch_rows=2"],
        ["optim.micro_batch_tokens=60", "engine.disable=[trim,skip]"],
        ["engine.kv_cache_tokens=150"],
        ["rollout.num_votes=7"],
        ["engine.disable=[compact]"],
        ["method=ttrl"],
        ["engine.disable=[compiled]"],
        ["engine.disable=[onednn,packed-weights]"],
    ],
    ids=" ".join,
)
def test_however_it_was_sampled_and_is_computed(tmp_path, overrides):
    folder = write_model("qwen3", tmp_path, spread=0.1, head_dim=16)
    gap, loss_gap = compared(*recorded(folder, *overrides))
    assert gap <= 2e-6
    assert loss_gap <= 2e-6


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2"])
def test_prompts_that_begin_alike(tmp_path, architecture):
    """Their common tokens have been computed, and are kept, once."""
    folder = write_model(architecture, tmp_path, spread=0.1, head_dim=16)
    found = recorded(folder, "band.weight=0", start="3 + 4 = 7.  5 + 6 = 11.  What is this?  ")
    kept = found[2].activations
    slots = [kept.slots_of_prompt(prompt, len(prompt)) for prompt in dict.fromkeys(found[2].prompts)]
    assert all(torch.equal(slots[0][:30], other[:30]) for other in slots)
    assert not any(set(slots[0][-1:].tolist()) & set(other.tolist()) for other in slots[1:])
    gap, loss_gap = compared(*found)
    assert gap <= 2e-6
    assert loss_gap <= 2e-6


def test_rows_that_carry_their_prompts(tmp_path, monkeypatch):
    """Where sharing prompts does not pay, the prompts' activations serve each row."""
    monkeypatch.setattr(forward, "_WORTH_SHARING", 0.0)
    gap, loss_gap = compared(*recorded(write_model("qwen3", tmp_path, spread=0.1, head_dim=16)))
    assert gap <= 2e-6
    assert loss_gap <= 2e-6


@needs_loops
def test_what_was_never_written_is_never_read(tmp_path):
    """Rows of unlike lengths, padded: slots of prompts hold no attention, and those left over hold nothing.

    Without a band: of so many tokens, some are so near its edge that rounding decides.
    """
    folder = write_model("qwen3", tmp_path, spread=0.1, head_dim=16)
    config, policy, batch, targets = recorded(folder, "rollout.max_new_tokens=150", "band.weight=0")
    assert batch.activations.attention is not None
    assert len(set(batch.mask.sum(1).tolist())) > 1
    written = torch.zeros(len(batch.activations.outputs[0]), dtype=torch.bool)
    written[batch.activations.slots[batch.activations.slots >= 0]] = True
    with torch.inference_mode():
        for kept in [tensor for pair in batch.activations.attention for tensor in pair]:
            kept[~written] = torch.nan
    gap, _ = compared(config, policy, batch, targets)
    assert gap <= 2e-6


def test_adapters_too(tmp_path):
    pytest.importorskip("peft", reason="adapters need the extra spinerl[lora]")
    folder = write_model("llama", tmp_path, spread=0.1)
    gap, _ = compared(*recorded(folder, adapters=True))
    assert gap <= 5e-6


def test_activations_are_valid_only_for_the_weights_they_were_made_with(model_folders):
    config, policy, batch, targets = recorded(model_folders("qwen2"))
    assert batch.activations.serves(policy)
    with torch.no_grad():
        policy.model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1.5)
    assert not batch.activations.serves(policy)
    _, found = gradient(config, policy, None, batch, targets)
    _, expected = gradient(config, policy, None, dataclasses.replace(batch, activations=None), targets)
    assert relative_gap(found, expected) == 0.0
    assert "activation_reuse" not in policy.capabilities.verdicts


def test_what_does_not_fit_is_not_kept(model_folders, monkeypatch):
    """Memory for some tokens, not for all: the rollout is as ever, without a record."""
    _, _, batch, _ = recorded(model_folders("qwen2"))
    monkeypatch.setattr(activations_module, "free_bytes", lambda _: 4 * 4 * 100 * 2 * (4 * 32 + 2 * 64))
    _, _, other, _ = recorded(model_folders("qwen2"))
    assert other.activations is None
    assert torch.equal(other.tokens, batch.tokens)
    monkeypatch.setattr(activations_module, "free_bytes", lambda _: 1)
    assert recorded(model_folders("qwen2"))[2].activations is None


def test_a_layer_that_is_not_run_once_per_token_leaves_no_record(model_folders):
    policy = load_model(load_config(overrides=[f"model={model_folders('llama')}"]).model)
    block = policy.model.model.layers[0].mlp
    ordinary = block.forward
    block.forward = lambda states: ordinary(states) + block.down_proj(0 * block.up_proj(states))
    config = load_config(overrides=[f"model={model_folders('llama')}", *OVERRIDES])
    policy = without(policy, "compiled")
    prompts = [tuple(policy.tokenizer(text).input_ids) for text in TEXTS]
    rollout = sample_responses(policy, QUESTIONS, prompts, 2, config.rollout, ("u",), keep_activations=True)
    assert rollout.activations is None


def test_a_step_uses_it_and_lets_go_of_it(model_folders):
    """Two minibatches: the first update is of the weights that sampled, the second is not."""
    results = {}
    for replay in ("[]", "[activation-reuse]"):
        overrides = [*OVERRIDES, "optim.lr=1e-3", "optim.minibatches=2", f"engine.disable={replay}", "answer.kind=text"]
        config = load_config(overrides=[f"model={model_folders('qwen3')}", *overrides, "answer.truncated=count"])
        policy = load_model(config.model, config.engine)
        prompts = [tuple(policy.tokenizer(text).input_ids) for text in TEXTS]
        optimizer = Optimizer(policy.model.parameters(), config.optim, 1)
        with Equivalence() as equivalence:
            rewards = {"rewards": REWARDS}
            record, _ = train_step(
                policy,
                None,
                optimizer,
                equivalence,
                QUESTIONS,
                prompts,
                config,
                0,
                StepState(),
                oracle=lambda _questions, _votes, given=rewards: given["rewards"],
            )
        assert record.rollout.activations is None
        assert policy.capabilities.uses("activation_reuse") == (replay == "[]")
        results[replay] = policy.model.state_dict()
    for name, tensor in results["[]"].items():
        assert torch.allclose(tensor, results["[activation-reuse]"][name], atol=2e-5), name
