"""Everything that a run does, on a device that is not the host: what may wait for it is stated in docs/gpu.md."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine import sampler, update
from spinerl.engine.backend import backend_of
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.engine.update import score
from spinerl.models.loading import Steering, load_model
from spinerl.runs import RunFolder
from spinerl.step import StepState, freeze_targets, trained_rows
from spinerl.train import adapt
from spinerl.types import Question
from tests.rehearsal.device import rehearsal, watch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

ROOT = Path(__file__).parent.parent.parent
TEXTS = ("What is 2 + 3?", "Hi", "A longer question, with more words in it.")
QUESTIONS = tuple(Question(str(i), text) for i, text in enumerate(TEXTS))
STEPS_PER_CHECK = 16


@pytest.fixture(scope="module", autouse=True)
def device():
    with rehearsal():
        yield


def stated() -> set[tuple[str, str]]:
    """(function, kind) of every wait that docs/gpu.md states."""
    table = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").partition("| function | waits |")[2]
    rows = re.findall(r"^\| `([\w.]+)` \| ([\w, ]+) \|", table, re.MULTILINE)
    return {(function, kind.strip()) for function, kinds in rows for kind in kinds.split(",")}


def unstated(seen) -> list[str]:
    """Waits that docs/gpu.md does not state, each once."""
    found = {(wait.stack[0] if wait.stack else "", wait.kind): str(wait) for wait in seen.all}
    return [text for key, text in found.items() if key not in stated()]


def opened(folder, device, *overrides):
    config = load_config(overrides=[f"model={folder}", f"model.device={device}", "model.dtype=float32", *overrides])
    loaded = load_model(config.model, config.engine)
    return config, loaded, [tuple(loaded.tokenizer(text).input_ids) for text in TEXTS]


# ---- the same as on the host ----


@pytest.mark.parametrize(
    ("architecture", "disabled"), [("qwen3", ""), ("qwen3", "shared-prefix"), ("gemma2", ""), ("gpt2", "")]
)
def test_samples_and_scores_what_the_host_does(model_folders, architecture, disabled):
    found = []
    for device in ("cuda", "cpu"):
        config, loaded, prompts = opened(
            model_folders(architecture), device, f"engine.disable=[cpu,{disabled}]".replace(",]", "]"),
            "rollout.max_new_tokens=10", "engine.kv_cache_tokens=100",
        )  # fmt: skip
        loaded = replace(loaded, end_ids=tuple(range(5, 200, 8)))  # rows end, and others take their places
        rollout = sample_responses(loaded, QUESTIONS, prompts, 3, config.rollout, ("r",))
        batch, _, _ = trained_rows(rollout, config.model_copy(update={"group_size": 3}))
        found.append((rollout, score(loaded, batch, batch.mask, config.optim)[0]))
    (ours, scored), (theirs, their_scored) = found
    assert ours.texts == theirs.texts
    assert 0 < ours.finished_mask.sum() < len(ours.finished_mask)
    assert torch.allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
    assert torch.allclose(ours.entropies, theirs.entropies, atol=1e-4)
    assert torch.allclose(scored, their_scored, atol=1e-4)
    assert all(tensor.device.type == "cpu" for tensor in (ours.tokens, ours.logprobs, scored))


def learned(folder, device, *overrides):
    """(figures of two updates, the weights afterwards) from the same responses."""
    config, loaded, prompts = opened(
        folder, device, "engine.disable=[cpu]", "group_size=4", "rollout.max_new_tokens=8", "optim.lr=1e-3",
        "anchor.weight=0.1", "band.weight=0.1", *overrides,
    )  # fmt: skip
    anchor = load_model(config.model, config.engine)
    optimizer = Optimizer(loaded.model.parameters(), config.optim, 2)
    rollout = sample_responses(loaded, QUESTIONS, prompts, 4, config.rollout, ("u",))
    batch, old, entropies = trained_rows(rollout, config)
    rewards = [[1.0, 0.0, 0.0, 1.0]] * len(QUESTIONS)
    targets, _ = freeze_targets(anchor, batch, rewards, old, entropies, config, StepState())
    rows = torch.arange(len(batch.tokens))
    figures = [update.update(loaded, anchor, batch, targets, optimizer, config, rows) for _ in range(2)]
    return figures, {name: p.detach().cpu() for name, p in loaded.model.named_parameters()}


@pytest.mark.parametrize("overrides", [("anchor.estimator=exact",), ("rollout.top_p=0.9", "loss.form=sequence")])
def test_learns_what_the_host_does(model_folders, overrides):
    ours, theirs = (learned(model_folders("qwen3"), device, *overrides) for device in ("cuda", "cpu"))
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-5)
    gaps = [(ours[1][name] - weight).abs().max() for name, weight in theirs[1].items()]
    assert max(gaps) < 1e-4


# ---- waits ----


@pytest.mark.parametrize("how", ["sampled", "greedy", "refilled", "stopping", "steered"])
def test_the_decode_loop_waits_once_in_sixteen_tokens(model_folders, how):
    overrides = ["rollout.max_new_tokens=20", *(["rollout.stop=[zzz]"] if how == "stopping" else [])]
    if how == "refilled":
        overrides = ["rollout.max_new_tokens=17", "engine.kv_cache_tokens=60"]
    config, loaded, prompts = opened(model_folders("qwen3"), "cuda", *overrides)
    if how == "steered":
        others = [opened(model_folders("llama"), "cuda")[1] for _ in range(2)]
        loaded = replace(loaded, steering=Steering(*others, weight=1.0))
    for one in (loaded, *(loaded.steering.models if loaded.steering else ())):
        backend_of(one).settle()  # the self-checks wait much
    checks = 0
    checked = sampler._Loop._check

    def counted(loop, steps):
        nonlocal checks
        checks += 1
        return checked(loop, steps)

    with watch() as seen, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler._Loop, "_check", counted)
        if how == "greedy":
            rollout = greedy_responses(loaded, QUESTIONS, prompts, config.rollout)
        else:
            rollout = sample_responses(loaded, QUESTIONS, prompts, 2, config.rollout, ("w",))
    waits = seen.by_function("engine.sampler._Loop.run")
    assert waits == {("to host", "engine.sampler._Loop._check"): checks}
    assert rollout.mask.any(1).all()
    if how != "refilled":  # all begin together: 20 tokens are two checks, and one more for the tokens not yet counted
        assert rollout.tokens.shape[1] == 20
        assert checks == 3
    assert not unstated(seen)


def test_prompts_that_are_copied_wait_once_a_token(model_folders):
    """transformers looks at the mask, which there is where prompts have unlike lengths."""
    config, loaded, prompts = opened(
        model_folders("qwen3"), "cuda", "rollout.max_new_tokens=4", "engine.disable=[shared-prefix]"
    )
    for chosen, expected in (([0, 1], 3), ([0, 0], 0)):  # the first token comes of the prompts' own pass
        with watch() as seen:
            sample_responses(loaded, QUESTIONS[:2], [prompts[i] for i in chosen], 2, config.rollout, ("w",))
        assert len(seen.under("engine.kv_cache.CopyingDecoder.step")) == expected
        assert not unstated(seen)


def test_an_update_reads_its_figures_and_the_norm_only(model_folders):
    config, loaded, prompts = opened(model_folders("qwen3"), "cuda", "group_size=4", "rollout.max_new_tokens=8")
    optimizer = Optimizer(loaded.model.parameters(), config.optim, 2)
    rollout = sample_responses(loaded, QUESTIONS, prompts, 4, config.rollout, ("u",))
    batch, old, entropies = trained_rows(rollout, config)
    targets, _ = freeze_targets(None, batch, [[1.0, 0.0, 0.0, 1.0]] * 3, old, entropies, config, StepState())
    learn = (loaded, None, batch, targets, optimizer, config, torch.arange(12))
    update.update(*learn)
    with watch() as seen:
        update.update(*learn)
    assert seen.by_function() == {
        ("to host", "engine.update.Terms.figures"): 1,
        ("to host", "engine.optimizer.Optimizer.step"): 1,
        ("to host", "models.weights.all_finite"): 1,
    }
    with watch() as seen:
        score(loaded, batch, batch.mask, config.optim)
    assert seen.by_function() == {("to host", "engine.update._figures_at"): 1}


# ---- planted faults ----


def test_a_copy_planted_in_the_decode_loop_is_noticed(model_folders, monkeypatch, request):
    name = request.node.name
    config, loaded, prompts = opened(model_folders("qwen3"), "cuda", "rollout.max_new_tokens=4")
    step = sampler._Loop._step

    def planted(loop, tokens):
        assert len(tokens.cpu())
        return step(loop, tokens)

    monkeypatch.setattr(sampler._Loop, "_step", planted)
    with watch() as seen:
        sample_responses(loaded, QUESTIONS, prompts, 2, config.rollout, ("w",))
    assert unstated(seen) == [f"to host by _to_copy in rehearsal.test_loop.{name}"]


def test_a_host_tensor_planted_in_the_update_is_refused(model_folders, monkeypatch):
    monkeypatch.setattr(update, "to_device", lambda tensor, _: tensor)
    with pytest.raises(RuntimeError, match="same device"):
        learned(model_folders("qwen3"), "cuda")


# ---- whole runs ----


class Quiet:
    def note(self, *_):
        pass

    phase = tokens = step = evaluation = look = checkpoint = note


RUN = (
    "model.device=cuda", "model.dtype=float32", "data=tiny/in-domain", "data.max_questions=3", "questions_per_step=2",
    "group_size=4", "steps=2", "rollout.max_new_tokens=6", "optim.lr=1e-3", "eval.samples=0", "eval.max_questions=1",
    "answer.truncated=count", "threads=1", "log.sample_every=1", "band.weight=0.1", "guard=off",
)  # fmt: skip
RUNS = {
    "the guard, evaluations": (
        "guard.mode=rollback", "guard.questions=2", "guard.samples=2", "guard.every=1",
        "guard.no_go=0", "band.edges=ema", "eval.samples=2", "eval.every=1",
    ),
    "LoRA in bfloat16, several updates": (
        "lora.rank=4", "anchor.weight=0.1", "model.dtype=bfloat16", "optim.epochs=2", "optim.minibatches=2", "steps=1",
    ),
    "tree rollouts": (
        "method=ettrl-etmr", "tree.bases=-1", "tree.forks=3", "tree.branches=1", "rollout.num_votes=0", "group_size=8",
        "steps=1",
    ),
    "a slow copy that votes": ("vote.memory=ema", "vote.memory_start=2", "vote.slow_decay=0.9"),
    "images": ("model=tiny-vlm", "data=tiny-vqa/shift-a", "model.train_vision=true", "steps=1"),
    "old responses, truncated": ("method=roirl", "rollout.top_p=0.9"),
}  # fmt: skip


def run_with(folder, *overrides, resume=None):
    return adapt(load_config(overrides=[*RUN, *overrides, f"run={folder}"]), Quiet(), resume=resume)


@pytest.mark.parametrize("case", RUNS)
def test_a_run(case, tmp_path, model_folders):
    with watch() as seen:
        run = run_with(tmp_path / "run", f"model={model_folders('qwen3')}", *RUNS[case])
    assert run.manifest["finished"]
    assert run.manifest["device"] == "cuda:0"
    assert run.manifest["engine"]["backend"] == "torch"
    metrics = list(run.rows("metrics.jsonl"))
    assert metrics
    assert all(row["optim/grad_norm"] > 0 for row in metrics)
    assert not unstated(seen)


def test_a_resumed_run_is_the_same(tmp_path, model_folders):
    overrides = [f"model={model_folders('qwen3')}", "model.dtype=bfloat16", "anchor.weight=0.1", "checkpoint.every=1"]
    whole = run_with(tmp_path / "whole", *overrides)
    resumed = tmp_path / "resumed"
    shutil.copytree(whole.path, resumed)
    shutil.rmtree(resumed / "model")
    shutil.rmtree(resumed / "checkpoints" / "step-000002")
    again = run_with(resumed, *overrides, resume=RunFolder.open(resumed))
    weights = [(run.path / "model" / "model.safetensors").read_bytes() for run in (whole, again)]
    assert weights[0] == weights[1]
    metrics = [[row["loss/total"] for row in run.rows("metrics.jsonl")] for run in (whole, again)]
    assert metrics[0] == metrics[1]
    assert len(metrics[0]) == 2
