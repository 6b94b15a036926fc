"""`spinerl init`: the recipe that it writes is read, says what each key means, and runs."""

from __future__ import annotations

import json
import os
import pty
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from spinerl.comparison.keys import leaves
from spinerl.config import describe_keys, load_config
from spinerl.new_recipe import LARGE, begin
from spinerl.schema import recipe_schema
from tests.commands import exit_code


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    (tmp_path / "questions.jsonl").write_text('{"exercise": "1 + 1?", "answer": "2"}\n{"exercise": "2 + 2?"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(arguments, capsys) -> str:
    assert exit_code(["init", "--yes", *arguments]) == 0
    return capsys.readouterr().out


OVERRIDES = [
    [],
    ["method=ttrl", "seed=3"],
    ["data=questions.jsonl", "data.columns.question=exercise", "run=runs/mine", "steps=2"],
    ["model=tiny-vlm", "loss=dapo", "guard=off", "vote.memory=sum", "vote.memory_start=4"],
    ["method=none", "rollout.stop=['#', \"it's\"]", "prompt.template_options={a: [1, {b: null}]}"],
    ["method=prefix-tree", "prompt.system=two\nlines: # of text", "lora.rank=2", "optim.lr=1e-6"],
    ["loss.normaliser=response", "optim.trim=false", "rollout.max_cache_tokens=99"],
    ["engine.disable=[cpu, trim]", "prompt.examples=[{question: a, answer: b}]", "eval.every=2"],
]


@pytest.mark.parametrize("overrides", OVERRIDES, ids=lambda overrides: " ".join(overrides)[:40])
def test_it_resolves_to_what_the_overrides_do_and_is_valid(overrides, capsys):
    made(["r.yaml", *overrides], capsys)
    assert load_config("r.yaml").model_dump() == load_config(overrides=overrides).model_dump()
    text = Path("r.yaml").read_text()
    Draft202012Validator(recipe_schema()).validate(yaml.safe_load(text))
    assert text.startswith("# yaml-language-server: $schema=spinerl.schema.json\n")
    assert json.loads(Path("spinerl.schema.json").read_text()) == recipe_schema()


def test_each_key_stands_under_what_it_means(capsys):
    out = made(["r.yaml", "data=questions.jsonl", "data.columns.question=exercise", "method=ttrl"], capsys)
    assert "2 questions; 1 with gold answers, for figures only; columns exercise, answer; the first: 1 + 1?" in out
    text = Path("r.yaml").read_text()
    comments = " ".join(line.strip().removeprefix("# ") for line in text.splitlines() if line.strip().startswith("#"))
    described = {key: description for key, *_, description in describe_keys()}
    tree = yaml.safe_load(text)
    keys = {key for key, _ in leaves(tree)}
    assert len(keys) >= 13
    assert not [key for key in keys if described[key] not in comments]
    assert "ttrl: majority vote, all tokens, no band (arXiv 2504.16084)" in comments
    assert "tiny-reasoner: qwen3, 851.7 k parameters" in comments
    assert not any(len(line) > 120 for line in text.splitlines())


def test_adapt_runs_it(capsys):
    short = ["steps=1", "questions_per_step=2", "group_size=2", "rollout.max_new_tokens=4", "eval.samples=0",
             "guard=off", "answer.truncated=count", "threads=1", "data.max_questions=2"]  # fmt: skip
    made(["r.yaml", "run=mine", *short], capsys)
    assert exit_code(["config", "r.yaml"]) == 0
    assert exit_code(["adapt", "r.yaml", "--dry-run"]) == 0
    assert exit_code(["adapt", "r.yaml"]) == 0
    assert Path("mine/model/config.json").is_file()


def test_nothing_is_overwritten_unasked(capsys):
    Path("recipe.yaml").write_text("mine: 1\n")
    Path("spinerl.schema.json").write_text('{"title": "another"}')
    assert exit_code(["init", "-y"]) == 2
    assert "recipe.yaml exists" in capsys.readouterr().err
    assert Path("recipe.yaml").read_text() == "mine: 1\n"
    made(["--overwrite"], capsys)
    assert Path("recipe.yaml").read_text().startswith("# Made by `spinerl init`")
    assert Path("spinerl.schema.json").read_text() == '{"title": "another"}'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["r.txt"], "a recipe's name ends in .yaml"),
        (["no/folder/r.yaml"], "its folder does not exist"),
        (["r.yaml", "metod=x"], 'did you mean "method"'),
        (["r.yaml", "data=nowhere.jsonl"], "there is no such file"),
        (["r.yaml", "data=questions.jsonl"], "set data.columns.question"),
        (["r.yaml", "model=./nowhere"], "no such folder or file"),
        (["r.yaml", "method=spin"], 'did you mean "spine"'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_refused_with_nothing_written(arguments, said, place, capsys):
    before = sorted(place.iterdir())
    assert exit_code(["init", *arguments]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(place.iterdir()) == before


def test_a_large_model_gets_adapters(capsys):
    """Its size is in its name where its files are on the hub, which the tests cannot reach."""
    out = made(["r.yaml", "model=Qwen/Qwen3-8B"], capsys)
    assert "not looked at" in out
    config = load_config("r.yaml")
    assert (config.lora.rank, config.optim.lr) == (16, 2e-5)
    comments = " ".join(Path("r.yaml").read_text().split())
    assert "all 8 B weights would take about 176 GB" in comments
    made(["s.yaml", "model=Qwen/Qwen3-8B", "lora.rank=0"], capsys)
    assert load_config("s.yaml").lora.rank == 0
    made(["t.yaml", "model=Qwen/Qwen3-1.7B"], capsys)
    assert load_config("t.yaml").lora.rank == 0
    assert LARGE > 1.7e9


def test_answers_are_asked_for_until_they_can_be_used():
    """In the order: model, data, the column of its questions, method."""
    answers = iter(["./nowhere", "", "nowhere.jsonl", "questions.jsonl", "exercise", "spin", "ttrl"])
    asked, said = [], []

    def ask(question: str) -> str:
        asked.append(question)
        return next(answers)

    draft = begin(["seed=2"], said.append, ask)
    assert [question.partition(":")[0] for question in asked[:4]] == ["model", "model", "data", "data"]
    assert "which of its columns has the questions: exercise, answer?" in asked[4]
    config = draft.config
    assert (config.model.name, config.data.name, config.data.columns.question, config.method, config.seed) == (
        "tiny-reasoner", "questions.jsonl", "exercise", "ttrl", 2,
    )  # fmt: skip
    assert any("no such folder or file" in line for line in said)
    assert any('did you mean "spine"' in line for line in said)
    begin(["model=tiny-vlm", "data=tiny/shift-a", "method=ttrl"], said.append, lambda _: pytest.fail("nothing is open"))


def test_in_a_terminal(monkeypatch, capsys):
    terminal, ours = pty.openpty()
    with (
        open(ours, encoding="utf-8") as stdin,
        open(os.dup(ours), "w", encoding="utf-8") as stdout,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        os.write(terminal, b"\nttrl\n")  # the model as it is, the method
        assert exit_code(["init", "data=tiny/shift-a"]) == 0
        os.write(terminal, b"\x04")  # no answer
        assert exit_code(["init", "other.yaml"]) == 2
    seen = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert "model: a hub name, a folder or a GGUF file [tiny-reasoner]" in seen
    assert "recipe: recipe.yaml" in seen
    assert load_config("recipe.yaml").method == "ttrl"
    assert "the input ended before all was answered: nothing was written" in capsys.readouterr().err
    assert not Path("other.yaml").exists()
