"""The commands as a user types them: what works, and what is refused in one line with nothing written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from spinerl.errors import NonFiniteError
from spinerl.runs import RunFolder
from tests.commands import exit_code

SHORT = ["questions_per_step=2", "group_size=2", "rollout.max_new_tokens=12", "data.max_questions=4", "threads=1"]
SHORT += ["guard=warn"]  # random models never agree, and would not be adapted at all


def run(arguments, capsys) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command."""
    code = exit_code(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def questions(tmp_path) -> Path:
    file = tmp_path / "questions.jsonl"
    rows = [{"question": f"Tom has {i} pens. He buys {i + 2} pens. How many pens does he have?"} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_adapts_any_model_folder_to_any_file(model_folders, questions, tmp_path, capsys):
    code, out, _ = run(
        ["adapt", f"model={model_folders('qwen2')}", f"data={questions}", "steps=2", f"run={tmp_path / 'r'}", *SHORT],
        capsys,
    )
    assert code == 0
    assert "accuracy unknown" in out
    folder = tmp_path / "r"
    names = ("config.yaml", "manifest.json", "metrics.jsonl", "eval.jsonl", "samples.jsonl", "model", "report.html")
    assert all((folder / name).exists() for name in names)
    rows = RunFolder(folder).rows("metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert not any(key.startswith("gold/") for row in rows for key in row)
    for row, counted in zip(rows, RunFolder(folder).rows("tokens.jsonl"), strict=True):  # step 1 and the last
        num_tokens, num_forks = sum(counted["tokens"]), sum(counted["forks"])
        assert (counted["step"], num_tokens) == (row["step"], row["rollout/num_tokens"])
        assert num_forks / num_tokens == pytest.approx(row["fork/fraction"])
        assert num_forks >= sum(word["forks"] for word in counted["words"]) > 0
        followers = sum(word["followers"] for word in counted["followers"])
        assert num_tokens - num_forks >= followers > 0
        assert all(fork <= token for fork, token in zip(counted["forks"], counted["tokens"], strict=True))
    assert all("eval/pass@1" not in row for row in RunFolder(folder).rows("eval.jsonl"))
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert AutoTokenizer.from_pretrained(folder / "model").chat_template
    assert model.config.model_type == "qwen2"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["data"]["num_questions"] == 4
    assert manifest["data"]["num_gold"] == 0


def test_gold_is_used_for_figures_only(tmp_path, capsys):
    """Wrong gold answers change every gold figure and nothing else: not one weight."""
    right = tmp_path / "right.jsonl"
    wrong = tmp_path / "wrong.jsonl"
    texts = [f"Tom has {i} pens. He buys {i + 2} pens. How many pens does he have?" for i in range(4)]
    right.write_text("".join(json.dumps({"question": t, "answer": str(2 * i + 2)}) + "\n" for i, t in enumerate(texts)))
    wrong.write_text("".join(json.dumps({"question": t, "answer": "-7"}) + "\n" for t in texts))
    weights, metrics = [], []
    for file in (right, wrong):
        folder = tmp_path / file.stem
        overrides = ["questions_per_step=4", "group_size=8", "rollout.max_new_tokens=64", "threads=1", "optim.lr=1e-3"]
        code, *_ = run(["adapt", f"data={file}", "steps=2", f"run={folder}", *overrides], capsys)
        assert code == 0
        weights.append((folder / "model" / "model.safetensors").read_bytes())
        metrics.append(RunFolder(folder).rows("metrics.jsonl"))
    assert weights[0] == weights[1]
    assert any(row["optim/grad_norm"] > 0 for row in metrics[0])
    assert all("gold/label_accuracy" in row for rows in metrics for row in rows)
    strip = [[{k: v for k, v in row.items() if k[:5] not in ("gold/", "time/")} for row in rows] for rows in metrics]
    assert strip[0] == strip[1]
    assert all(row["gold/label_accuracy"] == 0 for row in metrics[1])


def test_method_none_only_evaluates(tmp_path, capsys):
    code, out, _ = run(["adapt", "method=none", f"run={tmp_path / 'r'}", "eval.samples=0", *SHORT], capsys)
    assert code == 0
    assert "before" in out
    assert len(RunFolder(tmp_path / "r").rows("eval.jsonl")) == 1
    assert not (tmp_path / "r" / "model").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=ttrl", "rollout.num_votes=4"],
        ["reward=leave-one-out", "advantage.scale=none"],
        ["forks.scope=batch", "band.edges=initial", "band.weight=0.1", "band.shape=squared"],
        ["anchor.weight=0.1", "anchor.estimator=exact", "anchor.scope=all"],
        ["vote.weights=probability"],
        ["optim.epochs=2", "optim.minibatches=2", "loss.normalizer=response", "loss.clip_high=0.3"],
        ["model.dtype=bfloat16", "model.gradient_checkpointing=true"],
        ["vote.tie=random", "vote.min_majority_frac=0.5", "answer.truncated=count"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_option_runs(overrides, tmp_path, capsys):
    code, _, err = run(["adapt", f"run={tmp_path / 'r'}", "steps=2", "eval.samples=0", *SHORT, *overrides], capsys)
    assert code == 0, err
    rows = RunFolder(tmp_path / "r").rows("metrics.jsonl")
    assert len(rows) == 2
    assert all(torch.isfinite(torch.tensor(list(row.values()), dtype=torch.float64)).all() for row in rows)


def test_plugins_by_name(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def reward(vote):\n    return tuple(float(a is not None) for a in vote.answers)\n"
        "def weights(logprobs, entropies, mask):\n    return mask.sum(1).float()\n"
        "def selector(entropies, mask, fraction, scope):\n    return mask & (entropies > 0.1)\n"
    )
    monkeypatch.chdir(tmp_path)
    overrides = [
        "reward=mine:reward",
        "forks.selector=mine:selector",
        "vote.weights=mine:weights",
        "steps=1",
        "run=r",
        "eval.samples=0",
        *SHORT,
    ]
    assert run(["adapt", *overrides], capsys)[0] == 0
    assert (tmp_path / "r" / "report.html").is_file()


def test_a_run_leaves_no_anchor_in_memory_when_its_weight_is_zero(tmp_path, capsys, monkeypatch):
    from spinerl import steering, workload

    loads = []
    real = workload.load_model
    for module in (steering, workload):
        monkeypatch.setattr(module, "load_model", lambda *config: loads.append(1) or real(*config))
    run(["adapt", f"run={tmp_path / 'a'}", "steps=1", "eval.samples=0", *SHORT], capsys)
    assert len(loads) == 1
    run(["adapt", f"run={tmp_path / 'b'}", "steps=1", "eval.samples=0", "anchor.weight=0.1", *SHORT], capsys)
    assert len(loads) == 3


def test_eval_writes_figures_and_predictions(tmp_path, capsys):
    json_file, predictions = tmp_path / "e.json", tmp_path / "p.jsonl"
    arguments = ["eval", "tiny-reasoner", "tiny/in-domain", "data.max_questions=6", "eval.samples=2", "threads=1"]
    code, out, _ = run([*arguments, "--json", json_file, "--predictions", predictions], capsys)
    assert code == 0
    figures = json.loads(json_file.read_text())
    assert {"eval/pass@1", "eval/pass@1_low", "eval/avg@2", "eval/maj@2", "eval/entropy"} <= set(figures)
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(rows) == 6
    assert figures["eval/pass@1"] == sum(row["greedy"]["correct"] for row in rows) / 6
    assert figures["eval/avg@2"] == sum(sum(row["responses_correct"]) for row in rows) / 12
    assert "greedy Pass@1" in out


def test_a_run_folder_is_a_model(tmp_path, capsys):
    run(["adapt", f"run={tmp_path / 'r'}", "steps=1", "eval.samples=0", *SHORT], capsys)
    overrides = ["data.max_questions=2", "eval.samples=0"]
    code, *_ = run(["eval", tmp_path / "r", "tiny/in-domain", "--json", tmp_path / "e.json", *overrides], capsys)
    assert code == 0
    code, *_ = run(
        ["eval", tmp_path / "r" / "model", "tiny/in-domain", "--json", tmp_path / "f.json", *overrides], capsys
    )
    assert code == 0
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("e.json", "f.json"))
    assert first["eval/greedy_length"] == second["eval/greedy_length"]


def test_config_prints_what_adapt_would_use(capsys):
    code, out, _ = run(["config", "method=ttrl", "seed=5"], capsys)
    assert code == 0
    resolved = yaml.safe_load(out)
    assert (resolved["forks"]["selector"], resolved["seed"]) == ("all", 5)
    code, out, _ = run(["config", "--keys"], capsys)
    assert "band.ema_decay" in out


def test_doctor_and_version(capsys):
    code, out, _ = run(["doctor"], capsys)
    assert code == 0, out
    assert "transformers" in out
    assert run(["--version"], capsys)[1].strip()


@pytest.mark.parametrize("command", [[], ["adapt"], ["eval"], ["report"], ["config"], ["doctor"]])
def test_help_everywhere(command, capsys):
    code, out, _ = run([*command, "--help"], capsys)
    assert code == 0
    assert "Usage" in out


def refused(arguments, capsys, *says: str) -> None:
    code, _, err = run(arguments, capsys)
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    for word in says:
        assert word in err


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data=nowhere.jsonl"], ["nowhere.jsonl"]),
        (["data=empty.jsonl"], ["empty.jsonl", "empty"]),
        (["data=blank.jsonl"], ["blank.jsonl"]),
        (["data=broken.jsonl"], ["broken.jsonl", "2"]),
        (["data=twice.jsonl"], ["twice.jsonl", "'a'"]),
        (["data=good.jsonl", "data.columns.question=problem"], ["problem", "question"]),
        (["data=good.jsonl", "data.columns.gold=truth"], ["truth"]),
        (["data=tiny/shift-z"], ["shift-z"]),
        (["model=nomodel"], ["nomodel", "config.json"]),
        (["model=./missing"], ["./missing"]),
        (["model=pickled"], ["pickled", "safetensors"]),
        (["method=spin"], ["spin", "spine"]),
        (["group_size=1"], ["group_size"]),
        (["reward=majorty"], ["majority"]),
        (["reward=nomodule:f"], ["nomodule"]),
        (["forks.selector=top"], ["top-entropy"]),
        (["model.device=cuda:9"], ["cuda:9"]),
        (["prompt.max_tokens=1"], ["prompt.max_tokens"]),
        (["recipe.yaml", "steps=1"], ["recipe.yaml"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_one_line_exit_2_and_writes_nothing(overrides, says, tmp_path, capsys, monkeypatch, model_folders):
    import shutil

    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    Path("blank.jsonl").write_text('{"question": "  "}\n')
    Path("broken.jsonl").write_text('{"question": "a"}\n{"question": \n')
    Path("twice.jsonl").write_text('{"id": "a", "question": "x"}\n{"id": "a", "question": "y"}\n')
    Path("good.jsonl").write_text('{"question": "x"}\n')
    Path("nomodel").mkdir()
    shutil.copytree(model_folders("llama"), "pickled")
    Path("pickled/model.safetensors").unlink()
    torch.save({}, "pickled/pytorch_model.bin")
    before = sorted(tmp_path.rglob("*"))
    refused(["adapt", *overrides, *([] if overrides[0].endswith(".yaml") else ["run=r"])], capsys, *says)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_run_is_not_touched(tmp_path, capsys):
    folder = tmp_path / "r"
    arguments = ["adapt", f"run={folder}", "steps=0", "eval.samples=0", *SHORT]
    assert run(arguments, capsys)[0] == 0
    before = (folder / "eval.jsonl").read_bytes()
    refused(arguments, capsys, "--resume", "--overwrite")
    assert (folder / "eval.jsonl").read_bytes() == before
    assert run([*arguments, "--overwrite"], capsys)[0] == 0


def test_overwrite_spares_a_folder_that_is_no_run(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(["adapt", f"run={tmp_path}", "--overwrite", "steps=0", *SHORT], capsys, "is not a run of spinerl")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_resume_takes_no_other_words(tmp_path, capsys):
    refused(["adapt", "--resume", tmp_path], capsys, "config.yaml")
    refused(["adapt", "steps=3", "--resume", tmp_path], capsys, "--resume")


def test_report_of_no_run(tmp_path, capsys):
    refused(["report", tmp_path], capsys, str(tmp_path))


def test_unknown_option_and_command_exit_2(capsys):
    assert run(["adapt", "--nonsense"], capsys)[0] == 2
    assert run(["adopt"], capsys)[0] == 2


def test_a_full_disk_before_the_run_is_refused(tmp_path, capsys, monkeypatch):
    from spinerl import train

    class Full:
        free = 1000

    monkeypatch.setattr(train.shutil, "disk_usage", lambda _: Full)
    refused(["adapt", f"run={tmp_path / 'r'}", "steps=1", *SHORT], capsys, "free", "checkpoint.keep")
    assert not (tmp_path / "r").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_while_running_is_one_line(tmp_path, capsys, monkeypatch):
    """The log is a link to a device that is always full: the failing write is the system's own."""
    create = RunFolder.create.__func__

    def created(cls, *arguments):
        folder = create(cls, *arguments)
        (folder.path / "samples.jsonl").symlink_to("/dev/full")
        return folder

    monkeypatch.setattr(RunFolder, "create", classmethod(created))
    code, _, err = run(["adapt", f"run={tmp_path / 'r'}", "steps=1", "eval.samples=0", *SHORT], capsys)
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert f"cannot write to {tmp_path / 'r'}: {os.strerror(errno.ENOSPC)}; free some space" in err
    assert "--resume" in err


def test_a_non_finite_loss_stops_before_the_update_and_keeps_the_checkpoint(tmp_path, capsys):
    overrides = ["data.max_questions=4", "questions_per_step=4", "group_size=8", "threads=1", "eval.samples=0"]
    code, _, err = run(
        ["adapt", f"run={tmp_path / 'r'}", "steps=30", "checkpoint.every=1", "optim.lr=1e30", "guard=off", *overrides],
        capsys,
    )
    assert code == NonFiniteError.exit_code == 1
    assert len(err.strip().splitlines()) == 1
    assert "optim.lr" in err
    kept = sorted((tmp_path / "r" / "checkpoints").iterdir())
    assert kept, "the last good checkpoint stays"


def test_module_and_script_are_the_same_program():
    done = subprocess.run([sys.executable, "-m", "spinerl.cli", "config", "nonsense=1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_score_reads_texts_from_elsewhere(tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    rows = [
        {"id": 1, "responses": ["\\boxed{\\frac12}", "The answer is 0.5", "\\boxed{2}"], "gold": "1/2"},
        {"id": 2, "responses": ["(B)", "a dog, so option B"], "kind": "choice"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["score", file, "--json", tmp_path / "o.json"], capsys)[0] == 0
    scored = json.loads((tmp_path / "o.json").read_text())
    assert [row["classes"] for row in scored] == [[0, 0, 1], [0, 0]]
    assert [row["correct"] for row in scored] == [True, None]
    assert run(["score", file, "--json", tmp_path / "o.jsonl"], capsys)[0] == 0
    assert [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()] == scored
    odd = {"id": "9", "kind": "number", "responses": ["The answer is 8. I hope it is helpful!", "I don't know."]}
    (tmp_path / "odd.jsonl").write_text(json.dumps(odd) + "\n")
    _, out, _ = run(["score", tmp_path / "odd.jsonl", "--explain"], capsys)
    assert "9 response 1: 8: cue 'answer is', read from '8'" in out
    assert "9 response 2: no answer: refusal" in out
    refused(["score", tmp_path / "none.jsonl"], capsys, "none.jsonl")


def test_saved_predictions_score_and_compare_without_the_model(tmp_path, capsys):
    overrides = ["data.max_questions=8", "eval.samples=4", "threads=1"]
    files = []
    for seed in (0, 1):
        files.append(tmp_path / f"p{seed}.jsonl")
        arguments = ["eval", "tiny-reasoner", "tiny/shift-a", f"seed={seed}", *overrides, "--predictions", files[-1]]
        assert run([*arguments, "--json", tmp_path / f"e{seed}.json"], capsys)[0] == 0
    evaluated = json.loads((tmp_path / "e0.json").read_text())
    assert run(["score", files[0], "--json", tmp_path / "s.json"], capsys)[0] == 0
    scored = json.loads((tmp_path / "s.json").read_text())
    assert sum(row["correct"] for row in scored) / 8 == evaluated["eval/maj@4"]
    code, out, _ = run(["eval", *files, "--json", tmp_path / "d.json"], capsys)
    assert code == 0
    paired = json.loads((tmp_path / "d.json").read_text())["paired"]
    assert paired["greedy Pass@1"]["difference"] == 0.0, "greedy does not depend on the seed"
    assert paired["avg@k"]["low"] <= paired["avg@k"]["difference"] <= paired["avg@k"]["high"]
    assert "McNemar" in out


def test_base_against_adapted(tmp_path, capsys):
    run(["adapt", f"run={tmp_path / 'r'}", "steps=1", "eval.samples=0", *SHORT], capsys)
    arguments = [
        "eval",
        "tiny-reasoner",
        tmp_path / "r",
        "data=tiny/in-domain",
        "data.max_questions=6",
        "eval.samples=2",
    ]
    code, out, err = run([*arguments, "--json", tmp_path / "d.json"], capsys)
    assert code == 0, err
    figures = json.loads((tmp_path / "d.json").read_text())
    assert figures["paired"]["greedy Pass@1"]["num"] == 6
    assert "difference" in out
    refused(["eval", "tiny-reasoner", tmp_path / "nowhere"], capsys, "nowhere")


def test_data_commands(tmp_path, capsys):
    code, out, _ = run(["data", "list"], capsys)
    assert code == 0
    assert "math-500" in out
    assert "shift-a" in out
    code, out, _ = run(["data", "show", "tiny/shift-a", "-n", "1"], capsys)
    assert code == 0
    assert "<|assistant|>" in out
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "a"}\n{"question": \n')
    code, out, _ = run(["data", "check", bad], capsys)
    assert code == 1
    assert "2" in out
    assert run(["data", "check", "tiny/in-domain"], capsys)[0] == 0


def test_adapters_that_learned_nothing_say_so(questions, model_folders, tmp_path, capsys):
    pytest.importorskip("peft", reason="adapters need the extra spinerl[lora]")
    made, whole = tmp_path / "r", tmp_path / "whole"
    overrides = [
        f"model={model_folders('qwen2')}",
        f"data={questions}",
        "lora.rank=2",
        f"run={made}",
        "steps=1",
        *SHORT,
    ]
    # The guard finds that this random model never agrees with itself, and trains nothing.
    code, out, error = run(["adapt", *overrides, "guard=rollback", "eval.samples=0"], capsys)
    assert code == 0, error
    assert f"the adapters saved in {made / 'model'} learned nothing (all 0)" in out
    code, out, error = run(["merge", made, "--out", whole], capsys)
    assert code == 0, error
    assert "these adapters learned nothing (all 0): the merged model is" in out
    base, merged = (load_file(folder / "model.safetensors") for folder in (model_folders("qwen2"), whole))
    assert all(torch.equal(merged[name], weight) for name, weight in base.items())


def test_adapters_from_adapt_to_merge(questions, model_folders, tmp_path, capsys):
    pytest.importorskip("peft", reason="adapters need the extra spinerl[lora]")
    made, whole = tmp_path / "r", tmp_path / "whole"
    overrides = [f"model={model_folders('qwen2')}", f"data={questions}", "lora.rank=2", "optim.lr=0.05", f"run={made}"]
    overrides += ["checkpoint.every=1"]
    code, _, error = run(["adapt", *overrides, "steps=2", "answer.truncated=count", "band.weight=0.5", *SHORT], capsys)
    assert code == 0, error
    assert {file.name for file in (made / "model").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (made / "model" / "model.safetensors").exists()
    adapters = (made / "model" / "adapter_model.safetensors").read_bytes()
    (made / "checkpoints" / "step-000002" / "model.safetensors").write_bytes(b"damaged")
    assert run(["adapt", "--resume", str(made)], capsys)[0] == 0  # from step 1
    assert (made / "model" / "adapter_model.safetensors").read_bytes() == adapters
    assert run(["merge", str(made), "--out", str(whole)], capsys)[0] == 0
    texts = []
    for name, model in (("adapters", made), ("whole", whole)):
        file = tmp_path / f"{name}.jsonl"
        code, _, error = run(
            [
                "eval",
                str(model),
                str(questions),
                "eval.samples=0",
                "rollout.max_new_tokens=12",
                "--predictions",
                str(file),
            ],
            capsys,
        )
        assert code == 0, error
        texts.append(file.read_text())
    assert texts[0] == texts[1]
    for overrides, says in (
        (["merge", str(made), "--out", str(whole)], "is not empty"),
        (["merge", str(whole), "--out", str(tmp_path / "more")], "holds no adapters"),
    ):
        code, _, error = run(overrides, capsys)
        assert code == 2
        assert says in error


def test_adapters_without_peft_name_the_extra(questions, model_folders, tmp_path, capsys, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else found(name, *rest))
    overrides = [f"model={model_folders('qwen2')}", f"data={questions}", "lora.rank=2", f"run={tmp_path / 'r'}"]
    code, _, error = run(["adapt", *overrides, *SHORT], capsys)
    assert code == 2
    assert "pip install 'spinerl[lora]'" in error
    assert not (tmp_path / "r").exists()


CUT = "no response ended by itself within rollout.max_new_tokens=3; responses end at token 1 ('<|end|>')"


def test_responses_that_never_end_are_questioned_once(tmp_path, capsys):
    overrides = [
        "data.max_questions=4",
        "group_size=2",
        "eval.samples=2",
        "rollout.max_new_tokens=3",
        "guard.questions=4",
    ]
    overrides += ["questions_per_step=2", "threads=1"]
    code, out, error = run(["adapt", *overrides, "steps=2", "guard=warn", f"run={tmp_path / 'r'}"], capsys)
    assert code == 0, error
    assert out.count(CUT) == 1
    assert "name its ending in rollout.stop, or raise rollout.max_new_tokens" in out
    code, _, error = run(["eval", "tiny-reasoner", "tiny/shift-a", *overrides], capsys)
    assert code == 0
    assert error.count(CUT) == 1
    code, _, error = run(["preflight", "tiny-reasoner", "tiny/shift-a", *overrides], capsys)
    assert code == 0
    assert error.count(CUT) == 1
    overrides[3] = "rollout.max_new_tokens=128"
    code, out, error = run(["adapt", *overrides, "steps=1", "guard=warn", f"run={tmp_path / 's'}"], capsys)
    assert code == 0, error
    assert "no response ended" not in out + error


def test_tokens_that_are_cut_on_purpose_are_not_questioned(tmp_path, capsys):
    overrides = [
        "data.max_questions=4",
        "group_size=2",
        "eval.samples=0",
        "questions_per_step=2",
        "threads=1",
        "guard=warn",
    ]
    overrides += ["method=upft", "steps=1", "forks.num_tokens=2", "guard.questions=4", f"run={tmp_path / 'r'}"]
    code, out, error = run(["adapt", *overrides], capsys)
    assert code == 0, error
    assert RunFolder.open(tmp_path / "r").rows("metrics.jsonl")[0]["rollout/truncated_frac"] == 1.0
    assert "no response ended" not in out


def test_data_show_and_check_see_images_as_the_model_does(vision_model_folders, tmp_path, capsys):
    (tmp_path / "long.png").write_bytes(_png((2000, 4)))  # no Qwen-VL takes an image 200 times as long as wide
    (tmp_path / "good.png").write_bytes(_png((60, 40)))
    file = tmp_path / "q.jsonl"
    rows = [{"question": "What is it?", "images": "good.png"}, {"question": "And <image>?", "images": "long.png"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    qwen = f"model={vision_model_folders('qwen2_vl')}"
    code, out, error = run(["data", "show", file, qwen, "-n", "1"], capsys)
    assert code == 0, error
    assert "<|vision_start|><|image_pad|><|vision_end|>What is it?" in out
    assert " tokens" in out
    code, out, _ = run(["data", "show", file, "model=tiny-reasoner"], capsys)
    assert "<image>What is it?" in out
    assert "And <image>?" in out
    code, out, _ = run(["data", "check", file, qwen], capsys)
    assert code == 1
    assert out.splitlines()[2].startswith("error: line 2: the model's processor refuses 1 image(s): ")
    assert len(out.splitlines()) == 3
    code, out, _ = run(["data", "check", file, "model=tiny-reasoner"], capsys)
    assert code == 0
    assert "2 questions show images, and model=tiny-reasoner only reads text" in out


def _png(size):
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()
