"""model.dtype=mixed: matmuls round their factors to bfloat16, all else is float32; runs resume bit-equal."""

from __future__ import annotations

import pytest
import torch

from spinerl.config import LoraConfig, load_config
from spinerl.engine.backend import backend_of
from spinerl.engine.cpu.linear import linear, matmuls_of, onednn_linear, packed_weights
from spinerl.engine.sampler import sample_responses
from spinerl.engine.update import score
from spinerl.models.adapters import add_adapters
from spinerl.models.loading import load_model
from spinerl.runs import RunFolder
from spinerl.train import adapt
from spinerl.types import Batch, Question
from tests.e2e.test_guarded_runs import Quiet
from tests.models import needs_bf16, needs_loops

RUN = [
    "model.dtype=mixed", "data.max_questions=4", "questions_per_step=2", "group_size=4", "steps=3", "threads=1",
    "rollout.max_new_tokens=32", "optim.lr=1e-3", "anchor.weight=0.1", "eval.samples=0", "checkpoint.every=1",
    "guard=off",
]  # fmt: skip
PATHS = (
    "bf16_matmul",
    "decoder_step",
    "activation_reuse",
    "layer_reuse",
    "extend_attention",
    "compiled_extend_attention",
)


def opened(*overrides, name="tiny-reasoner", dtype="mixed"):
    config = load_config(overrides=[f"model={name}", f"model.dtype={dtype}", "rollout.max_new_tokens=24", *overrides])
    loaded = load_model(config.model, config.engine)
    backend_of(loaded).settle()
    return loaded, config


def responses(loaded, config):
    prompts = [tuple(loaded.tokenizer(text).input_ids) for text in ("3 + 4 = ?", "Tom has 5 pens and buys 2 more.")]
    rollout = sample_responses(loaded, [Question(str(i), "") for i in range(2)], prompts, 4, config.rollout, ("m",))
    return rollout, Batch(tuple(p for p in prompts for _ in range(4)), rollout.tokens, rollout.mask, 1.0)


@needs_bf16
def test_all_faster_paths_run_mixed():
    loaded, _ = opened()
    assert loaded.mixed
    assert loaded.model.dtype == torch.float32
    assert {path: loaded.capabilities.uses(path) for path in PATHS} == dict.fromkeys(PATHS, True)


@needs_bf16
def test_a_linear_layer_is_its_formula_with_rounded_factors():
    """Output and gradients, and a bias, of weights that are no multiple of any block."""
    loaded, _ = opened()
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, 9, 40), (27, 40), (27,)))
    grad = torch.randn(2, 9, 27, generator=generator)
    leaves = [tensor.clone().requires_grad_() for tensor in (states, weight, bias)]
    found = linear(*leaves, matmuls_of(loaded))
    found.backward(grad)
    wide, w, g = (tensor.bfloat16().double() for tensor in (states, weight, grad))
    assert torch.allclose(found.double(), wide @ w.T + bias, atol=1e-5)
    assert torch.allclose(leaves[0].grad.double(), g @ w, atol=1e-5)
    assert torch.allclose(leaves[1].grad.double(), g.flatten(0, 1).T @ wide.flatten(0, 1), atol=1e-5)
    assert torch.allclose(leaves[2].grad, grad.flatten(0, 1).sum(0), atol=1e-5)


@needs_bf16
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gpt2"])
def test_layers_with_packed_weights_round_as_others_do(model_folders, architecture):
    """Biases, soft-capping; and layers of another class, which do not round."""
    loaded, _ = opened(name=model_folders(architecture))
    plain, _ = opened(name=model_folders(architecture), dtype="float32")
    ids = torch.arange(1, 9).view(1, -1)
    with torch.inference_mode():
        expected = plain.model(input_ids=ids).logits
        with onednn_linear(loaded):
            found = loaded.model(input_ids=ids).logits
        with packed_weights(loaded):
            packed = loaded.model(input_ids=ids).logits
    assert torch.allclose(found, packed, atol=1e-6)
    assert torch.allclose(found, expected, atol=0.05 * float(expected.abs().max()))
    assert not torch.equal(found, expected)  # the head is a linear layer everywhere


@needs_bf16
@pytest.mark.parametrize("rank", [0, 4])
def test_the_sampler_agrees_with_teacher_forcing(rank):
    loaded, config = opened()
    if rank:
        add_adapters(loaded.model, LoraConfig(rank=rank), 0, train_vision=False)
        loaded.capabilities.clear(keep="bfloat16")
    rollout, batch = responses(loaded, config)
    logprobs, entropies = score(loaded, batch, batch.mask, config.optim)
    gaps = (logprobs - rollout.logprobs)[batch.mask].abs()
    assert gaps.mean() < 0.005
    assert gaps.max() < 0.2
    assert (entropies - rollout.entropies)[batch.mask].abs().mean() < 0.005


@needs_bf16
def test_log_probabilities_are_near_those_of_float32():
    loaded, config = opened()
    plain, _ = opened(dtype="float32")
    _, batch = responses(plain, config)  # the same on every CPU, however it rounds
    gaps = (score(loaded, batch, batch.mask, config.optim)[0] - score(plain, batch, batch.mask, config.optim)[0]).abs()
    assert 0 < gaps[batch.mask].mean() < 0.005


class Interrupting(Quiet):
    def step(self, metrics, _):
        if metrics["step"] == 2:
            raise KeyboardInterrupt


@needs_bf16
def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = adapt(load_config(overrides=[*RUN, f"run={tmp_path / 'whole'}"]), Quiet())
    assert whole.manifest["dtype"] == "mixed"
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        adapt(load_config(overrides=[*RUN, f"run={folder}"]), Interrupting())
    stopped = RunFolder.open(folder)
    adapt(stopped.config, Quiet(), resume=stopped)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (folder, whole.path)]
    assert weights[0] == weights[1]
    assert any(row["optim/grad_norm"] > 0 for row in RunFolder(folder).rows("metrics.jsonl"))


@needs_loops
def test_without_its_instructions_a_mixed_model_computes_in_float32_and_says_why(monkeypatch):
    monkeypatch.setattr("spinerl.engine.cpu.kernels.has_bf16", lambda: False)
    loaded, config = opened()
    verdict = loaded.capabilities.verdicts["bf16_matmul"]
    assert not verdict.used
    assert "no instructions for bfloat16" in verdict.reason
    found = responses(loaded, config)[0]
    expected = responses(*opened(dtype="float32"))[0]
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.logprobs, expected.logprobs)
