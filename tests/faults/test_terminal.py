"""Texts of others reach the terminal as texts: no escape sequence, markup or emoji code works, in any command."""

from __future__ import annotations

import io
import json
import logging
import shutil

import pytest
import yaml

from spinerl.config import dump_yaml, load_config
from spinerl.lines import one_line, visible
from spinerl.terminal import PlainConsole, SafeFormatter
from spinerl.tiny import model_path
from tests.commands import exit_code

HOSTILE = (
    "\x1b[2J\x1b]8;;http://x\x07link\x1b]8;;\x07[red]r[/] [/] :100: 2:100:3 \u202eback \x9b31m \u2066i\u2069 \x00\x7f"
)
SHOWN = (
    "\\x1b[2J\\x1b]8;;http://x\\x07link\\x1b]8;;\\x07[red]r[/] [/] :100: 2:100:3 \\u202eback \\x9b31m "
    "\\u2066i\\u2069 \\x00\\x7f"
)
NAME = "n\x1b[2J[red]:100:\u202e"  # what may be the name of a file
NAME_SHOWN = "n\\x1b[2J[red]:100:\\u202e"


def run_command(arguments, capsys) -> tuple[int, str, str]:
    """(exit code, output, errors) of a command in this process."""
    code = exit_code(arguments)
    printed = capsys.readouterr()
    for text in printed:
        assert visible(text) == text
        text.encode()
    return code, printed.out, printed.err


def rows_file(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# (rows of a data file, the command's arguments with {} for the file, exit code, what is seen)
COMMANDS = {
    "data show: a question": ([{"question": HOSTILE}], ["data", "show", "{}"], 0, SHOWN),
    "data show: id and gold": (
        [{"id": HOSTILE, "question": "2?", "answer": HOSTILE}],
        ["data", "show", "{}"],
        0,
        f"── {SHOWN} · auto · 4 tokens · gold: {SHOWN}",
    ),
    "data show: an option": ([{"question": "?", "choices": ["a", HOSTILE]}], ["data", "show", "{}"], 0, f"B. {SHOWN}"),
    "data show: markup that closes nothing": ([{"question": "[/bold] 1"}], ["data", "show", "{}"], 0, "[/bold] 1"),
    "data show: a carriage return": ([{"question": "one\rtwo"}], ["data", "show", "{}"], 0, "one\\x0dtwo"),
    "data check: gold": (
        [{"question": "2?", "answer": "x" * 9 + HOSTILE, "choices": ["a", "b"]}],
        ["data", "check", "{}"],
        1,
        "error: line 1: gold 'xxxxxxxxx\\x1b[2J\\x1b]8;;http://x\\x07link",
    ),
    "data check: an id given twice": (
        [{"id": HOSTILE, "question": "2?"}, {"id": HOSTILE, "question": "3?"}],
        ["data", "check", "{}"],
        1,
        "error: line 2: id '\\x1b[2J",
    ),
    "data check: a column": ([{"question": "?", HOSTILE: 1}], ["data", "check", "{}", "data.columns.question=q"], 2,
                             "there are question, '\\x1b[2J"),
    "data check: half a character": ([{"question": "\ud800"}], ["data", "check", "{}"], 1, "half a character"),
    "score: an answer": (
        [{"id": "a", "responses": [f"\\boxed{{{HOSTILE}}}"], "gold": HOSTILE}],
        ["score", "{}", "--explain"],
        0,
        "[red]r[/] [/] :100: 2:100:3 \\u202eback",
    ),
    "score: an id": ([{"id": HOSTILE, "responses": ["\\boxed{3}"]}], ["score", "{}", "--explain"], 0,
                     f"{SHOWN} response 1: 3: box, read from '3'"),
    "score: a kind": ([{"id": "a", "responses": ["3"], "kind": HOSTILE}], ["score", "{}"], 2, "kind='\\x1b[2J"),
    "score: an odd value": ([{"id": "a", "responses": [{"\x1b[2J[red]": 1}]}], ["score", "{}"], 2, "\\u001b[2J[red]"),
    "eval: two files": (
        [{"id": "a", "responses": ["3"], "gold": "3"}],
        ["eval", "{}", "{}"],
        0,
        f"{NAME_SHOWN}.jsonl, question by question:",
    ),
    "adapt: a data set": ([], ["adapt", f"data={NAME}"], 2, f"data='{NAME_SHOWN}' is neither a file"),
    "adapt: a model": ([{"question": "2?"}], ["adapt", "data={}", f"model={NAME}"], 2, NAME_SHOWN),
    "adapt: a plug-in": ([{"question": "2?"}], ["adapt", "data={}", f"reward={NAME}:f"], 2, NAME_SHOWN),
    "adapt: a plug-in's method": ([{"question": "2?"}], ["adapt", "data={}", f"method={NAME}"], 2, NAME_SHOWN),
    "adapt: a key": ([], ["adapt", f"{NAME}=1"], 2, NAME_SHOWN),
    "adapt: a run": ([], ["adapt", "--resume", f"{NAME}"], 2, NAME_SHOWN),
    "report: a run": ([], ["report", NAME], 2, NAME_SHOWN),
    "select: a run": ([], ["select", NAME], 2, NAME_SHOWN),
    "merge: a run": ([], ["merge", NAME, "--out", "x"], 2, NAME_SHOWN),
    "compare: a method": ([{"question": "2?"}], ["compare", "data={}", f"methods={NAME}"], 2, NAME_SHOWN),
    "preflight: a model": ([{"question": "2?"}], ["preflight", NAME, "{}"], 2, NAME_SHOWN),
    "doctor: a model": ([], ["doctor", NAME], 2, NAME_SHOWN),
    "export: a data set": ([], ["export", "verl", "--out", "x", f"data={NAME}"], 2, NAME_SHOWN),
    "config: a value": ([], ["config", f"prompt.system={HOSTILE}"], 0, 'system: "\\e[2J\\e]8;;http://x\\alink'),
    "config: sources": ([], ["config", f"prompt.system={HOSTILE}", "--sources"], 0, "\\e[2J"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_hostile_text_is_shown(name, tmp_path, monkeypatch, capsys):
    rows, arguments, code, seen = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    file = rows_file(tmp_path / f"{NAME}.jsonl", *rows)
    found, printed, errors = run_command([one.replace("{}", file.name) for one in arguments], capsys)
    assert (found, seen in printed + errors) == (code, True), printed + errors
    assert code != 2 or (printed, errors.count("\n")) == ("", 1)


KEYS = [
    "data.max_questions=2", "questions_per_step=2", "group_size=2", "steps=1", "threads=1", "rollout.max_new_tokens=4",
    "guard=off", "eval.samples=0", "answer.truncated=count",
]  # fmt: skip


def test_a_run_of_hostile_names_from_its_first_line_to_its_report(tmp_path, monkeypatch, capsys):
    """The names of model, data and run, and a question's id and gold, in `adapt`, `report`, `eval` and `compare`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_path(), f"model {NAME}")
    rows = [{"id": f"{HOSTILE}{n}", "question": f"{n} + 3?", "answer": str(n + 3)} for n in range(2)]
    data = rows_file(tmp_path / f"{NAME}.jsonl", *rows, {"question": " ", "id": "x"})
    keys = [*KEYS, f"model=model {NAME}", f"data={data.name}"]
    code, printed, errors = run_command(["adapt", *keys, f"run=run {NAME}"], capsys)
    assert (code, errors) == (0, "")
    assert f"run: run {NAME_SHOWN}   report: run {NAME_SHOWN}/report.html" in printed
    code, printed, _ = run_command(["report", f"run {NAME}", "--out", f"{NAME}.html"], capsys)
    assert (code, printed) == (0, f"report: {NAME_SHOWN}.html\n")
    code, printed, _ = run_command(["eval", f"run {NAME}", data.name, "eval.samples=0", *KEYS[4:6]], capsys)
    assert code == 0
    assert f"run {NAME_SHOWN}" in printed
    code, printed, _ = run_command(["compare", *keys, "methods=none", "seeds=0", f"out=out {NAME}", "jobs=1"], capsys)
    assert code == 0
    assert f"page: out {NAME_SHOWN}/comparison.html" in printed


# -------------------------------------------------------------------------------------------- the one place


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\x0b\x0c\x08", "a\\x0d\nb\\x0b\\x0c\\x08"),
        ("\u2028\u2029\x85\ufeff\U000e0041", "\\u2028\\u2029\\x85\\ufeff\\U000e0041"),
        ("\ud800 \udfff", "\\ud800 \\udfff"),
        ("é 答案 👩\u200d👩 \u0645\u06cc\u200c\u062e\u0648", "é 答案 👩\u200d👩 \u0645\u06cc\u200c\u062e\u0648"),
    ],
)
def test_visible(text, shown):
    assert visible(text) == shown
    console = PlainConsole(file=io.StringIO(), width=500)
    console.print(text)
    assert console.file.getvalue() == shown.expandtabs() + "\n"


def test_an_error_is_one_line_and_a_log_line_is_safe():
    assert one_line("a\n  b\r\n\n c\x1b") == "a b c\\x1b"
    record = logging.LogRecord("spinerl", logging.INFO, "x.py", 1, "%s", (HOSTILE,), None)
    assert SafeFormatter("%(message)s").format(record) == SHOWN


@pytest.mark.parametrize("text", [HOSTILE, "\u202e", "a\x85b", "plain", "{a}", "\\x1b", "é\n\u2066"])
def test_a_configuration_with_any_text_reads_as_it_was(text):
    config = load_config(overrides=[f"prompt.system={json.dumps(text)}"])
    written = dump_yaml(config)
    assert visible(written) == written
    assert yaml.safe_load(written)["prompt"]["system"] == text
