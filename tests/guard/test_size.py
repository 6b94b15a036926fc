"""The number of questions that is said to be too many."""

from __future__ import annotations

import json

import pytest

from spinerl.guard.size import size_note
from tests.commands import exit_code

SHORT = ["group_size=2", "rollout.max_new_tokens=4", "guard.preflight_questions=2", "threads=1"]


@pytest.fixture
def questions(tmp_path):
    """A function: number -> a file of so many questions."""

    def write(num):
        file = tmp_path / f"{num}.jsonl"
        file.write_text("".join(json.dumps({"question": f"{i}+4="}) + "\n" for i in range(num)))
        return file

    return write


def test_thresholds():
    assert size_note(128) is None
    assert "between them nothing is known" in size_note(129)
    assert "between them nothing is known" in size_note(511)
    assert "collapsed on 512 and more" in size_note(512)
    assert size_note(1319).startswith("1,319 questions: ")


@pytest.mark.parametrize(("num", "says"), [(128, None), (129, "between them"), (512, "collapsed on 512 and more")])
def test_preflight_says_it(questions, tmp_path, capsys, num, says):
    found = tmp_path / "found.json"
    assert exit_code(["preflight", "tiny-reasoner", questions(num), *SHORT, "--json", found]) == 0
    printed = capsys.readouterr().out.replace("\n", " ")
    figures = json.loads(found.read_text())
    assert figures["num_all"] == num
    if says is None:
        assert figures["size"] is None
        assert "2603.08660" not in printed
    else:
        assert says in figures["size"]
        assert says in printed


@pytest.mark.parametrize(("num", "keys", "said"), [(512, [], True), (511, [], False), (512, ["stream.on=true"], False)])
def test_adapt_says_it(questions, tmp_path, capsys, num, keys, said):
    short = [
        "steps=1",
        "questions_per_step=1",
        "guard=off",
        "eval.samples=0",
        "eval.max_questions=1",
        "checkpoint.every=0",
    ]
    run = tmp_path / "run"
    assert exit_code(["adapt", f"data={questions(num)}", f"run={run}", *SHORT, *short, *keys]) == 0
    printed = capsys.readouterr()
    assert ("collapsed on 512 and more" in (printed.out + printed.err).replace("\n", " ")) == said
