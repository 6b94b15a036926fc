"""`spinerl compare` as a user runs it: interrupted and continued, refused, failing, overwritten."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spinerl.answers import extract_answer
from spinerl.comparison.plan import Task, plan
from spinerl.comparison.schedule import run_tasks
from spinerl.comparison.state import states
from spinerl.errors import InputError
from spinerl.scoring import read_predictions
from tests.commands import exit_code

SHORT = [
    "data=tiny/shift-a", "data.max_questions=4", "steps=2", "questions_per_step=2", "group_size=2", "eval.every=1",
    "checkpoint.every=1", "rollout.max_new_tokens=12", "samples=2", "votes=4", "elsewhere_questions=3",
    "forcing.budget=16", "refine=2",
]  # fmt: skip


def run(arguments, capsys) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command."""
    code = exit_code(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def times(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in sorted(folder.rglob("*"))}


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def descendants(pid: int) -> list[int]:
    """Its children, which import what runs need, and their forks, which run."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def start(overrides: list[str], until) -> subprocess.Popen[str]:
    """A comparison in a process of its own, once `until` is true."""
    process = subprocess.Popen(
        [sys.executable, "-m", "spinerl.cli", "compare", *overrides], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests may ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while process.poll() is None and not until(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_interrupted_continued_and_not_touched(tmp_path, capsys):
    out = tmp_path / "c"
    overrides = ["methods=ttrl,spine", "seeds=0,1", *SHORT, f"out={out}"]
    process = start(overrides, lambda _: len(list(out.glob("*/*/compare/state.json"))) >= 2)
    started = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in err
    assert started
    assert not any(alive(pid) for pid in started), "its children are gone"

    finished = [file.parent.parent for file in out.glob("*/*/compare/state.json")]
    before = {folder: times(folder) for folder in finished}
    code, text, err = run(["compare", *overrides], capsys)
    assert code == 0, err
    assert f"6 runs, {len(finished)} done" in text
    assert {folder: times(folder) for folder in finished} == before, "finished runs are not touched"
    assert not (out / "logs").exists(), "nothing was said that a log should keep"
    for task in plan(overrides).tasks:
        manifest = json.loads((task.folder / "manifest.json").read_text())
        assert manifest["finished"]
        assert manifest["command"].startswith("spinerl compare methods=ttrl,spine")
        assert manifest["threads"] == 1
        assert not list(task.folder.glob("checkpoints/step-*")), "three times the model's size, and of no more use"

    # the figures are those of the saved predictions
    saved = json.loads((out / "comparison.json").read_text())
    lines = {line["name"]: line for line in saved["tables"][0]["lines"]}
    for name in ("ttrl", "spine"):
        for seed in (0, 1):
            file = out / "tiny-shift-a" / f"{name}-seed{seed}" / "predictions" / "step-000002.jsonl"
            right = [json.loads(line)["greedy"]["correct"] for line in file.read_text().splitlines()]
            assert len(right) == 4
            assert lines[name]["right"]["by_seed"][str(seed)] == sum(right) / 4
        assert lines[name]["last"][0] == 2
        assert [place["role"] for place in lines[name]["elsewhere"]] == ["unseen", "original"]
        metrics = (out / "tiny-shift-a" / f"{name}-seed0" / "metrics.jsonl").read_text().splitlines()
        assert len(metrics) == 2
    baselines = {
        "majority of 2",
        "best of 2, likeliest",
        "synthesis of 2",
        "verified majority of 2",
        "budget forcing",
        "equal-token vote",
        "equal-token likeliest",
    }
    assert baselines <= set(lines)
    for name in ("comparison.md", "comparison.csv", "comparison.html"):
        page = (out / name).read_text()
        assert all(row in page for row in ("none", "ttrl", "spine", "majority of 2")), name

    # the synthesis is of the first responses, and its answers are those of the written texts
    files = [out / "tiny-shift-a" / "none-seed0" / "compare" / f"{name}.jsonl" for name in ("votes", "synthesis")]
    votes, synthesis = map(read_predictions, files)
    for drawn, row in zip(votes, synthesis, strict=True):
        assert row["answers"] == [extract_answer(row["responses"][0], row["kind"], truncated=row["truncated"][0])]
        assert row["correct"] == (row["answers"] == [row["gold"]])
        assert row["num_tokens"] == sum(drawn["lengths"][:2]) + row["lengths"][0]
        assert row["num_read"] == 2
    refined = list(read_predictions(files[0].with_name("refined.jsonl")))
    for first, row in zip(votes, refined, strict=True):
        assert len(row["responses"]) == 2
        assert row["num_tokens"] > sum(first["lengths"][:2])
        assert (row["responses"] == first["responses"][:2]) == (row["num_corrections"] == 0)
    assert lines["verified majority of 2"]["tokens"] == sum(row["num_tokens"] for row in refined) / 4
    assert lines["synthesis of 2"]["right"]["by_seed"] == {"0": sum(row["correct"] for row in synthesis) / 4}

    # a third call starts nothing; a changed setting is refused, and --overwrite redoes what it concerns
    before = times(out / "tiny-shift-a")
    assert "6 runs, 6 done" in run(["compare", *overrides], capsys)[1]
    assert times(out / "tiny-shift-a") == before
    changed = ["methods=ttrl", "seeds=0", *SHORT, "steps=1", f"out={out}"]
    code, _, err = run(["compare", *changed], capsys)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "steps=2 there, 1 now" in err
    assert "--overwrite" in err
    assert times(out / "tiny-shift-a") == before
    code, text, err = run(["compare", *changed, "--overwrite"], capsys)
    assert code == 0, err
    assert "2 runs, 1 done" in text
    after = times(out / "tiny-shift-a")
    moved = {Path(file).relative_to(out / "tiny-shift-a").parts[0] for file in {*before, *after}
             if before.get(file) != after.get(file)}  # fmt: skip
    assert moved == {"ttrl-seed0"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_children_end_with_a_parent_that_is_killed(tmp_path):
    overrides = ["methods=none", *SHORT, f"out={tmp_path / 'c'}"]
    process = start(overrides, lambda process: set(descendants(process.pid)) - set(children(process.pid)))
    started = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in started)


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path, capsys):
    overrides = ["variants.wild.method=ttrl", "variants.wild.optim.lr=1e30", "methods=wild,ttrl", *SHORT]
    learn = ["group_size=8", "rollout.max_new_tokens=64", "questions_per_step=4", "steps=4", "original=none"]
    code, text, err = run(["compare", *overrides, *learn, f"out={tmp_path / 'c'}"], capsys)
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert "wild" in err
    assert "optim.lr" in err
    assert "FAILED and left out: wild" in text
    saved = json.loads((tmp_path / "c" / "comparison.json").read_text())
    names = [line["name"] for line in saved["tables"][0]["lines"]]
    assert "ttrl" in names
    assert "wild" not in names
    assert "wild" in saved["notes"][-1]


@pytest.mark.slow
def test_what_only_the_run_finds_wrong_is_refused_in_one_line(tmp_path, capsys):
    overrides = ["compare", "methods=ttrl", "reward=nomodule:f", *SHORT, f"out={tmp_path / 'c'}", "jobs=1"]
    code, _, err = run(overrides, capsys)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "nomodule" in err


def test_wrong_words_write_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for overrides, says in ((["methds=ttrl"], "methods"), (["data=none.jsonl"], "none.jsonl"), (["steps=-1"], "steps")):
        code, _, err = run(["compare", *overrides], capsys)
        assert code == 2
        assert len(err.strip().splitlines()) == 1
        assert says in err
    assert not list(tmp_path.iterdir())


def test_one_comparison_at_a_time_in_a_folder(tmp_path, capsys):
    import fcntl

    out = tmp_path / "c"
    out.mkdir()
    with (out / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        code, _, err = run(["compare", "methods=none", *SHORT, f"out={out}"], capsys)
    assert code == 2
    assert "in use" in err


def test_a_folder_that_is_no_run_is_not_touched(tmp_path):
    comparison = plan(["methods=none", *SHORT, f"out={tmp_path}"])
    comparison.tasks[0].folder.mkdir(parents=True)
    (comparison.tasks[0].folder / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="in the way"):
            states(comparison, overwrite)


@pytest.mark.slow
def test_never_more_than_so_many_at_a_time(tmp_path):
    class Counting:
        now = most = 0

        def started(self, task: Task) -> None:  # noqa: ARG002
            self.now += 1
            self.most = max(self.most, self.now)

        def heard(self, task, message) -> None: ...

        def ended(self, task, failure) -> None:  # noqa: ARG002
            assert failure is None
            self.now -= 1

    overrides = ["methods=none", "seeds=0,1,2", *SHORT, "unseen=none", "original=none", "forcing.budget=0"]
    comparison = plan([*overrides, f"out={tmp_path}"])
    watcher = Counting()
    assert not run_tasks([(task, "new") for task in comparison.tasks], 2, tmp_path / "logs", watcher)
    assert (watcher.now, watcher.most) == (0, 2)
    assert set(states(comparison).values()) == {"done"}
    assert set(states(plan([*overrides, "checkpoint.keep=3", f"out={tmp_path}"])).values()) == {"done"}
    file = comparison.tasks[0].folder / "compare" / "state.json"
    file.write_text(re.sub('"votes": 4', '"votes": 3', file.read_text()))
    assert states(comparison)[comparison.tasks[0].folder] == "unasked", "another request is sampled again"
