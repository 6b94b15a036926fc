"""Adapters: the anchor beneath them, what is saved, merging."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

pytest.importorskip("peft", reason="adapters need the extra spinerl[lora]")

from spinerl.config import load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.engine.update import score, update
from spinerl.errors import InputError
from spinerl.models.adapters import add_adapters, base_of, learned_nothing, save_adapters
from spinerl.models.loading import load_model
from spinerl.runs import load_learned, save_learned
from spinerl.step import StepState, freeze_targets, trained_rows
from spinerl.types import Question
from tests.models import ARCHITECTURES, needs_bf16, needs_loops

QUESTIONS = (Question("a", "first"), Question("b", "second"))
PROMPTS = ((3, 4, 5, 6, 7), (9, 8, 7))
ANCHOR = ("anchor.weight=0.3", "band.weight=0.1", "method=spine")


def opened(folder, *overrides):
    overrides = [f"model={folder}", "lora.rank=4", "group_size=4", "rollout.max_new_tokens=12", *ANCHOR, *overrides]
    config = load_config(overrides=overrides)
    loaded = load_model(config.model, config.engine)
    add_adapters(loaded.model, config.lora, config.seed)
    return loaded, config


def stir(model, seed=0, by=0.3):
    """Give the adapters' second matrices, which are zero at first, something to say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=by, generator=generator)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_base_is_the_model_before_and_the_anchor(model_folders, architecture):
    loaded, config = opened(model_folders(architecture))
    plain = load_model(config.model, config.engine)
    rollout = sample_responses(loaded, QUESTIONS, PROMPTS, 4, config.rollout, ("l",))
    batch, _, _ = trained_rows(rollout, config)
    expected, _ = score(plain, batch, batch.mask, config.optim)
    fresh, _ = score(loaded, batch, batch.mask, config.optim)
    assert torch.allclose(fresh, expected, atol=1e-5)  # they begin as nothing
    stir(loaded.model)
    changed, _ = score(loaded, batch, batch.mask, config.optim)
    assert (changed - expected).abs().max() > 0.05
    found, _ = score(loaded.base, batch, batch.mask, config.optim)
    assert torch.allclose(found, expected, atol=1e-5)
    again, _ = score(loaded, batch, batch.mask, config.optim)
    assert torch.equal(again, changed)  # and the adapters are back
    greedy = greedy_responses(loaded.base, QUESTIONS, PROMPTS, config.rollout)
    assert torch.equal(greedy.tokens, greedy_responses(plain, QUESTIONS, PROMPTS, config.rollout).tokens)


@pytest.mark.parametrize("estimator", ["k3", "exact"])
def test_an_update_with_the_anchor_beneath_equals_one_with_a_second_model(model_folders, estimator):
    gradients = []
    for own_copy in (False, True):
        loaded, config = opened(model_folders("qwen3"), f"anchor.estimator={estimator}", "optim.lr=0.01")
        stir(loaded.model)
        rollout = sample_responses(loaded, QUESTIONS, PROMPTS, 4, config.rollout, ("l",))
        batch, logprobs, entropies = trained_rows(rollout, config)
        rewards = ((1.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0))
        anchor = load_model(config.model, config.engine) if own_copy else loaded.base
        targets, _ = freeze_targets(anchor, batch, rewards, logprobs, entropies, config, StepState())
        optimizer = Optimizer(loaded.model.parameters(), config.optim, 1)
        figures = update(loaded, anchor, batch, targets, optimizer, config, torch.arange(len(batch.tokens)))
        assert figures["loss/anchor"] > 1e-4
        gradients.append({n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all("lora_" in name for name in gradients[0])
    assert any(gradient.abs().max() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_saved_adapters_open_as_the_merged_model(model_folders, architecture, tmp_path):
    loaded, config = opened(model_folders(architecture))
    stir(loaded.model)
    save_adapters(loaded.model, tmp_path, str(model_folders(architecture)))
    assert base_of(str(tmp_path)) == str(model_folders(architecture))
    assert not (tmp_path / "model.safetensors").exists()
    whole = load_model(config.model.model_copy(update={"name": str(tmp_path)}))
    assert not any("lora_" in name for name, _ in whole.model.named_parameters())
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    with torch.no_grad():
        expected, found = loaded.model(input_ids=ids).logits, whole.model(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-4)


def test_checkpoints_hold_what_learns(model_folders, tmp_path):
    loaded, _ = opened(model_folders("llama"))
    stir(loaded.model, by=0.1)
    save_learned(loaded.model, tmp_path / "w.safetensors")
    kept = {n: p.clone() for n, p in loaded.model.named_parameters()}
    stir(loaded.model, seed=1)
    load_learned(loaded.model, tmp_path / "w.safetensors")
    assert all(torch.equal(p, kept[n]) for n, p in loaded.model.named_parameters())
    assert (tmp_path / "w.safetensors").stat().st_size < 0.5 * sum(p.nbytes for p in kept.values())


def test_targets(model_folders):
    loaded, _ = opened(model_folders("llama"), "lora.targets=q_proj,v_proj")
    adapted = {n.partition(".lora_")[0].rpartition(".")[2] for n, _ in loaded.model.named_parameters() if "lora_" in n}
    assert adapted == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ("nothing", "lora.targets=nothing: 'nothing' names no linear layer of this model; there are down_proj, "),
        (
            "q_proj,v_prj",
            "'v_prj' names no linear layer of this model (did you mean \"v_proj\"?); there are",
        ),
        (",", "',' names no linear layer of this model; there are down_proj, "),
        ("lm_head", "'lm_head' names no linear layer of this model; there are down_proj, "),
    ],
)
def test_every_unknown_target_is_refused_with_near_names(model_folders, targets, says):
    with pytest.raises(InputError) as refused:
        opened(model_folders("llama"), f"lora.targets={targets}")
    assert says in str(refused.value)
    assert "or all-linear" in str(refused.value)


def test_adapters_that_learned_nothing_are_recognized(model_folders, tmp_path):
    loaded, config = opened(model_folders("llama"))
    save_adapters(loaded.model, tmp_path / "new", config.model.name)
    assert learned_nothing(tmp_path / "new")
    stir(loaded.model)
    save_adapters(loaded.model, tmp_path / "stirred", config.model.name)
    assert not learned_nothing(tmp_path / "stirred")
    assert not learned_nothing(model_folders("llama"))  # a whole model


def test_the_head_and_the_vision_part_have_no_adapters(vision_model_folders):
    loaded, _ = opened(vision_model_folders("idefics3"))
    adapted = [n for n, _ in loaded.model.named_parameters() if "lora_" in n]
    assert adapted
    assert not [n for n in adapted if "lm_head" in n or "vision" in n or "connector" in n]
    assert all(p.requires_grad == ("lora_" in n) for n, p in loaded.model.named_parameters())


def test_the_same_seed_draws_the_same_adapters(model_folders):
    one, two = (opened(model_folders("qwen2"))[0].model for _ in range(2))
    other = opened(model_folders("qwen2"), "seed=1")[0].model
    drawn = [[p for n, p in model.named_parameters() if "lora_A" in n] for model in (one, two, other)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))


def test_adapters_of_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(InputError, match="does not say which model"):
        base_of(str(tmp_path))


MEMORY = """
import sys, torch
from spinerl.bench.timing import peak_memory
from spinerl.config import load_config
from spinerl.models.adapters import add_adapters
from spinerl.models.loading import load_model
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.update import update
from spinerl.step import StepState, freeze_targets
from spinerl.types import Batch

torch.set_num_threads(1)
overrides = [f"model={sys.argv[1]}", f"lora.rank={sys.argv[2]}", "anchor.weight=0.1", "group_size=2"]
config = load_config(overrides=overrides)


def learn():
    loaded = load_model(config.model, config.engine)
    if config.lora.rank:
        add_adapters(loaded.model, config.lora, 0)
    anchor = loaded.base if config.lora.rank else load_model(config.model, config.engine)
    tokens = torch.randint(5, 200, (2, 8), generator=torch.Generator().manual_seed(0))
    batch = Batch(((3, 4, 5),) * 2, tokens, torch.ones_like(tokens, dtype=torch.bool), 1.0)
    zeros = torch.zeros(2, 8)
    targets, _ = freeze_targets(anchor, batch, ((1.0, 0.0),), zeros - 5, zeros + 5, config, StepState())
    optimizer = Optimizer(loaded.model.parameters(), config.optim, 1)
    update(loaded, anchor, batch, targets, optimizer, config, torch.arange(2))


print(peak_memory(learn))
"""


def test_an_anchor_costs_no_memory(tmp_path):
    """Full: weights, anchor, gradients and two moments, five times the weights; adapters: the weights, about."""
    from tests.models import byte_tokenizer

    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=300, **sizes))
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    size = sum(p.nbytes for p in model.parameters())
    peaks = {
        rank: int(subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path), str(rank)], capture_output=True,
                                 text=True, check=True).stdout)
        for rank in (0, 4)
    }  # fmt: skip
    assert peaks[0] > peaks[4] + 2.5 * size


@needs_loops
@pytest.mark.parametrize("dtype", ["float32", pytest.param("mixed", marks=needs_bf16)])
def test_the_compiled_step_adds_adapters_into_its_weights(dtype):
    """Responses of a model with adapters, and of the one beneath, have the log-probabilities of teacher forcing."""
    loaded, config = opened("tiny-reasoner", f"model.dtype={dtype}", "rollout.max_new_tokens=24")
    stir(loaded.model, by=0.02)
    means = []
    for one in (loaded, loaded.base):
        rollout = sample_responses(one, QUESTIONS, PROMPTS, 8, config.rollout, ("a",), keep_activations=True)
        assert loaded.capabilities.uses("decoder_step")
        assert rollout.activations is None
        batch, old, _ = trained_rows(rollout, config)
        gaps = (score(one, batch, batch.mask, config.optim)[0] - old)[batch.mask].abs()
        assert gaps.mean() < (1e-5 if dtype == "float32" else 0.01)
        other = score(loaded if one.without_adapters else loaded.base, batch, batch.mask, config.optim)[0]
        means.append(float((other - old)[batch.mask].abs().mean()))
    assert min(means) > 0.05  # of the other model they are not
