"""What saves time or memory changes no number: sharing, trimming, skipping, sorting, chunking, in every combination."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from spinerl.config import EngineConfig, load_config
from spinerl.engine.forward import plan
from spinerl.engine.lm_head import chunks, head_logits
from spinerl.engine.update import score
from spinerl.models.loading import load_model
from tests.engine.test_update import gradient, prepared
from tests.models import ARCHITECTURES, without, write_model

SWITCHES = ("shared-prefix", "trim", "skip", "sort")
PLAIN = [f"engine.disable=[{','.join(SWITCHES)}]"]
EXAMPLE = "5 + 3 = 8.  She has 8 pens.  "
TERMS = ["band.weight=0.2", "anchor.weight=0.1", "anchor.estimator=exact", "optim.micro_batch_tokens=100000"]


@pytest.fixture(autouse=True)
def float64_stays_float64(monkeypatch):
    """Eager attention takes its softmax in float32 whatever the model's type, like the norms (tests/models.py)."""
    softmax = torch.nn.functional.softmax

    def wide(states, dim, dtype=None, **_):
        return softmax(states, dim=dim, dtype=None if states.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", wide)


def relative_gap(found, expected):
    """Norm of the difference over the norm of the gradient, all parameters together."""
    difference = sum((found[name] - expected[name]).double().square().sum() for name in expected)
    return (difference / sum(gradient.double().square().sum() for gradient in expected.values())).sqrt().item()


@pytest.mark.parametrize("start", ["", EXAMPLE], ids=["unlike", "alike"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-10)], ids=["f32", "f64"])
def test_all_savings_together_give_the_plain_gradient(tmp_path, architecture, dtype, limit, start):
    folder = write_model(architecture, tmp_path, spread=0.1)
    plain = prepared(folder, *TERMS, *PLAIN, "optim.head_chunk=100000", dtype=dtype, start=start)
    loss, expected = gradient(*plain)
    # the very same rollout and targets, so that only the computation differs
    for more in (["optim.head_chunk=3"], ["optim.head_chunk=3", "optim.micro_batch_rows=2"]):
        fast = load_config(overrides=[*_overrides(plain), *TERMS, *more])
        found_loss, found = gradient(fast, *plain[1:])
        assert plain[1].capabilities.uses("split_head")
        assert plain[1].capabilities.uses("shared_prompts")
        assert found_loss == pytest.approx(loss, abs=limit)
        assert relative_gap(found, expected) <= limit


@pytest.mark.parametrize("on", list(itertools.product([False, True], repeat=len(SWITCHES))), ids=str)
def test_every_combination_gives_the_same_numbers(model_folders, on):
    plain = prepared(model_folders("qwen3"), *TERMS, *PLAIN, dtype=torch.float64)
    loss, expected = gradient(*plain)
    off = [name for name, value in zip(SWITCHES, on, strict=True) if not value]
    config = load_config(overrides=[*_overrides(plain), *TERMS, f"engine.disable=[{','.join(off)}]"])
    found_loss, found = gradient(config, *plain[1:])
    assert found_loss == pytest.approx(loss, abs=1e-10)
    assert relative_gap(found, expected) <= 1e-10


def test_what_each_saving_saves(model_folders):
    config, policy, _, batch, targets, _ = prepared(model_folders("llama"))
    wanted = targets.fork_mask & (targets.advantages != 0)

    def tokens(*on):
        off = [name for name in SWITCHES if name not in on]
        optim = config.optim.model_copy(update={"micro_batch_rows": 0 if len(on) == len(SWITCHES) else 3})
        pieces = plan(without(policy, *off), batch, wanted, optim)
        computed = sum(micro.input_ids.numel() for piece in pieces for micro in piece.micros)
        return computed + sum(len(prefix) for piece in pieces for prefix in piece.prefixes)

    everything = tokens()
    for name in SWITCHES:
        assert tokens(name, *(["skip"] if name == "trim" else [])) < everything, name
    assert tokens(*SWITCHES) < 0.6 * everything
    without_variance = set(range(4, 8))
    rows = {
        row for piece in plan(policy, batch, wanted, config.optim) for m in piece.micros for row in m.row_of.tolist()
    }
    assert rows == set(range(12)) - without_variance


def test_prompts_that_begin_alike_run_that_once(model_folders):
    plain = prepared(model_folders("llama"), start=EXAMPLE)
    config, policy, _, batch, *_ = plain
    passes = []
    sizes = lambda _module, args: passes.append(tuple(args[0].shape))  # noqa: E731
    gradient(config, *plain[1:])  # and settle all checks
    with policy.model.get_input_embeddings().register_forward_pre_hook(sizes):
        gradient(config, *plain[1:])
    learned = [prompt[:-1] for i, prompt in enumerate(dict.fromkeys(batch.prompts)) if i != 1]  # one has no variance
    start = next(i for i in range(99) if len({prompt[i] for prompt in learned}) > 1)
    assert start > 20
    assert passes[:2] == [(1, start), (2, max(map(len, learned)) - start)]


def test_prompts_are_not_shared_where_it_does_not_pay(model_folders):
    config, policy, _, batch, _, _ = prepared(model_folders("llama"))
    one_each = dataclasses.replace(batch, prompts=tuple((*p, row + 5) for row, p in enumerate(batch.prompts)))
    assert not any(piece.prefixes for piece in plan(policy, one_each, batch.mask, config.optim))
    assert all(piece.prefixes for piece in plan(policy, batch, batch.mask, config.optim))


def test_scores_are_the_same_with_and_without_sharing(model_folders):
    config, policy, _, batch, _, _ = prepared(model_folders("gemma2"), dtype=torch.float64)
    plain = score(without(policy, "shared-prefix"), batch, batch.mask, config.optim)
    shared = score(policy, batch, batch.mask, config.optim)
    for a, b in zip(plain, shared, strict=True):
        assert (a - b).abs().max() <= 1e-10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_head_on_states_equals_the_whole_model(model_folders, architecture):
    loaded = load_model(load_config(overrides=[f"model={model_folders(architecture)}"]).model)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        whole = loaded.model(input_ids=ids).logits
        states = loaded.model.base_model(input_ids=ids)[0]
        assert torch.allclose(head_logits(loaded.model, states.flatten(0, 1)), whole.flatten(0, 1), atol=1e-6)
    assert loaded.vocab_size == whole.shape[-1]


class _Unshareable(torch.nn.Module):
    """A layer that sees how many tokens run together: no cache can make up for it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, ids):
        return self.inner(ids) * (1 + 0.1 * ids.shape[1])


def test_a_model_that_breaks_sharing_runs_plainly(model_folders):
    config, policy, anchor, batch, targets, _ = prepared(model_folders("qwen2"), *TERMS)
    policy.capabilities.clear()
    policy.model.set_input_embeddings(_Unshareable(policy.model.get_input_embeddings()))
    policy.model.get_input_embeddings().weight = policy.model.get_input_embeddings().inner.weight
    before = policy.model.get_input_embeddings().weight.clone()
    _, found = gradient(config, policy, anchor, batch, targets)
    assert policy.capabilities.verdicts["shared_prompts"].used is False
    plain = config.model_copy(update={"engine": EngineConfig(disable=["shared-prefix"])})
    _, expected = gradient(plain, policy, anchor, batch, targets)
    assert relative_gap(found, expected) <= 1e-6
    assert torch.equal(policy.model.get_input_embeddings().weight, before), "a trial leaves the model as it was"


def test_a_trial_keeps_gradients_and_flags(model_folders):
    config, policy, _, batch, _, _ = prepared(model_folders("qwen2"))
    policy.capabilities.clear()
    weight = policy.model.get_input_embeddings().weight
    weight.grad = torch.ones_like(weight)
    frozen = next(p for p in policy.model.parameters() if p is not weight)
    frozen.requires_grad_(False)
    plan(policy, batch, batch.mask, config.optim)
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert not frozen.requires_grad
    assert [p.grad is None for p in policy.model.parameters()].count(False) == 1


def test_chunks_cover_all_positions_once():
    assert [(s.start, s.stop) for s in chunks(7, 10, 3)] == [(0, 3), (3, 6), (6, 7)]
    sizes = [s.stop - s.start for s in chunks(300, 151_936)]
    assert sum(sizes) == 300
    assert sizes[0] == 64 * 2**20 // (4 * 151_936)
    assert list(chunks(0, 10)) == []


def _overrides(prepared_run):
    """The overrides that name the same model and sizes as `prepared` did."""
    config = prepared_run[0]
    return [
        f"model={config.model.name}",
        "group_size=4",
        "rollout.max_new_tokens=20",
        "rollout.temperature=0.9",
    ]
