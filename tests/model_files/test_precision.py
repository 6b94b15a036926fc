"""model.dtype: what auto chooses and why, what stays float32 in bfloat16 runs, and what bfloat16 rounds away."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from spinerl.cli import main
from spinerl.config import load_config, override
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.engine.update import score
from spinerl.errors import InputError
from spinerl.models import precision
from spinerl.models.loading import load_model
from spinerl.runs import RunFolder
from spinerl.train import adapt
from spinerl.types import Batch, Question
from tests.e2e.test_guarded_runs import Quiet

CPU = torch.device("cpu")
LARGE = [(2048, 2048)] * 30
RUN = [
    "model.dtype=bfloat16", "data.max_questions=4", "questions_per_step=2", "group_size=4", "steps=3", "threads=1",
    "rollout.max_new_tokens=32", "optim.lr=1e-3", "anchor.weight=0.1", "eval.samples=0", "checkpoint.every=1",
    "guard=off",
]  # fmt: skip


@pytest.fixture(scope="module")
def script():
    """scripts/check_bfloat16.py, by which the figures of docs/scaling.md are made."""
    file = Path(__file__).parents[2] / "scripts" / "check_bfloat16.py"
    spec = importlib.util.spec_from_file_location("check_bfloat16", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_asked_for_is_taken():
    for asked in ("float32", "bfloat16", "mixed"):
        found, verdict = precision.choose_dtype(asked, CPU, LARGE)
        assert (found, verdict.used) == (asked, asked != "float32")
    assert precision.choose_dtype("auto", torch.device("cuda"), LARGE)[0] == "bfloat16"
    assert precision.choose_dtype("auto", torch.device("mps"), LARGE)[0] == "float32"
    with pytest.raises(InputError, match=r"^model\.dtype=mixed is for CPUs; on cuda take bfloat16$"):
        precision.choose_dtype("mixed", torch.device("cuda"), LARGE)
    types = {one: precision.weights_dtype(one) for one in ("float32", "bfloat16", "mixed")}
    assert types == {"float32": torch.float32, "bfloat16": torch.bfloat16, "mixed": torch.float32}


def test_auto_on_a_cpu_is_float32_unless_a_large_model_is_measured_to_be_faster(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_support", lambda: "emulated")
    found, verdict = precision.choose_dtype("auto", CPU, LARGE)
    assert (found, verdict) == ("float32", (False, "float32: the CPU has no instructions for bfloat16 (emulated)"))
    for support in ("AMX", "AVX-512"):  # whether or not this CPU has it
        monkeypatch.setattr(precision, "bfloat16_support", lambda support=support: support)
        found, verdict = precision.choose_dtype("auto", CPU, [(64, 64)])
        assert (found, verdict.used) == ("float32", False)
        assert "M parameters" in verdict.reason
    for needed, expected in ((0.0, "mixed"), (1e9, "float32")):
        monkeypatch.setattr(precision, "_FASTER", needed)
        found, verdict = precision.choose_dtype("auto", CPU, LARGE, seconds=0.02)
        assert (found, verdict.used) == (expected, expected == "mixed")
        assert "times as fast in bfloat16 with 32 rows" in verdict.reason


def test_speeds_are_ratios_of_the_models_own_matmuls():
    threads = torch.get_num_threads()
    speed = precision.matmul_speed([(256, 256), (256, 256), (512, 256), (256,), (4, 4)], 0.02)
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in speed)
    assert precision.matmul_speed([(7,)], 0.02) == (1.0, 1.0)
    assert torch.get_num_threads() == threads


def test_the_verdict_is_logged_and_in_manifest_and_doctor(tmp_path, capsys, caplog):
    caplog.set_level("INFO", "spinerl.engine")
    run = adapt(load_config(overrides=[*RUN, "model.dtype=auto", "steps=1", f"run={tmp_path / 'run'}"]), Quiet())
    assert run.manifest["dtype"] == "float32"
    verdict = run.manifest["engine"]["paths"]["bfloat16"]
    assert not verdict["used"]
    assert any(line.startswith("bfloat16: off (") for line in caplog.messages)
    with pytest.raises(SystemExit):
        main(["doctor", "tiny-reasoner"])
    assert f"bfloat16                   off: {verdict['reason']}" in capsys.readouterr().out


def test_what_stays_float32(model_folders):
    config = load_config(overrides=[override("model", str(model_folders("llama"))), "model.dtype=bfloat16"])
    loaded = load_model(config.model, config.engine)
    prompt, rows = (5, 6, 7), torch.tensor([[9, 10, 11], [12, 13, 14]])
    batch = Batch((prompt, prompt), rows, torch.ones_like(rows, dtype=torch.bool), 1.0)
    for figures in score(loaded, batch, batch.mask, config.optim):
        assert figures.dtype == torch.float32
    rollout = sample_responses(loaded, [Question("q", "")], [prompt], 2, config.rollout, ("t",))
    assert rollout.logprobs.dtype == rollout.entropies.dtype == torch.float32
    optimizer = Optimizer(loaded.model.parameters(), config.optim, 1)
    assert {master.dtype for master in optimizer._masters} == {torch.float32}
    # A norm squares and sums in float32: of bfloat16 numbers it gives what float32 gives, rounded once.
    norm = loaded.model.base_model.norm
    states = (100 * torch.randn(4, 32)).bfloat16()
    wide = states.float()
    expected = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    assert torch.equal(norm(states), norm.weight * expected.bfloat16())


def test_bfloat16_agrees_with_itself_and_with_float32(script):
    found = script.check("tiny-reasoner", num_questions=2, tokens=12)
    assert found["float32"]["logprob_diff_max"] < 1e-3
    for dtype in {"mixed", "bfloat16"} & set(found):
        assert 0 < found[dtype]["logprob_diff_mean"] < 0.02
        assert found[dtype]["entropy_diff_mean"] < 0.02
        assert found[dtype]["gradient_cosine"] > 0.99
        assert found[dtype]["gradient_norm_ratio"] == pytest.approx(1.0, abs=0.05)
    assert "bfloat16" in found


class Interrupting(Quiet):
    def step(self, metrics, _):
        if metrics["step"] == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_keeps_its_type_and_its_bits(tmp_path):
    whole = adapt(load_config(overrides=[*RUN, f"run={tmp_path / 'whole'}"]), Quiet())
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        adapt(load_config(overrides=[*RUN, f"run={folder}"]), Interrupting())
    written = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(written.replace("dtype: bfloat16", "dtype: auto"))  # as where auto chose it
    assert written != (folder / "config.yaml").read_text()
    stopped = RunFolder.open(folder)
    assert stopped.config.model.dtype == "auto"
    adapt(stopped.config, Quiet(), resume=stopped)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (folder, whole.path)]
    assert weights[0] == weights[1]
    norms = [[row["optim/grad_norm"] for row in RunFolder(run).rows("metrics.jsonl")] for run in (folder, whole.path)]
    assert norms[0] == norms[1]
    assert any(norm > 0 for norm in norms[0])
