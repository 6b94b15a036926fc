"""A model in 4 bits beneath adapters that learn: sampled, updated, saved, resumed, merged; and what is refused."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from spinerl.cli import main
from spinerl.config import load_config, override
from spinerl.errors import InputError, MissingExtraError
from spinerl.models import quantize
from spinerl.models.loading import load_model
from spinerl.runs import RunFolder
from spinerl.train import adapt
from tests.e2e.test_guarded_runs import Quiet

RUN = [
    "model.quantize=4bit", "model.dtype=float32", "lora.rank=4", "data.max_questions=4", "questions_per_step=2",
    "group_size=4", "steps=3", "threads=1", "rollout.max_new_tokens=24", "optim.lr=1e-2", "anchor.weight=0.1",
    "eval.samples=0", "checkpoint.every=1", "guard=off", "answer.truncated=count",
]  # fmt: skip


class Interrupting(Quiet):
    def step(self, metrics, _):
        if metrics["step"] == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("bitsandbytes")
    return adapt(load_config(overrides=[*RUN, f"run={tmp_path_factory.mktemp('whole') / 'run'}"]), Quiet())


def adapters(folder):
    return (folder / "model" / "adapter_model.safetensors").read_bytes()


def test_weights_are_in_4_bits_and_compute_nearly_the_same():
    pytest.importorskip("bitsandbytes")
    config = load_config(overrides=RUN)
    found, plain = (load_model(m) for m in (config.model, load_config().model))
    layers = {type(module).__name__ for module in found.model.modules()}
    assert "Linear4bit" in layers
    size, whole = (sum(p.nbytes for p in one.model.parameters()) for one in (found, plain))
    assert size < 0.3 * whole
    ids = torch.arange(24).view(2, 12) + 3
    with torch.no_grad():
        a, b = (one.model(input_ids=ids).logits for one in (found, plain))
    assert 0 < (a - b).norm() < 0.2 * b.norm()
    again = found.model(input_ids=ids).logits  # with a graph: sampling and learning must compute alike
    assert torch.equal(again, a)


def test_adapters_learn_and_resume_bit_for_bit(run, tmp_path):
    rows = run.rows("metrics.jsonl")
    assert any(row["optim/grad_norm"] > 0 for row in rows)
    assert any(row.get("loss/anchor", 0) > 0 for row in rows)  # the model beneath them is the anchor
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        adapt(load_config(overrides=[*RUN, f"run={folder}"]), Interrupting())
    stopped = RunFolder.open(folder)
    adapt(stopped.config, Quiet(), resume=stopped)
    assert adapters(folder) == adapters(run.path)


def test_adapters_merge_into_the_unquantized_model(run, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["merge", str(run.path), "--out", str(tmp_path / "merged")])
    assert not ended.value.code
    merged = load_model(load_config(overrides=[override("model", str(tmp_path / "merged"))]).model)
    plain = load_model(load_config().model)
    pairs = list(zip(merged.model.parameters(), plain.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert all(a.dtype == torch.float32 for a, _ in pairs)


def test_what_is_refused(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"set lora\.rank"):
        load_config(overrides=["model.quantize=4bit"])
    with pytest.raises(InputError, match=r"rollout\.sampler=vllm"):
        load_config(overrides=["model.quantize=4bit", "lora.rank=4", "rollout.sampler=vllm"])
    on_adapters = load_config(overrides=[*RUN, override("model", str(run.path))]).model
    with pytest.raises(InputError, match="has adapters"):
        load_model(on_adapters)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(InputError, match="is a GGUF file"):
        load_model(load_config(overrides=[*RUN, override("model", str(file))]).model)
    found = importlib.util.find_spec
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None if "bits" in name else found(name))
    with pytest.raises(MissingExtraError, match="needs bitsandbytes, not installed here"):
        load_model(load_config(overrides=RUN).model)
