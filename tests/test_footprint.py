"""The memory of a run, estimated from config.json or a GGUF header only, and what is said where it is not there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from spinerl import footprint
from spinerl.cli import main
from spinerl.config import load_config, override
from spinerl.data import resolve
from spinerl.engine.backend import backend_of
from spinerl.engine.cpu.activations import Recorder
from spinerl.engine.forward import graph_bytes
from spinerl.footprint import estimate, foresee, memory_note, remedies
from spinerl.models.headers import open_skeleton
from spinerl.models.loading import load_model
from spinerl.plan import open_plan
from spinerl.train import adapt
from spinerl.workload import add_configured_adapters
from tests.e2e.test_guarded_runs import Quiet
from tests.models import ARCHITECTURES, needs_loops

SMALL = ["data.max_questions=7", "questions_per_step=3", "group_size=2", "steps=2", "rollout.max_new_tokens=5"]
GB = 10**9


def of(*keys):
    return resolve(load_config(overrides=[*SMALL, *keys]))


def parts(phase, found):
    return next(one.parts for one in found.phases if one.name == phase)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rank", [0, 3])
def test_a_skeleton_has_the_modules_of_the_model(model_folders, architecture, rank):
    config = of(override("model", str(model_folders(architecture))), f"lora.rank={rank}")
    loaded = load_model(config.model, config.engine)
    add_configured_adapters(loaded, config)
    skeleton = open_skeleton(config, torch.device("cpu"), torch.float32)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())

    def described(one):
        return [(n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in one.model.named_parameters()]

    assert described(skeleton) == described(loaded)
    assert skeleton.vocab_size == loaded.vocab_size
    assert backend_of(skeleton).memory(GB) == backend_of(loaded).memory(GB)


def test_the_parts_of_a_plain_model_by_hand(model_folders):
    """bfloat16: weights and gradients 2 bytes, summed gradients, masters 4, two moments 8, the anchor 2 once more."""
    config = of(override("model", str(model_folders("llama"))), "model.dtype=bfloat16", "anchor.weight=0.1")
    found = foresee(config)
    size = sum(p.numel() for p in open_skeleton(config, torch.device("cpu"), torch.bfloat16).model.parameters())
    update = parts("update", found)
    assert update["weights"] == update["reference model"] == 2 * size
    assert update["gradients"] == 2 * size + 4 * size
    assert update["master weights"] == 4 * size
    assert update["optimizer states"] == 8 * size
    assert "packed weights" not in parts("sampling", found)
    assert [phase.name for phase in found.phases] == ["loading", "evaluation", "sampling", "update", "optimizer"]
    assert found.peak.bytes == max(sum(phase.parts.values()) for phase in found.phases)


def test_adapters_learn_and_the_model_beneath_them_is_the_anchor(model_folders):
    key = override("model", str(model_folders("llama")))
    whole, low = (parts("update", foresee(of(key, "anchor.weight=0.1", f"lora.rank={r}"))) for r in (0, 2))
    assert "reference model" not in low
    assert low["optimizer states"] < whole["optimizer states"]
    assert low["optimizer states"] == 2 * low["gradients"]


@needs_loops
def test_what_is_kept_and_packed_is_what_the_engine_keeps_and_packs():
    config = of("model.dtype=float32")
    found = parts("sampling", foresee(config))
    loaded = load_model(config.model, config.engine)
    backend = backend_of(loaded)
    backend.settle()
    linear = sum(m.weight.nbytes for m in loaded.model.modules() if type(m) is torch.nn.Linear)
    assert backend.memory(10 * GB).packed == 2 * linear  # one for oneDNN, one for the compiled loop
    recorder = Recorder(loaded, 1, 1, 1)
    assert backend.memory(10 * GB).kept_per_token == sum(layer.out_features for layer in recorder._layers) * 4
    assert found["kept activations"] % backend.memory(10 * GB).kept_per_token == 0
    # A small model's passes are as long as they are asked to be.
    assert 2**30 // graph_bytes(loaded) > 8192 == backend.pass_tokens(8192, by_layers=False)
    assert backend.pass_tokens(8192, by_layers=True) == 3 * 8192


def test_a_model_of_half_a_billion_parameters_by_its_shapes(tmp_path):
    """A 0.5 B model's config.json, without weights: 494 M parameters, of which the tied head counts once."""
    folder = tmp_path / "model"
    config = of()
    loaded = load_model(config.model, config.engine)
    loaded.tokenizer.save_pretrained(folder)
    settings = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
        "max_position_embeddings": 32768, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    keys = override("model", str(folder)), "model.dtype=float32", "model.device=cpu"
    found = foresee(of(*keys, "rollout.max_new_tokens=1000", "guard=off", "engine.kv_cache_tokens=100000"))
    size = 494_032_768
    assert parts("loading", found)["weights"] == 4 * size
    assert parts("update", found)["optimizer states"] == 8 * size
    assert 16 * size < found.peak.bytes < 16 * size + 10 * GB
    cached = parts("sampling", found)["keys and values"]
    assert cached >= 6 * 1000 * 2 * 24 * 2 * 64 * 4  # rows, tokens, keys and values, layers, heads, width, bytes
    lower = {remedy.keys: remedy.bytes for remedy in remedies(of(*keys, "guard=off"))}
    assert lower["lora.rank=16",] < 4 * size + 10 * GB
    assert list(lower.values())[: len(lower) - 1] == sorted(list(lower.values())[: len(lower) - 1])


def test_a_run_that_does_not_fit_is_said_and_not_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(footprint, "free_bytes", lambda _: 1e6)
    monkeypatch.setattr(footprint, "_LIBRARIES", 0)
    monkeypatch.setattr(footprint, "resident_bytes", lambda: 1)
    plan = open_plan(of())
    assert plan.measured is None
    assert not plan.memory.fits
    assert plan.remedies
    with pytest.raises(SystemExit):
        main(["plan", *SMALL, "--json", str(tmp_path / "plan.json")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "the model was not read" in printed
    assert "optimizer states" in printed
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["memory"]["free_bytes"] == 1_000_001
    assert figures["remedies"][0]["keys"]
    notes = []
    observer = Quiet()
    observer.note = notes.append
    adapt(load_config(overrides=[*SMALL, "guard=off", "eval.samples=0", f"run={tmp_path / 'run'}"]), observer)
    (said,) = [note for note in notes if note.startswith("memory: ")]
    assert "\n" not in said


def test_nothing_is_said_where_it_fits_or_cannot_be_estimated(tmp_path, monkeypatch):
    config = of()
    assert memory_note(config, ()) is None
    monkeypatch.setattr(footprint, "free_bytes", lambda _: 1e6)
    monkeypatch.setattr(footprint, "resident_bytes", lambda: 1)
    nowhere = config.model_copy(update={"model": config.model.model_copy(update={"name": str(tmp_path)})})
    assert memory_note(nowhere, ()) is None


def test_budgets_bound_the_estimate(model_folders):
    key = override("model", str(model_folders("llama")))
    longer = [key, "rollout.max_new_tokens=400", "questions_per_step=7", "model.dtype=float32"]
    free, bound = (
        parts("sampling", foresee(of(*longer, *more)))
        for more in ([], ["engine.kv_cache_tokens=900", "engine.activation_tokens=10"])
    )
    assert bound["keys and values"] < free["keys and values"]
    assert bound["kept activations"] < free["kept activations"]
    loaded = open_skeleton(of(key), torch.device("cpu"), torch.float32)
    half = estimate(
        of(key, "engine.disable=[cpu]"), replace(loaded, settings=of("engine.disable=[cpu]").engine), [9], 7, GB
    )
    assert "kept activations" not in parts("sampling", half)
