"""Linear layers through oneDNN, in sampling and in learning: the same numbers, for as long as they are asked for."""

import pytest
import torch

from spinerl.config import LoraConfig, load_config
from spinerl.engine.cpu.linear import linear, onednn_linear, packed_weights
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.engine.update import score, update
from spinerl.models.adapters import add_adapters
from spinerl.models.loading import load_model
from spinerl.step import StepState, freeze_targets, trained_rows
from spinerl.types import Question
from tests.models import ARCHITECTURES, without

QUESTIONS = (Question("a", "first"), Question("b", "second"))
PROMPTS = ((3, 4, 5, 6, 7), (9, 8, 7))


def opened(folder, **keys):
    config = load_config(
        overrides=[f"model={folder}", "rollout.max_new_tokens=24", *(f"{k}={v}" for k, v in keys.items())]
    )
    return load_model(config.model, config.engine), config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_weights_change_no_sample(model_folders, architecture):
    loaded, config = opened(model_folders(architecture))
    plain = without(loaded, "packed-weights")
    expected = sample_responses(plain, QUESTIONS, PROMPTS, 4, config.rollout, ("p",))
    assert "packed_weights" not in loaded.capabilities.verdicts
    found = sample_responses(loaded, QUESTIONS, PROMPTS, 4, config.rollout, ("p",))
    assert loaded.capabilities.uses("packed_weights")
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.allclose(found.logprobs, expected.logprobs, atol=1e-4)


def test_the_layers_are_their_own_again_afterwards(model_folders):
    loaded, _ = opened(model_folders("qwen2"))
    ids = torch.tensor([PROMPTS[0]])
    layer = loaded.model.get_submodule("model.layers.0.mlp.up_proj")
    with torch.inference_mode(), packed_weights(loaded):
        assert "forward" in layer.__dict__
        before = loaded.model(input_ids=ids).logits
    assert "forward" not in layer.__dict__
    with torch.no_grad():
        layer.weight.mul_(3)
        expected = loaded.model(input_ids=ids).logits
    with torch.inference_mode(), packed_weights(loaded):  # the weights as they are now
        found = loaded.model(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-3)


def test_an_error_inside_leaves_no_packed_layer(model_folders):
    loaded, _ = opened(model_folders("llama"))
    with pytest.raises(RuntimeError, match="inside"), packed_weights(loaded):
        raise RuntimeError("inside")
    assert not any("forward" in module.__dict__ for module in loaded.model.modules())


@pytest.mark.parametrize("patch", [packed_weights, onednn_linear])
def test_other_types_are_not_touched(model_folders, patch):
    loaded, _ = opened(model_folders("qwen3"), **{"model.dtype": "bfloat16"})
    with patch(loaded):
        assert not any("forward" in module.__dict__ for module in loaded.model.modules())


LEARNING = {
    "group_size": 4,
    "optim.max_grad_norm": 0,
    "band.weight": 0.1,
    "anchor.weight": 0.1,
    "anchor.estimator": "exact",
    "optim.head_chunk": 7,
}


def gradients(loaded, anchor, config, fast):
    """{name: gradient} of an update, and what it saw; the weights stay."""
    loaded = loaded if fast else without(loaded, "onednn")
    anchor = anchor if fast else without(anchor, "onednn")
    kept = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    rollout = sample_responses(loaded, QUESTIONS, PROMPTS, 4, config.rollout, ("g",))
    batch, logprobs, entropies = trained_rows(rollout, config)
    rewards = ((1.0, 0.0, 1.0, 0.0),) * 2
    targets, _ = freeze_targets(anchor, batch, rewards, logprobs, entropies, config, StepState())
    optimizer = Optimizer(loaded.model.parameters(), config.optim, 1)
    figures = update(loaded, anchor, batch, targets, optimizer, config, torch.arange(len(batch.tokens)))
    found = {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}
    loaded.model.load_state_dict(kept)
    return found, figures


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_update_through_onednn_has_the_same_gradient(model_folders, architecture):
    loaded, config = opened(model_folders(architecture), **LEARNING)
    anchor = load_model(config.model, config.engine)
    with torch.no_grad():
        for parameter in anchor.model.parameters():
            parameter.mul_(1.1)
    plain, expected = gradients(loaded, anchor, config, fast=False)
    assert "onednn_linear" not in loaded.capabilities.verdicts
    fast, found = gradients(loaded, anchor, config, fast=True)
    assert loaded.capabilities.uses("onednn_linear")
    assert plain.keys() == fast.keys()
    scale = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in plain.items():
        assert float((fast[name] - gradient).abs().max()) < 4e-6 * scale, name  # float32, sums in another order
    assert found["loss/total"] == pytest.approx(expected["loss/total"], rel=1e-5, abs=1e-7)
    assert not any("forward" in module.__dict__ for module in loaded.model.modules())


def test_adapters_learn_through_onednn_with_the_base_as_anchor(model_folders):
    """The anchor is the same model: its layers are patched twice, and restored twice."""
    pytest.importorskip("peft", reason="adapters need the extra spinerl[lora]")
    loaded, config = opened(model_folders("llama"), **LEARNING)
    add_adapters(loaded.model, LoraConfig(rank=2), 0)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    loaded.capabilities.clear()
    plain, _ = gradients(loaded, loaded.base, config, fast=False)
    fast, _ = gradients(loaded, loaded.base, config, fast=True)
    assert plain
    assert all("lora_" in name for name in plain)
    scale = max(float(gradient.abs().max()) for gradient in plain.values())
    assert max(float((fast[name] - plain[name]).abs().max()) for name in plain) < 5e-6 * scale
    assert not any("forward" in module.__dict__ for module in loaded.model.modules())


def test_biases_many_rows_and_wide_layers():
    """Gradients of weights are summed up 1,024 rows at a time, either way round; by hand against torch's own."""
    generator = torch.Generator().manual_seed(0)
    for inside, outside in ((24, 7), (7, 24), (16, 16)):
        states = torch.randn(3, 900, inside, generator=generator, requires_grad=True)
        layer = torch.nn.Linear(inside, outside)
        grads = torch.randn(3, 900, outside, generator=generator)
        inputs = [states, layer.weight, layer.bias]
        expected = torch.autograd.grad(layer(states), inputs, grads)
        found = torch.autograd.grad(linear(states, layer.weight, layer.bias), inputs, grads)
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a, b, atol=2e-4, rtol=1e-5)
        # Gradients that are one number for all, as sums give them.
        (a,) = torch.autograd.grad(linear(states, layer.weight, None).sum(), [layer.weight])
        (b,) = torch.autograd.grad(torch.nn.functional.linear(states, layer.weight).sum(), [layer.weight])
        assert torch.allclose(a, b, atol=2e-4, rtol=1e-5)


def test_scores_are_the_same(model_folders):
    loaded, config = opened(model_folders("qwen3"))
    rollout = sample_responses(loaded, QUESTIONS, PROMPTS, 4, config.rollout, ("s",))
    batch, *_ = trained_rows(rollout, config.model_copy(update={"group_size": 4}))
    plain = score(without(loaded, "onednn"), batch, batch.mask, config.optim)
    fast = score(loaded, batch, batch.mask, config.optim)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(fast, plain, strict=True))
