"""What is damaged in a run folder is left out of its report, named on the page and in the terminal; exit code 1."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path

import pytest

from spinerl.report import read_run
from tests.faults.test_run_folder import insert, run_command
from tests.report.synthetic import write_run


@pytest.fixture
def run(tmp_path) -> Path:
    folder = write_run(tmp_path / "run", steps=6, every=3)
    labels = [{"step": step, "id": "q", "label": "4", "correct": True} for step in (1, 2, 3)]
    looks = [
        {"step": s, "score": 0.5, "rule": None, "probe/initial_support": 1, "probe/concentration": 0} for s in (0, 2)
    ]
    for name, rows in (("labels.jsonl", labels), ("guard.jsonl", looks)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def replace(file: Path, make) -> None:
    file.unlink()
    make(file)


def set_field(file: Path, key: str, value: object) -> None:
    """Another value under a key of the file's second row, or of the whole file."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.suffix == ".jsonl" else None
    if lines is None:
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
        return
    lines[1][key] = value
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def into_loop(file: Path) -> None:
    replace(file, lambda path: path.symlink_to(path.name))


# (what is done, exit code of `report`, what its line says)
DAMAGE = {
    "broken line in metrics": (lambda f: insert(f / "metrics.jsonl", b"{oops\n"), 1, "metrics.jsonl: line 2 cannot"),
    "NULs in eval": (lambda f: insert(f / "eval.jsonl", b"\0" * 99 + b"\n"), 1, "eval.jsonl: line 2 cannot be read"),
    "no UTF-8 in samples": (lambda f: insert(f / "samples.jsonl", b"\xff\xfe\n"), 1, "samples.jsonl: line 2 cannot"),
    "half a line in labels": (lambda f: insert(f / "labels.jsonl", b'{"step": 1\n'), 1, "labels.jsonl: line 2 cannot"),
    "a list in guard": (lambda f: insert(f / "guard.jsonl", b"[]\n"), 1, "guard.jsonl: line 2 cannot be read"),
    "deep nesting in tokens": (lambda f: insert(f / "tokens.jsonl", b"[" * 9999 + b"\n"), 1, "tokens.jsonl: line 2"),
    "a number of 5000 digits": (lambda f: insert(f / "metrics.jsonl", b"1" * 5000 + b"\n"), 1, "metrics.jsonl: line 2"),
    "two bad lines": (lambda f: insert(f / "metrics.jsonl", b"x\ny\n"), 1, "2 lines, the first of them line 2,"),
    "a blank line": (lambda f: insert(f / "metrics.jsonl", b"\n"), 0, "report:"),
    "no step": (lambda f: insert(f / "metrics.jsonl", b'{"a": 1}\n'), 1, "metrics.jsonl: line 2 cannot be read"),
    "step is a text": (lambda f: set_field(f / "eval.jsonl", "step", "3"), 1, "eval.jsonl: line 2 cannot be read"),
    "step is half": (lambda f: set_field(f / "metrics.jsonl", "step", 1.5), 1, "metrics.jsonl: line 2 cannot be read"),
    "step is negative": (lambda f: set_field(f / "metrics.jsonl", "step", -1), 1, "metrics.jsonl: line 2 cannot be"),
    "step is huge": (lambda f: set_field(f / "metrics.jsonl", "step", 10**12), 1, "metrics.jsonl: line 2 cannot be"),
    "step is true": (lambda f: set_field(f / "metrics.jsonl", "step", True), 1, "metrics.jsonl: line 2 cannot be read"),
    "a step twice": (lambda f: set_field(f / "metrics.jsonl", "step", 1), 0, "report:"),
    "descending steps": (lambda f: set_field(f / "metrics.jsonl", "step", 6), 0, "report:"),
    "text for a number": (lambda f: set_field(f / "metrics.jsonl", "loss/total", "x"), 1, "1 value is no number"),
    "list for a number": (lambda f: set_field(f / "eval.jsonl", "eval/pass@1", [1]), 1, "eval.jsonl: 1 value is no"),
    "a figure beyond all": (lambda f: set_field(f / "metrics.jsonl", "reward/mean", 1e308), 0, "report:"),
    "a figure next to none": (lambda f: set_field(f / "metrics.jsonl", "reward/mean", 1e-320), 0, "report:"),
    "object for a list": (lambda f: set_field(f / "samples.jsonl", "responses", {"a": 1}), 0, "report:"),
    "number for images": (lambda f: set_field(f / "samples.jsonl", "images", 5), 0, "report:"),
    "odd images": (lambda f: set_field(f / "samples.jsonl", "images", [5, "images/../x", "images/x"]), 0, "report:"),
    "negative votes": (lambda f: set_field(f / "samples.jsonl", "votes", {"a": -5, "b": 1}), 0, "report:"),
    "histograms that do not fit": (
        lambda f: set_field(f / "tokens.jsonl", "forks", [1]),
        1,
        "1 of 2 histograms do not",
    ),
    "manifest is empty": (lambda f: (f / "manifest.json").write_text(""), 1, "manifest.json cannot be read"),
    "manifest is half": (lambda f: (f / "manifest.json").write_text('{"seed"'), 1, "manifest.json cannot be read"),
    "manifest is missing": (lambda f: (f / "manifest.json").unlink(), 0, "report:"),
    "manifest has a list for data": (lambda f: set_field(f / "manifest.json", "data", [1]), 1, "`data` is no object"),
    "manifest has a text for guard": (
        lambda f: set_field(f / "manifest.json", "guard", "x"),
        1,
        "`guard` is no object",
    ),
    "guard says a number": (
        lambda f: set_field(f / "manifest.json", "guard", {"text": 5, "kept_step": []}),
        0,
        "report",
    ),
    "metrics is a folder": (lambda f: replace(f / "metrics.jsonl", Path.mkdir), 1, "metrics.jsonl is a folder, not a"),
    "eval is a pipe": (lambda f: replace(f / "eval.jsonl", os.mkfifo), 1, "eval.jsonl is a named pipe, not a file"),
    "labels is a broken link": (
        lambda f: replace(f / "labels.jsonl", lambda path: path.symlink_to("gone")),
        1,
        "labels.jsonl is a broken symbolic link",
    ),
    "samples is a loop": (lambda f: into_loop(f / "samples.jsonl"), 1, "samples.jsonl is a broken symbolic link"),
    "manifest is a folder": (lambda f: replace(f / "manifest.json", Path.mkdir), 1, "manifest.json is a folder"),
    "images is a file": (lambda f: (f / "images").write_text("x"), 0, "report:"),
    "model is a file": (lambda f: (f / "model").write_text("x"), 0, "report:"),
    "config is a pipe": (lambda f: replace(f / "config.yaml", os.mkfifo), 2, "its config.yaml is a named pipe"),
    "config is a folder": (lambda f: replace(f / "config.yaml", Path.mkdir), 2, "its config.yaml is a folder"),
    "config is a bomb": (
        lambda f: (f / "config.yaml").write_text(
            "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
        ),
        2,
        "more than 10,000 values",
    ),
    "config has odd keys": (lambda f: (f / "config.yaml").write_text("1: a\nnull: b\nc: {2: d}\n"), 0, "report:"),
    "config has odd types": (
        lambda f: (f / "config.yaml").write_text("method: [1]\nseed: {a: b}\nsteps: x\neval: 5\nmodel: 2020-01-01\n"),
        0,
        "report:",
    ),
    "report.html is a folder": (lambda f: (f / "report.html").mkdir(), 2, "is a folder; name the file to write"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_report_leaves_out_what_is_damaged_and_says_so(run, capsys, case):
    damage, code, line = DAMAGE[case]
    damage(run)
    found, printed = run_command(["report", run], capsys)
    assert (found, line in printed) == (code, True), printed
    if code == 1:
        (part,) = read_run(run).damage
        page = html.unescape((run / "report.html").read_text())
        assert part in page
        assert "Greedy Pass@1" in page
    if code == 0:
        assert read_run(run).damage == ()
        assert "Dynamics" in (run / "report.html").read_text()


def test_a_report_does_not_write_through_a_link(run, tmp_path, capsys):
    """A run folder from elsewhere may have one in the report's place."""
    (tmp_path / "mine.txt").write_text("mine")
    (run / "report.html").symlink_to(tmp_path / "mine.txt")
    assert run_command(["report", run], capsys)[0] == 0
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (run / "report.html").is_symlink()


@pytest.mark.parametrize("kind", ["a link", "a text", "too large"])
def test_what_is_no_small_image_of_the_run_is_not_shown(run, tmp_path, capsys, kind):
    (tmp_path / "secret.png").write_bytes(b"\x89PNG secret")
    (run / "images").mkdir()
    image = run / "images" / "0123456789abcdef"
    if kind == "a link":
        image.symlink_to(tmp_path / "secret.png")
    else:
        image.write_bytes(b"<svg onload=alert(1)>" if kind == "a text" else b"\x89PNG" + b"x" * 2**20)
    set_field(run / "samples.jsonl", "images", ["images/0123456789abcdef"])
    set_field(run / "samples.jsonl", "step", 5)
    assert run_command(["report", run], capsys)[0] == 0
    assert "<img" not in (run / "report.html").read_text()


def test_drafts_that_a_kill_left_are_swept_and_nothing_else(run, capsys):
    dead = 2**22 + 1  # beyond the largest number of a process
    (run / f".report.html.{dead}.tmp").write_text("half")
    (run / f".report.html.{os.getppid()}.tmp").write_text("of a process that runs")
    for name in (".notes.tmp", ".report.html.tmp.tmp", f".mine.html.{dead}.tmp", f"report.html.{dead}.tmp"):
        (run / name).write_text("mine")
    before = {path.name for path in run.iterdir()}
    assert run_command(["report", run], capsys)[0] == 0
    assert {path.name for path in run.iterdir()} == before - {f".report.html.{dead}.tmp"} | {"report.html"}
