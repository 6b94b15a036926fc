"""What one imports: the names, the examples as written, and that a model in memory is as good as its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import spinerl
from spinerl.cli import main
from spinerl.errors import InputError
from spinerl.tiny import model_path

ROOT = Path(__file__).parents[2]
ROWS = [{"id": f"q{i}", "question": f"What is {i} + 2?", "answer": str(i + 2)} for i in range(4)]
SHORT = {
    "steps": 2, "questions_per_step": 2, "group_size": 3, "rollout": {"max_new_tokens": 24}, "eval.samples": 0,
    "guard": "off", "threads": 1, "checkpoint": {"every": 1},
}  # fmt: skip


def test_the_names_one_imports():
    assert spinerl.__all__ == [
        "Config", "Question", "Run", "Vote", "__version__", "adapt", "compare", "evaluate", "load_config",
        "preflight", "vote",
    ]  # fmt: skip
    for name in spinerl.__all__:
        assert getattr(spinerl, name) is not None
    with pytest.raises(AttributeError, match="adopt"):
        spinerl.adopt  # noqa: B018


def test_importing_reads_no_torch_and_no_module_takes_a_functions_name():
    code = (
        "import sys, spinerl; assert 'torch' not in sys.modules, 'torch'; spinerl.vote(['1']); "
        "assert 'torch' not in sys.modules, 'a vote'; import spinerl.comparison, spinerl.evaluation; "
        "assert callable(spinerl.compare) and callable(spinerl.evaluate) and callable(spinerl.adapt)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs_as_written_from_an_empty_folder(example, tmp_path):
    done = subprocess.run(
        [sys.executable, example], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = {
        "adapt": "report: mine/report.html", "evaluate": "greedy Pass@1: ", "own_reward": "reward: [",
        "votes": "label: 0.5, 60% of all responses",
    }  # fmt: skip
    assert said[example.stem] in done.stdout
    assert example.read_text().count("\n") <= 20


def test_a_model_in_memory_learns_in_place_and_as_its_folder_does(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_path())
    before = {name: p.clone() for name, p in model.named_parameters()}
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    given = {**SHORT, "anchor.weight": 0.05, "vote.tie": "first"}
    mine = spinerl.adapt(model, ROWS, tokenizer=tokenizer, run=tmp_path / "mine", **given)
    read = spinerl.adapt("tiny-reasoner", ROWS, run=tmp_path / "read", **given)
    assert mine.model is model
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    for a, b in zip(model.parameters(), read.model.parameters(), strict=True):
        assert torch.equal(a, b)
    saved = load_file(tmp_path / "mine" / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in model.named_parameters() if name in saved)
    assert [row["step"] for row in mine.metrics] == [1, 2]
    assert mine.before.metrics["eval/pass@1"] == read.before.metrics["eval/pass@1"]
    assert [row["id"] for row in mine.after.predictions] == ["q0", "q1", "q2", "q3"]
    assert mine.folder == tmp_path / "mine"
    questions = [json.loads(line) for line in (tmp_path / "mine" / "questions.jsonl").read_text().splitlines()]
    assert questions == ROWS
    with pytest.raises(SystemExit) as ended:  # and the folder is a run like any other
        main(["adapt", "--resume", str(tmp_path / "read")])
    assert not ended.value.code


def test_callbacks_hear_and_threads_are_put_back():
    class Ear:
        def __init__(self):
            self.heard = []

        def on_step(self, metrics):
            self.heard.append(("step", metrics["step"]))

        def on_evaluation(self, metrics):
            self.heard.append(("evaluation", metrics["step"]))

        def on_checkpoint(self, folder):
            assert (folder / "model.safetensors").is_file()
            self.heard.append(("checkpoint", folder.name))

    class Half:
        steps = 0

        def on_step(self, metrics):
            Half.steps += metrics["step"]

    ear = Ear()
    torch.set_num_threads(2)
    run = spinerl.adapt("tiny-reasoner", ["What is 2 + 3?", "What is 4 + 4?"], callbacks=[ear, Half()], **SHORT)
    assert torch.get_num_threads() == 2
    assert ear.heard == [
        ("evaluation", 0), ("step", 1), ("checkpoint", "step-000001"), ("step", 2), ("evaluation", 2),
        ("checkpoint", "step-000002"),
    ]  # fmt: skip
    assert Half.steps == 3
    assert run.folder is None
    assert "eval/pass@1" not in run.after.metrics  # texts have no gold answers


def test_a_reward_of_ones_own_sees_texts_and_lengths():
    seen = []

    def reward(vote, *, texts, num_tokens, question):  # noqa: ARG001
        seen.append((question.id, texts, num_tokens))
        return [float(n) for n in num_tokens]

    run = spinerl.adapt("tiny-reasoner", ROWS, reward=reward, **SHORT)
    assert len(seen) == 4
    assert all(len(texts) == len(lengths) == 3 for _, texts, lengths in seen)
    assert run.metrics[0]["reward/mean"] == pytest.approx(sum(seen[0][2] + seen[1][2]) / 6)


def test_evaluate_and_compare():
    found = spinerl.evaluate("tiny-reasoner", ROWS, samples=2, **{"rollout.max_new_tokens": 24})
    assert found.metrics["num_gold"] == 4
    assert len(found.predictions[0]["responses"]) == 2
    paired = spinerl.compare(found, found)
    assert set(paired) == {"greedy Pass@1", "avg@k", "maj@k"}
    assert paired["avg@k"].difference == 0.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: spinerl.adapt("tiny-reasoner", []), "empty list"),
        (lambda: spinerl.adapt("tiny-reasoner", [3]), "texts or dicts"),
        (lambda: spinerl.adapt("tiny-reasoner", ROWS, stepz=3), "steps"),
        (lambda: spinerl.adapt("tiny-reasoner", ROWS, steps=object()), "plain values"),
        (lambda: spinerl.adapt("tiny-reasoner", ROWS, tokenizer=object()), "has its own"),
        (lambda: spinerl.adapt(torch.nn.Linear(1, 1), ROWS), "needs its tokenizer"),
        (lambda: spinerl.adapt("tiny-reasoner", ROWS, callbacks=[3]), "on_step"),
        (lambda: spinerl.adapt("tiny-reasoner", ROWS, run="taken"), "not empty"),
        (lambda: spinerl.adapt("tiny-reasoner", ROWS, run="new", method="spin"), "spine"),
        (lambda: spinerl.adapt("tiny-reasoner", "nothing.jsonl"), "nothing.jsonl"),
        (lambda: spinerl.vote(["1"], kind="numbr"), "number"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_before_anything_is_written(call, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(InputError, match=said):
        call()
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
