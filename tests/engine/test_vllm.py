"""vLLM as the sampler, for real, on a CPU: `make test-vllm` (an environment of its own)."""

from __future__ import annotations

import dataclasses
import itertools
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spinerl.config import LoraConfig, load_config
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.errors import InputError, RunError
from spinerl.models.adapters import adapted_weights, add_adapters
from spinerl.models.loading import LoadedModel, load_model
from spinerl.types import Rollout
from spinerl.workload import Workload, open_workload

vllm = pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

pytestmark = pytest.mark.slow

CONFIG = load_config(overrides=["rollout.sampler=vllm", "data=tiny/shift-a", "data.max_questions=12", "threads=1"])
MEAN, LARGEST = 1e-5, 1e-3  # nats: what two float32 engines may differ by; seen: 2e-7 and 2e-5


@pytest.fixture(scope="module")
def work() -> Workload:
    return open_workload(CONFIG)


@pytest.fixture
def loaded(work):
    """The model, whose weights are put back after each test."""
    kept = {name: tensor.clone() for name, tensor in work.loaded.model.state_dict().items()}
    yield work.loaded
    work.loaded.model.load_state_dict(kept)


def sample(work: Workload, loaded: LoadedModel, num_responses: int = 6, seed: int = 0, **changes) -> Rollout:
    rollout = CONFIG.rollout.model_copy(update=changes)
    return sample_responses(loaded, work.questions, work.prompts, num_responses, rollout, (seed, "test"))


def natively(loaded: LoadedModel) -> LoadedModel:
    return dataclasses.replace(loaded, sampler=None)


def differences(rollout: Rollout) -> torch.Tensor:
    assert rollout.sampler_logprobs is not None
    assert torch.equal(rollout.sampler_logprobs[~rollout.mask], torch.zeros(int((~rollout.mask).sum())))
    return (rollout.logprobs - rollout.sampler_logprobs)[rollout.mask].abs()


def shake(loaded: LoadedModel, size: float, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def test_its_logprobs_are_the_native_scorers(work, loaded):
    for changes in ({}, {"temperature": 0.7}, {"temperature": 1.3}):
        found = differences(sample(work, loaded, **changes))
        assert found.mean() < MEAN
        assert found.max() < LARGEST


def test_greedy_responses_are_the_native_ones(work, loaded):
    theirs = greedy_responses(loaded, work.questions, work.prompts, CONFIG.rollout)
    ours = greedy_responses(natively(loaded), work.questions, work.prompts, CONFIG.rollout)
    assert theirs.texts == ours.texts
    assert torch.equal(theirs.tokens, ours.tokens)
    assert torch.equal(theirs.finished_mask, ours.finished_mask)
    assert torch.allclose(theirs.logprobs, ours.logprobs, atol=1e-4)
    assert torch.allclose(theirs.entropies, ours.entropies, atol=1e-4)
    assert theirs.sampler_logprobs is None


def test_weights_are_handed_over_whenever_they_have_changed(work, loaded):
    """A tied output head would keep its old weights on a CPU: log-probabilities would be off by nats."""
    before = sample(work, loaded)
    for step in range(3):
        shake(loaded, 0.03, seed=step)
        after = sample(work, loaded)
        assert differences(after).mean() < MEAN
        assert differences(after).max() < LARGEST
        assert after.texts != before.texts
        old = greedy_responses(natively(loaded), work.questions, work.prompts, CONFIG.rollout)
        assert greedy_responses(loaded, work.questions, work.prompts, CONFIG.rollout).texts == old.texts
        before = after


def test_other_weights_than_the_models_stop_the_run(work, loaded):
    sample(work, loaded)
    shake(loaded, 0.3)
    engine = loaded.sampler
    engine._side.take(adapted_weights(loaded.model))
    with torch.no_grad():  # back again, in a way that the model does not notice
        for parameter, kept in zip(loaded.model.parameters(), load_model(CONFIG.model).model.parameters(), strict=True):
            parameter.data = kept.data
    engine._given = tuple((parameter.data_ptr(), parameter._version) for parameter in loaded.model.parameters())
    with pytest.raises(RunError, match=r"differ from the model's by .* vllm.max_mismatch=0.3"):
        sample(work, loaded)
    engine._given = None


def test_equal_seeds_give_equal_responses(work, loaded):
    first, again, other = (sample(work, loaded, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.tokens, again.tokens)
    assert first.texts != other.texts
    groups = [first.texts[i : i + 6] for i in range(0, len(first.texts), 6)]
    assert all(len(set(group)) > 1 for group in groups)  # a group's responses have streams of their own
    starts = {row[:6] for row in map(tuple, first.tokens.tolist())}
    assert len(starts) > 12  # and so have different questions


def test_limits_stop_texts_and_truncation(work, loaded):
    cut = sample(work, loaded, max_new_tokens=5)
    assert cut.tokens.shape[1] == 5
    assert not cut.finished_mask.any()
    stopped = sample(work, loaded, stop=["="])
    assert stopped.finished_mask.any()
    assert all(text.count("=") == ("=" in text) for text in stopped.texts)
    assert any(text.endswith("=") for text in stopped.texts)
    likely = sample(work, loaded, top_k=1)
    greedy = greedy_responses(natively(loaded), work.questions, work.prompts, CONFIG.rollout)
    assert likely.texts == tuple(text for text in greedy.texts for _ in range(6))


def test_frequencies_are_the_models(work, loaded):
    """First tokens of 600 responses to one question against the distribution they should come from."""
    prompt, question = work.prompts[0], work.questions[0]
    rollout = CONFIG.rollout.model_copy(update={"max_new_tokens": 1, "temperature": 1.5})
    drawn = sample_responses(loaded, [question], [prompt], 600, rollout, (3,)).tokens[:, 0]
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([prompt])).logits[0, -1]
    wanted = torch.softmax(logits / 1.5, -1)
    counts = torch.bincount(drawn, minlength=len(wanted)).double() / 600
    assert float((counts - wanted).abs().sum() / 2) < 0.1  # total variation


def test_adapters_come_with_the_weights(work):
    loaded = load_model(CONFIG.model)
    add_adapters(loaded.model, LoraConfig(rank=4), 0)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    loaded = dataclasses.replace(loaded, sampler=work.loaded.sampler)
    adapted = sample(work, loaded)
    assert differences(adapted).mean() < MEAN
    assert adapted.texts != sample(work, natively(loaded.base)).texts
    assert loaded.base.sampler is None  # the anchor answers for itself


def test_a_run_of_five_steps(tmp_path):
    saving = ["steps=5", "checkpoint.every=1", "checkpoint.keep=9", "optim.schedule=constant"]
    overrides = [*saving, "vote.memory=sum", "vote.memory_start=4"]
    run = adapt(tmp_path / "whole", *overrides)
    rows = lines(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        assert row["mismatch/logprob_diff"] < MEAN
        assert row["mismatch/logprob_diff_max"] < LARGEST
        assert row["mismatch/weight"] == pytest.approx(1.0, abs=1e-4)
        assert row["optim/grad_norm"] > 0
    assert json.loads((run / "manifest.json").read_text())["vllm"] == vllm.__version__
    report = (run / "report.html").read_text()
    assert "Sampler and learner" in report
    assert f"vllm {vllm.__version__}" in report
    # vLLM's log-probabilities were the learning model's at every step, and those of no other step's weights.
    saved = sorted((run / "checkpoints").glob("step-*"))
    weights = [load_file(next(folder.glob("*.safetensors"))) for folder in saved]
    assert len(weights) == 5
    for a, b in itertools.pairwise(weights):
        assert max(float((a[name] - b[name]).abs().max()) for name in a) > 1e-4

    again = tmp_path / "killed" / "run"
    with subprocess.Popen(command(again, *overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(lines(again / "metrics.jsonl")) < 3 and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    assert len(lines(again / "metrics.jsonl")) < 5
    finish([sys.executable, "-m", "spinerl.cli", "adapt", "--resume", str(again)])
    for row, other in zip(rows, lines(again / "metrics.jsonl"), strict=True):
        assert {k: v for k, v in row.items() if "time/" not in k} == {
            k: v for k, v in other.items() if "time/" not in k
        }


def test_what_vllm_refuses_is_one_line(tmp_path):
    overrides = command(tmp_path / "run", "vllm.options={bogus: 1}")
    result = subprocess.run(overrides, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert "spinerl: vLLM cannot run model=tiny-reasoner with vllm.options={'bogus': 1}: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_images(tmp_path):
    run = adapt(tmp_path, "model=tiny-vlm", "data=tiny-vqa/shift-a", "steps=3", "model.train_vision=true")
    rows = lines(run / "metrics.jsonl")
    assert len(rows) == 3
    assert all(row["mismatch/logprob_diff_max"] < LARGEST for row in rows)


def test_a_running_server(work, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    config = load_config(overrides=["rollout.sampler=vllm", f"vllm.url={url}", "threads=1", "data=tiny/shift-a"])
    with pytest.raises(InputError, match="does not answer"):
        open_workload(config)
    start = [sys.executable, "-m", "spinerl.engine.vllm", "tiny-reasoner", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(start, stdout=log, stderr=log) as server:
        try:
            assert answers(url, server), (tmp_path / "log").read_text()[-3000:]
            config = config.model_copy(update={"data": CONFIG.data})
            served = open_workload(config).loaded
            first = sample(work, served)
            assert differences(first).mean() < MEAN
            assert torch.equal(first.tokens, sample(work, served).tokens)
            shake(served, 0.03)
            assert differences(sample(work, served)).max() < LARGEST
            theirs = greedy_responses(served, work.questions, work.prompts, config.rollout)
            assert (
                theirs.texts == greedy_responses(natively(served), work.questions, work.prompts, config.rollout).texts
            )
            served.sampler._side._folder = "/nowhere"
            shake(served, 0.01)
            with pytest.raises(InputError, match=r"vllm.folder=/nowhere"):
                sample(work, served)
        finally:
            server.terminate()
            server.wait(60)


def answers(url: str, server: subprocess.Popen) -> bool:
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"{url}/v1/models"):
                return True
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                return False
            time.sleep(1)
    return False


def adapt(folder: Path, *overrides: str) -> Path:
    finish(command(folder / "run", *overrides))
    return folder / "run"


def command(run: Path, *overrides: str) -> list[str]:
    common = ["rollout.sampler=vllm", f"run={run}", "questions_per_step=4", "group_size=4", "guard=off", "threads=1"]
    return [sys.executable, "-m", "spinerl.cli", "adapt", *common, "eval.max_questions=8", *overrides]


def finish(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
