"""Run folders of any name, and paths that are relative: every command works, or refuses in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from spinerl.config import dump_yaml, load_config, override
from spinerl.files import quoted
from spinerl.paths import absolute_paths
from spinerl.runs import RunFolder
from spinerl.tiny import model_path
from tests.faults.test_run_folder import KEYS, contents, run_command
from tests.report.synthetic import write_run

NAMES = {
    "emoji": "run 🦔",
    "quotes": """it's "one" `x` $HOME""",
    "signs": "#1? 50% & more!",
    "brackets": "[bold]x[/bold] [/] {y} (z)",
    "tags": "<script>alert(1)<\\script>",
    "newline": "two\nlines",
    "escape": "\x1b[31mred\x07",
    "separator": "a\u2028b\x85c\u202ed",
    "trailing dots": "run...",
    "trailing space": " run ",
    "like a number": "2024",
    "like null": "null ",
    "like YAML": "a: b #c",
    "dash": "-rf",
    "dashes": "--help",
    "255 bytes": "n" * 255,
    "255 bytes of others": "ü" * 127 + "n",
}


def write_finished(folder: Path) -> Path:
    """A run as `spinerl adapt` writes it, made up."""
    write_run(folder, steps=2, every=2)
    return folder


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_configuration_and_a_run_folder_keep_their_name(tmp_path, name):
    path = str(tmp_path / name)
    config = load_config(overrides=[override("run", path)])
    assert config.run == path
    run = RunFolder.create(config)
    assert run.config.run == path
    run.unlock()
    (tmp_path / "copy.yaml").write_bytes(dump_yaml(config).encode())
    assert load_config(tmp_path / "copy.yaml").run == path


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_report_of_a_run_of_any_name(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_finished(tmp_path / name)
    code, printed = run_command(["report", "--", name], capsys)
    assert code == 0, printed
    page = (tmp_path / name / "report.html").read_text()
    assert page.count("<script") == 1
    code, printed = run_command(["report", "--out", f"{name[:40]}.html", "--", name], capsys)
    assert code == 0, printed


@pytest.mark.parametrize("name", ["-[bold]x[/bold] [/] 🦔\n#%?", "n" * 255], ids=["odd", "long"])
def test_a_run_of_any_name_is_made_resumed_evaluated_and_reported(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    code, printed = run_command(["adapt", *KEYS, "steps=1", override("run", name)], capsys)
    assert code == 0, printed
    assert RunFolder(tmp_path / name).config.run == str(tmp_path / name)
    for arguments in (
        ["adapt", "--resume", name],
        ["eval", f"./{name}", "tiny/shift-a", "data.max_questions=2", "eval.samples=0", "rollout.max_new_tokens=4"],
        ["report", "--", name],
        ["select", "--json", "ranks.json", "--", name],
    ):
        code, printed = run_command(arguments, capsys)
        assert code == 0, printed
    assert json.loads((tmp_path / "ranks.json").read_text())[0]["run"] == name


UNDECODABLE = os.fsdecode(b"run-\xff")
REFUSED = {
    "no UTF-8": (["adapt", "steps=0", f"run={UNDECODABLE}"], "is not UTF-8 text"),
    "too long": (["adapt", "steps=0", f"run={'n' * 256}"], "File name too long"),
    "too long within": (["adapt", "steps=0", f"run={'a/' * 100}{'b' * 300}"], "File name too long"),
    "a file": (["adapt", "steps=0", "run=file"], "run=file is a file; choose another run=FOLDER"),
    "in a file": (["adapt", "steps=0", "run=file/run"], "Not a directory"),
    "a pipe": (["adapt", "steps=0", "run=pipe"], "run=pipe is a named pipe"),
    "a broken link": (["adapt", "steps=0", "run=broken"], "run=broken is a broken symbolic link"),
    "a loop": (["adapt", "steps=0", "run=loop"], "run=loop is a broken symbolic link"),
    "resume too long": (["adapt", "--resume", "n" * 256], "File name too long"),
    "resume nothing": (["adapt", "--resume", "gone"], "is not a run folder: it has no config.yaml"),
    "resume a pipe": (["adapt", "--resume", "pipe"], "is not a run folder"),
    "resume what has no UTF-8": (["adapt", "--resume", UNDECODABLE], "is not a run folder"),
    "report too long": (["report", "n" * 256], "File name too long"),
    "report a file": (["report", "file"], "is not a run folder: it is a file"),
    "report a loop": (["report", "loop"], "is not a run folder: it is a broken symbolic link"),
    "report into nothing": (["report", "run", "--out", "file/x.html"], "cannot write file/x.html"),
    "report to a name too long": (["report", "run", "--out", f"{'n' * 256}.html"], "File name too long"),
    "eval too long": (["eval", "n" * 300, "tiny/shift-a"], "n" * 300),
    "eval a run without a model": (["eval", "run", "tiny/shift-a"], "model=run: this run has no model yet"),
    "data too long": (["eval", "tiny-reasoner", f"./{'n' * 300}.jsonl"], "File name too long"),
    "score too long": (["score", f"{'n' * 300}.jsonl"], "File name too long"),
    "json in nothing": (["score", "file", "--json", "gone/x.json"], "its folder does not exist"),
    "config too long": (["config", f"{'n' * 300}.yaml"], "does not exist; give a YAML file"),
    "compare in a file": (["compare", "out=file", "steps=1"], "out=file cannot be written"),
    "select nothing": (["select", "gone"], "no such folder"),
    "predictions into a folder": (["eval", "tiny-reasoner", "tiny/shift-a", "--predictions", "run"], "is a folder"),
    "predictions into a pipe": (["eval", "tiny-reasoner", "tiny/shift-a", "--predictions", "pipe"], "is a named pipe"),
    "export too long": (["export", "verl", "--out", "n" * 300], "File name too long"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, capsys, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    os.mkfifo("pipe")
    Path("broken").symlink_to("gone")
    Path("loop").symlink_to("loop")
    write_finished(Path("run"))
    before = contents(tmp_path)
    arguments, line = REFUSED[case]
    code, printed = run_command(arguments, capsys)
    assert (code, line in printed) == (2, True), printed
    assert printed.startswith("spinerl: ")
    assert contents(tmp_path) == before


def test_a_run_begun_with_relative_paths_goes_on_in_another_folder(tmp_path, capsys, monkeypatch):
    """The data, the model, the gold answers and the recipe are found again."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    shutil.copytree(model_path("tiny-reasoner"), "model")
    questions = [{"id": f"q{i}", "question": f"What is {i} + 2?"} for i in range(4)]
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    Path("gold.jsonl").write_text("".join(json.dumps({"id": f"q{i}", "answer": str(i + 2)}) + "\n" for i in range(4)))
    Path("recipe.yaml").write_text("data: questions.jsonl\nmodel: ./model\n")
    arguments = ["adapt", "recipe.yaml", *KEYS, "guard=off", "data.gold=gold.jsonl", "steps=1", "run=run"]
    code, printed = run_command(arguments, capsys)
    assert code == 0, printed
    weights = (here / "run" / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(here / "run" / "model")
    monkeypatch.chdir(there)
    code, printed = run_command(["adapt", "--resume", "../here/run"], capsys)
    assert code == 0, printed
    assert (here / "run" / "model" / "model.safetensors").read_bytes() == weights
    assert list(there.iterdir()) == []
    assert "Questions" in (here / "run" / "report.html").read_text()
    assert "questions.jsonl on" not in printed


def test_which_values_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "images", "math-500", "tiny"):
        Path(name).mkdir()
    for name in ("q.jsonl", "set.yaml", "target.jsonl"):
        Path(name).write_text("hub: a/b\n")
    given = {
        "model": "model", "data": {"name": "q.jsonl", "gold": "g.jsonl", "image_folder": "images", "path": "x/y",
        "target": "target.jsonl"}, "reward": "mine/own.py:brief", "vote": {"weights": "package.module:weigh"},
    }  # fmt: skip
    found = absolute_paths(load_config(given))
    inside = {key: str(tmp_path / name) for key, name in {"name": "q.jsonl", "gold": "g.jsonl", "path": "x/y"}.items()}
    assert {key: getattr(found.data, key) for key in inside} == inside
    assert found.data.image_folder == str(tmp_path / "images")
    assert found.data.target == str(tmp_path / "target.jsonl")
    assert found.model.name == str(tmp_path / "model")
    assert found.reward == f"{tmp_path}/mine/own.py:brief"
    assert found.vote.weights == "package.module:weigh"
    for name in (
        "math-500",
        "tiny/shift-a",
        "owner/name",
        "gone.jsonl",
    ):  # known sets, the hub's, and what is not there
        assert absolute_paths(load_config({"data": name})).data.name == name
    assert absolute_paths(load_config({"data": "set.yaml"})).data.name == str(tmp_path / "set.yaml")
    assert absolute_paths(load_config({})).model.name == "tiny-reasoner"
    (tmp_path / "m.gguf").touch()
    more = absolute_paths(load_config(overrides=["model=m.gguf", "vote.views=[views.py:ask,reread]"]))
    assert more.model.name == str(tmp_path / "m.gguf")
    assert more.vote.views == [f"{tmp_path / 'views.py'}:ask", "reread"]
    assert absolute_paths(found) == found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "'a b'"),
        ("-x", "./-x"),
        ("a\nb", "$'a\\nb'"),
        (os.fsdecode(b"\xff"), "$'\\xff'"),
        ("it's", "'it'\"'\"'s'"),
    ],
)
def test_a_path_is_shown_as_it_is_typed(text, shown):
    assert quoted(text) == shown
    assert "\n" not in shown


def test_a_run_whose_functions_are_of_another_folder_says_which(tmp_path, capsys, monkeypatch):
    """No run folder names a folder whose code is run: one has to be there oneself."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    write_finished(here / "run")
    config = load_config({"reward": "own_rewards_of_mine:brief", "steps": 1})
    (here / "run" / "config.yaml").write_text(dump_yaml(config))
    (here / "run" / "manifest.json").write_text(json.dumps({"folder": str(here)}))
    monkeypatch.chdir(there)
    code, printed = run_command(["adapt", "--resume", here / "run", "--allow-plugins"], capsys)
    assert code == 2
    assert "No module named 'own_rewards_of_mine'" in printed
    assert f"; the run began in {here}, where" in printed
