"""A damaged run of a comparison is named and left out of its tables; the others stay."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from spinerl.comparison.collect import collect
from spinerl.errors import RunError
from tests.comparison.synthetic import made_up, write_task
from tests.faults.test_run_folder import insert, run_command

RIGHT = [[True, False, False], [True, True, False], [True, True, True]]
CLASSES = [[0, 0, 1, 0], [1, 1, 0, None], [0, 1, 1, 1]]


@pytest.fixture
def comparison(tmp_path):
    found = made_up(tmp_path / "out", "unseen=none", "original=none", "forcing.budget=0", "synthesis=false")
    for task in found.tasks:
        course = RIGHT if task.config.steps else RIGHT[:1]
        print_ = found.fingerprints[task.data]
        write_task(task, course, classes=CLASSES, tokens=(300, 300), fingerprint=print_)
    return found


def replace(file: Path, make) -> None:
    file.unlink()
    make(file)


# (file of one run, what is done to it, why it is left out)
DAMAGE = {
    "predictions gone": ("predictions/step-000002.jsonl", Path.unlink, "step-000002.jsonl is missing or empty"),
    "predictions broken": ("predictions/step-000002.jsonl", lambda f: insert(f, b"{oops\n"), "line 2, is damaged"),
    "predictions of numbers": (
        "predictions/step-000002.jsonl",
        lambda f: insert(f, b'{"id": 5, "greedy": [1]}\n'),
        "is damaged: its rows are not as they were written",
    ),
    "predictions a pipe": ("predictions/step-000002.jsonl", lambda f: replace(f, os.mkfifo), "is a named pipe"),
    "no evaluation": ("eval.jsonl", lambda f: f.write_text(""), "eval.jsonl is missing or empty"),
    "evaluation broken": ("eval.jsonl", lambda f: insert(f, b"\0\0\n"), "eval.jsonl: line 2 cannot be read"),
    "metrics broken": ("metrics.jsonl", lambda f: insert(f, b"{oops\n"), "metrics.jsonl: line 2 cannot be read"),
    "samples broken": ("compare/samples.jsonl", lambda f: insert(f, b"{oops\n"), "samples.jsonl, line 2, is damaged"),
    "samples odd": ("compare/samples.jsonl", lambda f: insert(f, b'{"id": "x", "responses_correct": [1]}\n'), "not as"),
    "config broken": ("config.yaml", lambda f: f.write_text("a: ["), "cannot read"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_run_is_left_out_and_named(comparison, case):
    name, damage, why = DAMAGE[case]
    task = comparison.task("spine", "tiny/shift-a", 1)
    damage(task.folder / name)
    found: list[tuple[str, str]] = []
    outcomes = collect(comparison, comparison.tasks, lambda task, line: found.append((task.label, line)))
    ((label, line),) = found
    assert label == "spine, tiny/shift-a, seed 1"
    assert why in line
    assert "\n" not in line
    by_name = {outcome.name: outcome for outcome in outcomes["tiny/shift-a"]}
    assert set(by_name["spine"].right) == {0}
    assert set(by_name["ttrl"].right) == {0, 1}
    with pytest.raises(RunError) if "config" not in case else pytest.raises(Exception, match="cannot read"):
        collect(comparison, comparison.tasks)


@pytest.mark.parametrize("state", ["[1]", '{"after": 5}', "{", '{"after": {"elsewhere": [5]}}'])
def test_a_damaged_record_of_what_was_asked_is_asked_again(comparison, state):
    from spinerl.comparison.state import states

    task = comparison.task("spine", "tiny/shift-a", 1)
    (task.folder / "compare" / "state.json").write_text(state)
    assert {str(folder): found for folder, found in states(comparison).items() if found != "done"} == {
        str(task.folder): "unasked"
    }


def test_the_command_says_it_and_writes_the_tables_of_the_others(comparison, capsys):
    task = comparison.task("spine", "tiny/shift-a", 1)
    (task.folder / "predictions" / "step-000002.jsonl").unlink()
    arguments = [
        "methods=ttrl,spine",
        "data=tiny/shift-a",
        "seeds=0,1",
        "steps=2",
        "eval.every=1",
        "samples=4",
        "votes=4",
    ]
    arguments += ["unseen=none", "original=none", "forcing.budget=0", "synthesis=false", f"out={comparison.out}"]
    code, printed = run_command(["compare", *arguments], capsys)
    assert code == 1, printed
    assert "1 of 6 runs failed; the first, spine, tiny/shift-a, seed 1: " in printed
    assert "a damaged run: delete its folder before" in printed
    notes = json.loads((comparison.out / "comparison.json").read_text())["notes"]
    assert any(note.startswith("FAILED and left out: spine, tiny/shift-a, seed 1: ") for note in notes)
    assert "FAILED and left out" in (comparison.out / "comparison.html").read_text()
