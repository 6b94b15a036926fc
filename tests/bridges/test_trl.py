"""The TRL bridge: one loss and one gradient, whatever the processes, micro-batches and sharding."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spinerl.config import load_config
from spinerl.errors import InputError
from spinerl.methods import METHODS
from spinerl.models.loading import load_model
from spinerl.types import Batch, Question
from tests.bridges.scene import ROOT, TEXTS, apart, launch, native, write_neighbour
from tests.models import compute_norms_in_float64

pytest.importorskip("trl", reason="the bridge needs the extra trl")
trl_bridge = importlib.import_module("spinerl.bridges.trl")

WORKER = Path(__file__).with_name("worker.py")

COMMON = (
    "steps=1 questions_per_step=3 group_size=8 prompt.instruction= data.order=sequential rollout.max_new_tokens=60 "
    "rollout.temperature=0.9 optim.micro_batch_rows=4 optim.max_grad_norm=0 guard=off checkpoint.every=0 "
    "model.device=cpu"
)
CASES = {
    "the batch's forks": "forks.scope=batch band.weight=0.3 anchor.weight=0.2 anchor.scope=all entropy.weight=0.05",
    "float64, exact anchor": "band.weight=0.3 anchor.weight=0.2 anchor.estimator=exact",
    "float64, squared band": "band.weight=0.3 band.shape=squared anchor.weight=0.2 anchor.estimator=k2",
    "initial edges": "band.weight=0.3 band.edges=initial loss.normalizer=response advantage.entropy=reshape",
    "more votes than trained": "group_size=4 rollout.num_votes=8 vote.weights=probability band.weight=0.1",
    "all tokens": "method=ttrl",
    "as printed": (
        "loss.normalizer=response-tokens band.weight_low=0.1 band.weight_high=0.4 anchor.weight=0.2 loss.clip_high=0.3"
    ),
    "second version": "method=spine-v2 band.weight=0.3",
    "leave one out, by prefixes": "method=tempo reward=leave-one-out loss=dr-grpo",
    # One row at a time, and "c" has no label: some processes have nothing to learn from in some passes.
    "idle passes": "method=ttrl vote.min_majority_frac=0.45 optim.micro_batch_rows=1",
    "several updates": (
        "method=spine-no-band loss=gspo loss.clip_low=0.1 loss.clip_high=0.1 optim.minibatches=3 optim.epochs=2 "
        "optim.lr=0.02 optim.eps=0.01 optim.weight_decay=0.1 optim.micro_batch_rows=2"
    ),
}


def opened(config, folder, dtype):
    loaded = load_model(config.model.model_copy(update={"name": str(folder)}))
    loaded.model.to(dtype)
    if dtype == torch.float64:
        compute_norms_in_float64(loaded.model)
    return loaded


@pytest.fixture(scope="module")
def compared(tmp_path_factory, model_folders):
    """Per case: the native engine's losses and gradients, and those found on one process and on two."""
    folder = tmp_path_factory.mktemp("trl")
    policy_folder, anchor_folder = model_folders("qwen2"), folder / "anchor"
    config = load_config(overrides=[f"model={policy_folder}"])
    other = load_model(config.model, config.engine)
    write_neighbour(other, anchor_folder)
    cases, expected = {}, {}
    for name, overrides in CASES.items():
        dtype = torch.float64 if "float64" in name else torch.float32
        overrides = [f"model={policy_folder}", f"run={folder / 'run'}", *COMMON.split(), *overrides.split()]
        config = load_config(overrides=overrides)
        policy = opened(config, policy_folder, dtype)
        anchor = opened(config, anchor_folder, dtype)
        questions = tuple(Question(name, text, answer_kind="number") for name, text in TEXTS.items())
        prompts = tuple(tuple(policy.tokenizer(text).input_ids) for text in TEXTS.values())
        ours = native(config, policy, anchor, questions, prompts)
        expected[name] = (ours.votes, ours.losses, ours.gradients)
        simple = config.anchor.estimator != "exact" and config.optim.minibatches == 1
        cases[name] = {
            "overrides": overrides,
            "dtype": dtype,
            "model": str(policy_folder),
            "anchor": str(anchor_folder),
            "questions": questions,
            "prompts": prompts,
            "said": [(prompt, list(ids)) for prompt, ids in ours.said],
            "batch": ours.batch,
            "targets": ours.targets,
            "parts": (12 if "idle" in name else 3) if simple else 0,
        }
    torch.save(cases, folder / "cases.pt")
    found = {}
    for world in (1, 2):
        done = launch(world, str(WORKER), str(folder))
        assert done.returncode == 0, done.stderr[-3000:]
        found[world] = torch.load(folder / f"found-{world}.pt", weights_only=False)
    return expected, found


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_the_bridge_has_the_native_engines_loss_and_gradient(compared, name, world):
    expected, found = compared
    _, losses, gradients = expected[name]
    seen = found[world][name]["bridge"]
    assert seen["world"] == world
    assert seen["wrapped"] == ("DistributedDataParallel" if world == 2 else "Qwen2ForCausalLM")
    assert seen["micros"] > 1
    tolerance = 1e-9 if "float64" in name else 1e-5
    assert len(seen["losses"]) == len(losses) == len(seen["gradients"])
    for number, loss in enumerate(losses):
        reported, noted = seen["losses"][number]
        difference = apart(seen["gradients"][number], gradients[number])
        print(f"{name}, {world}, update {number + 1}: loss {abs(noted - loss):.1e}, gradient {difference:.1e}")
        slack = 10 if number else 1  # later updates begin where the rounding of those before left the weights
        assert noted == pytest.approx(loss, rel=tolerance * slack, abs=tolerance / 10)
        assert reported == pytest.approx(loss, rel=1e-5 * slack, abs=1e-6)  # TRL keeps it in float32
        assert difference < tolerance * slack


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if "exact" not in name and "several" not in name])
def test_sharded_weights_have_the_same_loss_and_gradient(compared, name):
    expected, found = compared
    _, losses, gradients = expected[name]
    seen = found[2][name]["sharded"]
    assert (seen["world"], seen["kinds"], seen["micros"]) == (2, {"DTensor"}, 12 if "idle" in name else 3)
    tolerance = 1e-9 if "float64" in name else 1e-5
    difference = apart(seen["gradients"], gradients[0])
    print(f"{name}, sharded: loss {abs(seen['loss'] - losses[0]):.1e}, gradient {difference:.1e}")
    assert seen["loss"] == pytest.approx(losses[0], rel=tolerance, abs=tolerance / 10)
    assert difference < tolerance


@pytest.mark.slow
def test_the_vote_sees_groups_whole_that_are_split_over_processes(compared):
    expected, found = compared
    votes = expected["the batch's forks"][0]
    assert [vote.pseudo_label for vote in votes] == ["5", "7", "1"]
    whole = [vote.classes[:4].count(vote.winner) for vote in votes]
    assert whole[1] == 1  # the half on the first process would have voted for 8
    seen = found[2]["the batch's forks"]["bridge"]
    assert (seen["per_device"], seen["local_rows"]) == (4, 12)  # one and a half groups of eight
    for world in (1, 2):
        noted = found[world]["the batch's forks"]["bridge"]["figures"]
        assert noted["label/majority_frac"] == pytest.approx(sum(vote.majority_frac for vote in votes) / 3)
        # 4 of 8 say 5; 4 say 7, one of them unheard as it was cut off; 3 say 1
        assert noted["reward/mean"] == pytest.approx((4 + 4 + 3) / 24)


RUN = (
    "steps=3 data.max_questions=8 questions_per_step=3 group_size=8 rollout.max_new_tokens=48 optim.micro_batch_rows=4"
)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_of_the_bundled_model(world, tmp_path):
    run = tmp_path / "run"
    overrides = [f"run={run}", "data=tiny/shift-a", "anchor.weight=0.1", "checkpoint.every=2", *RUN.split()]
    done = launch(world, "-m", "spinerl.bridges.trl", "configs/demo.yaml", *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert sorted(line for line in lines if "process" in line) == [
        f"spinerl: process {rank + 1} of {world} on cpu" for rank in range(world)
    ]
    assert sum("without a guard" in line for line in lines) == 1
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["rollout/num_responses"] == 24
        assert 0 <= row["label/majority_frac"] <= 1
        assert row["grad_norm"] > 0
        assert row["loss/log_ratio_max"] < 1e-4  # the first update of each rollout
    assert rows[0]["loss/anchor"] == pytest.approx(0, abs=1e-6)
    assert rows[2]["loss/anchor"] > 1e-6
    before, after = (load_model(load_config(overrides=[f"model={m}"]).model) for m in ("tiny-reasoner", run / "model"))
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True)
    ]
    assert max(moved) > 1e-4
    assert (run / "checkpoint-2").is_dir()
    assert f"spinerl eval tiny-reasoner {run / 'model'} data=tiny/shift-a" in lines[-1]


REFUSED = {
    "rollout.stop=[x]": "rollout.stop",
    "tree.bases=-1 tree.forks=1": "tree.bases",
    "stream.on=true": "stream.on",
    "guard=stop": "guard.mode",
    "eval.every=5": "eval.every",
    "log.sample_every=1": "log.sample_every",
    "optim.head_chunk=7": "optim.head_chunk",
    "model.train_vision=true": "model.train_vision",
    "model.device=cuda:1": "model.device",
    "data.order=easy-to-hard": "data.order",
    "method=grpo-gold": "reward",
    "method=evol": "reward",
    "method=cat": "reward",
    "method=none": "steps",
    "reward=majorty": "majority",
    "vote.memory=sum": "vote.memory",
    "vote.views=[reread]": "vote.views",
    "vote.weights=margin": "margins",
    "method=scpo": "loss.form=dpo",
    "anchor.fisher=1": "anchor.fisher",
    "questions_per_step=5 group_size=3 optim.minibatches=2": "optim.minibatches",
    "trl.learning_rate=1": "optim.lr",
    "trl.top_entropy_quantile=0.2": "forks.fraction",
    "trl.reward_weights=[2]": "trl.reward_weights",
    "trl.vllm_importance_sampling_correction=true": "trl.vllm_importance_sampling_correction",
    "trl.use_vlm=true": "use_vllm",
    "trl.deepspeed=zero3.json model.device=cpu": "trl.deepspeed",
    "steps": "key=value",
    "missing.yaml": "missing.yaml",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_cannot_be_honoured_is_refused_in_one_line(overrides, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        trl_bridge.main(overrides.split() if overrides.endswith(".yaml") else ["data=tiny/shift-a", *overrides.split()])
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert printed.startswith("spinerl: ")
    assert printed.count("\n") == 1
    assert REFUSED[overrides] in printed
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_not_touched(tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(SystemExit):
        trl_bridge.main([f"run={tmp_path}"])
    assert f"run={tmp_path}" in capsys.readouterr().err


def test_adapters_are_to_be_merged_first(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny-reasoner"}')
    with pytest.raises(SystemExit):
        trl_bridge.main([f"model={tmp_path}", f"run={tmp_path / 'run'}"])
    assert "spinerl merge" in capsys.readouterr().err


def test_every_method_is_either_honoured_or_refused():
    refused = set()
    for name in METHODS:
        try:
            trl_bridge.check_config(load_config(overrides=[f"method={name}"]))
        except InputError:
            refused.add(name)
    fine_tuning = {"lmsi", "sealong", "roirl", "upft"}  # they reuse responses
    others = {"ettrl-etmr", "evol", "self-certainty", "cat", "grpo-gold", "none", "spine-memory", "ttc-rl"}
    others |= {"self-harmony", "permuted-ttrl", "compass", "scope", "co-rewarding-ii", "petal", "exploration", "bitta"}
    others |= {"scpo", "eata-fisher", "ttadapt", "tt-si", "self-calibration"}
    assert refused == others | fine_tuning


def test_rows_are_dealt_whole_and_in_equal_numbers_of_parts():
    lengths = torch.tensor([5, 1, 4, 2, 3, 6, 2])
    batch = Batch(((1, 2),) * 7, torch.zeros(7, 6, dtype=torch.int64), torch.arange(6) < lengths.unsqueeze(1), 1.0)
    dealt = trl_bridge.deal_rows(torch.tensor([0, 1, 2, 3, 5, 6]), batch, 2, 4)
    assert [len(own) for own in dealt] == [4, 4]
    assert sorted(row for own in dealt for part in own for row in part.tolist()) == [0, 1, 2, 3, 5, 6]


def without_trl(code: str) -> subprocess.CompletedProcess[str]:
    lines = "import sys; sys.modules['trl'] = None; " + code
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False, cwd=ROOT)


def test_without_the_extra_only_the_bridge_is_missing():
    done = without_trl("import spinerl, spinerl.bridges; import spinerl.bridges.trl")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "spinerl.errors.MissingExtraError: trl is not installed: pip install 'spinerl[trl]'"
    )
    done = without_trl("import runpy; runpy.run_module('spinerl.bridges.trl', run_name='__main__')")
    assert done.returncode == 2
    assert done.stderr == "spinerl: trl is not installed: pip install 'spinerl[trl]'\n"
