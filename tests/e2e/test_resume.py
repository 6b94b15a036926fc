"""kill -9 at any moment, then --resume: the same weights and metrics as a run that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spinerl.cli import main
from spinerl.runs import RunFolder

# Everything that carries state from step to step: moments, schedule, moving band edges, anchor, several updates.
OVERRIDES = [
    "data=tiny/in-domain", "data.max_questions=6", "questions_per_step=3", "group_size=4", "steps=6", "threads=1",
    "rollout.max_new_tokens=48", "optim.lr=1e-3", "optim.schedule=cosine", "optim.warmup_steps=2",
    "optim.minibatches=2", "anchor.weight=0.1", "band.weight=0.1", "band.edges=ema", "eval.every=3", "eval.samples=2",
    "checkpoint.every=2", "log.sample_every=1",
    "vote.memory=ema", "vote.memory_start=2", "vote.flip_margin=0.1", "vote.slow_decay=0.9",
]  # fmt: skip


def figures(run: Path, stream: str) -> list[dict]:
    rows = [json.loads(line) for line in (run / stream).read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def same(run: Path, other: Path) -> None:
    for stream in ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "tokens.jsonl", "labels.jsonl"):
        assert figures(run, stream) == figures(other, stream), stream
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run, other)]
    assert weights[0] == weights[1]
    assert RunFolder(run).manifest["finished"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    main_or_exit(["adapt", *OVERRIDES, f"run={run}"])
    rows = figures(run, "metrics.jsonl")
    assert len(rows) == 6
    assert any(row["optim/grad_norm"] > 0 for row in rows)
    assert any(row["reward/mean"] > 0 for row in rows)
    return run


def main_or_exit(arguments: list[str]) -> None:
    code = 0
    try:
        main(arguments)
    except SystemExit as exit_:
        code = exit_.code or 0
    assert code == 0, arguments


def test_same_seed_same_run(whole, tmp_path):
    main_or_exit(["adapt", str(whole / "config.yaml"), f"run={tmp_path / 'again'}"])
    same(tmp_path / "again", whole)


# Where to kill: a file of the run appears or grows to so many lines.
MOMENTS = {
    "before the first step": ("eval.jsonl", 1),
    "between checkpoints": ("metrics.jsonl", 3),
    "while a checkpoint is written": ("checkpoints/.step-000004.tmp/optimizer.pt", 0),
    "after the last step": ("metrics.jsonl", 6),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(whole, tmp_path, moment):
    run = tmp_path / "run"
    name, lines = MOMENTS[moment]
    process = subprocess.Popen(
        [sys.executable, "-m", "spinerl.cli", "adapt", *OVERRIDES, f"run={run}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        file = run / name
        if file.exists() and (lines == 0 or file.read_text().count("\n") >= lines):
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    main_or_exit(["adapt", "--resume", str(run)])
    same(run, whole)


def test_a_finished_run_that_keeps_no_checkpoint(whole, tmp_path, capsys, monkeypatch):
    run, seen = tmp_path / "run", []

    def counted(self, keep, remove=RunFolder.remove_checkpoints):
        remove(self, keep)
        seen.append(len(list((self.path / "checkpoints").iterdir())))

    monkeypatch.setattr(RunFolder, "remove_checkpoints", counted)
    main_or_exit(["adapt", *OVERRIDES, f"run={run}", "checkpoint.keep=0"])
    assert seen == [1, 1, 1, 0]
    same(run, whole)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    capsys.readouterr()
    main_or_exit(["adapt", "--resume", str(run)])
    assert "is finished" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    (run / "report.html").unlink()
    main_or_exit(["adapt", "--resume", str(run)])
    assert (run / "report.html").is_file()
    same(run, whole)


def copied(whole: Path, tmp_path: Path, last: int) -> Path:
    """A run as it stood just after the checkpoint of step `last`, with two checkpoints."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "model")
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > last:
            shutil.rmtree(folder)
    return run


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(whole, tmp_path, capsys):
    run = copied(whole, tmp_path, 6)
    damaged = run / "checkpoints" / "step-000006" / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(bytes(data))
    main_or_exit(["adapt", "--resume", str(run)])
    assert "after step 4" in capsys.readouterr().out
    same(run, whole)
    assert (run / "checkpoints" / "step-000006.damaged").is_dir()


def test_all_checkpoints_damaged_is_an_error(whole, tmp_path, capsys):
    run = copied(whole, tmp_path, 6)
    for folder in (run / "checkpoints").iterdir():
        (folder / "optimizer.pt").write_bytes(b"")
    with pytest.raises(SystemExit) as exit_:
        main(["adapt", "--resume", str(run)])
    assert exit_.value.code == 1
    assert "damaged" in capsys.readouterr().err


def test_a_line_cut_by_the_crash_is_forgotten(whole, tmp_path):
    run = copied(whole, tmp_path, 4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "rollo')
    main_or_exit(["adapt", "--resume", str(run)])
    same(run, whole)


def test_a_finished_run_resumes_to_itself(whole, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    main_or_exit(["adapt", "--resume", str(run)])
    same(run, whole)


# Methods whose steps learn from responses sampled before them.  With two steps a pass, RoiRL's second round begins at
# step 5.
REUSING = [
    "data=tiny/in-domain", "data.max_questions=6", "questions_per_step=3", "group_size=4", "steps=6", "threads=1",
    "rollout.max_new_tokens=48", "rollout.top_p=0.95", "optim.lr=1e-3", "eval.every=3", "eval.samples=0",
    "checkpoint.every=1", "checkpoint.keep=6", "log.sample_every=1", "guard=off",
]  # fmt: skip


@pytest.fixture(scope="module")
def reusing(tmp_path_factory):
    """A function: method -> a run of it that was never interrupted."""
    made: dict[str, Path] = {}

    def whole(method: str) -> Path:
        if method not in made:
            run = tmp_path_factory.mktemp(method) / "run"
            main_or_exit(["adapt", f"method={method}", *REUSING, f"run={run}"])
            rows = figures(run, "metrics.jsonl")
            renewed = [row["step"] for row in rows if row["rollout/num_drawn"] > 0]
            assert renewed == {"lmsi": [1], "roirl": [1, 5]}[method]
            assert all(row["optim/grad_norm"] > 0 for row in rows)
            made[method] = run
        return made[method]

    return whole


@pytest.mark.parametrize(("method", "last"), [("lmsi", 2), ("roirl", 3), ("roirl", 4), ("roirl", 5)])
def test_stopped_amid_a_round_and_resumed(reusing, tmp_path, method, last):
    run = copied(reusing(method), tmp_path, last)
    assert max(folder.name for folder in (run / "checkpoints").iterdir()) == f"step-{last:06d}"
    main_or_exit(["adapt", "--resume", str(run)])
    same(run, reusing(method))


def test_changed_data_is_refused(tmp_path, capsys):
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(f'{{"question": "What is {i} + 1?"}}\n' for i in range(3)))
    overrides = [f"data={questions}", "questions_per_step=2", "group_size=2", "steps=1", "rollout.max_new_tokens=8"]
    main_or_exit(["adapt", *overrides, f"run={tmp_path / 'run'}", "eval.samples=0", "guard=off"])
    questions.write_text('{"question": "Another?"}\n')
    with pytest.raises(SystemExit) as exit_:
        main(["adapt", "--resume", str(tmp_path / "run")])
    assert exit_.value.code == 2
    assert "has changed" in capsys.readouterr().err
