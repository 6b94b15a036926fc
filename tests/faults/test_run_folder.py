"""What is broken in a run folder is named in one line, nothing on the disk is lost, and two writers never meet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spinerl.cli import main
from spinerl.config import load_config
from spinerl.runs import MARK, RunFolder
from spinerl.tiny import model_path
from spinerl.train import adapt
from tests.e2e.test_guarded_runs import Quiet

KEYS = [
    "data.max_questions=4", "questions_per_step=2", "group_size=2", "steps=4", "threads=1", "rollout.max_new_tokens=12",
    "answer.truncated=count", "checkpoint.every=1", "guard.every=2", "guard.questions=2", "guard.samples=2",
    "guard.no_go=0", "eval.samples=0", "log.sample_every=1", "optim.lr=1e-3",
]  # fmt: skip


def run_command(arguments, capsys) -> tuple[int, str]:
    """(exit code, what was printed) of a command in this process; a traceback would be an exception here."""
    code = 0
    try:
        main([str(one) for one in arguments])
    except SystemExit as exit_:
        code = exit_.code or 0
    printed = capsys.readouterr()
    return code, " ".join((printed.out + printed.err).split())


class Interrupted(Quiet):
    """Ends the run as Ctrl-C would, once step 2 is in a checkpoint."""

    def checkpoint(self, folder):
        if folder.name == "step-000002":
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        adapt(load_config(overrides=[*KEYS, f"run={folder}"]), Interrupted())
    return folder


@pytest.fixture
def half(stopped, tmp_path) -> Path:
    """A run that was interrupted after step 2 of 4."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


# (what is done to the run folder, exit code of --resume, what its line says)
DAMAGE = {
    "manifest is empty": (lambda f: (f / "manifest.json").write_text(""), 1, "manifest.json is damaged"),
    "manifest is half": (lambda f: (f / "manifest.json").write_text('{"seed": '), 1, "manifest.json is damaged"),
    "manifest is a list": (
        lambda f: (f / "manifest.json").write_text("[1]"),
        1,
        "manifest.json is damaged (it holds list)",
    ),
    "a blank line": (lambda f: insert(f / "metrics.jsonl", b"\n"), 1, "metrics.jsonl, line 2, is damaged"),
    "NULs": (lambda f: insert(f / "labels.jsonl", b"\0" * 40 + b"\n"), 1, "labels.jsonl, line 2, is damaged"),
    "no UTF-8": (lambda f: insert(f / "guard.jsonl", b"\xff\xfe{\n"), 1, "guard.jsonl, line 2, is damaged"),
    "half a line inside": (
        lambda f: insert(f / "samples.jsonl", b'{"step": 1, "q\n'),
        1,
        "samples.jsonl, line 2, is damaged",
    ),
    "a list for a row": (lambda f: insert(f / "eval.jsonl", b"[1, 2]\n"), 1, "eval.jsonl, line 2, is damaged"),
    "a row without a step": (lambda f: insert(f / "tokens.jsonl", b'{"a": 1}\n'), 1, "line 2: no `step`"),
    "deep nesting": (
        lambda f: insert(f / "metrics.jsonl", b"[" * 100_000 + b"\n"),
        1,
        "metrics.jsonl, line 2, is damaged",
    ),
    "config is no YAML": (lambda f: (f / "config.yaml").write_text("a: [\n"), 2, "is not valid YAML"),
    "config is binary": (lambda f: (f / "config.yaml").write_bytes(b"\xff\0"), 2, "cannot read recipe"),
    "config has a strange key": (lambda f: append(f / "config.yaml", b"stepz: 3\n"), 2, "unknown key stepz"),
    "config is gone": (lambda f: (f / "config.yaml").unlink(), 2, "is not a run folder"),
}


def insert(file: Path, line: bytes) -> None:
    lines = file.read_bytes().split(b"\n", 1)
    file.write_bytes(lines[0] + b"\n" + line + lines[1])


def append(file: Path, data: bytes) -> None:
    file.write_bytes(file.read_bytes() + data)


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_nothing_is_lost(half, capsys, case):
    damage, code, line = DAMAGE[case]
    damage(half)
    before = contents(half)
    found, printed = run_command(["adapt", "--resume", half], capsys)
    assert (found, line in printed) == (code, True), printed
    after = contents(half)
    assert {name: after.get(name) for name in before} == before


def test_a_lost_manifest_is_rebuilt_and_the_run_goes_on(half, capsys):
    (half / "manifest.json").unlink()
    code, printed = run_command(["adapt", "--resume", half], capsys)
    assert code == 0, printed
    assert "after step 2" in printed
    manifest = RunFolder(half).manifest
    assert manifest["finished"]
    assert manifest["model"]["fingerprint"]
    assert [row["step"] for row in RunFolder(half).rows("metrics.jsonl")] == [1, 2, 3, 4]


def test_resume_does_not_touch_a_users_project(tmp_path, capsys):
    """A folder whose config.yaml is a recipe of the user's own."""
    (tmp_path / "config.yaml").write_text("steps: 2\n")
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    code, printed = run_command(["adapt", "--resume", tmp_path], capsys)
    assert code == 2
    assert "nothing else of a run" in printed
    code, printed = run_command(["adapt", *KEYS, f"run={tmp_path}", "--overwrite"], capsys)
    assert code == 2
    assert "is not a run of spinerl" in printed
    assert contents(tmp_path) == before


def test_overwrite_removes_a_runs_files_and_no_others(half, capsys):
    (half / "notes.md").write_text("mine")
    (half / "plots").mkdir()
    (half / "plots" / "one.png").write_bytes(b"png")
    code, printed = run_command(["adapt", *KEYS, "steps=1", f"run={half}", "--overwrite"], capsys)
    assert code == 0, printed
    assert (half / "notes.md").read_text() == "mine"
    assert (half / "plots" / "one.png").is_file()
    assert [row["step"] for row in RunFolder(half).rows("metrics.jsonl")] == [1]
    assert (half / "config.yaml").read_text().startswith(MARK)


@pytest.mark.parametrize("left", [(), (".config.yaml.tmp",)])
def test_a_run_killed_before_its_configuration_begins_again(tmp_path, capsys, left):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (*left, ".lock"):
        (folder / name).write_text("half")
    code, printed = run_command(["adapt", *KEYS, "steps=0", f"run={folder}"], capsys)
    assert code == 0, printed


@pytest.mark.parametrize("fault", ["a flipped bit", "cut", "missing weights", "missing", "no checksums"])
def test_damaged_best_weights_never_pass_for_good_ones(half, capsys, fault):
    """The guard wants the unadapted model back: it is read once more."""
    rows = [row | {"score": -1.0 if row["step"] else 2.0} for row in RunFolder(half).rows("guard.jsonl")]
    (half / "guard.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = half / "best"
    file = best / "model.safetensors"
    if fault == "a flipped bit":
        data = bytearray(file.read_bytes())
        data[-100] ^= 1
        file.write_bytes(data)
    elif fault == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif fault == "missing weights":
        file.unlink()
    elif fault == "missing":
        shutil.rmtree(best)
    else:
        (best / "checksums.json").unlink()
    code, printed = run_command(["adapt", "--resume", half], capsys)
    assert code == 0, printed
    assert weights(half) == (model_path("tiny-reasoner") / "model.safetensors").read_bytes()
    assert "The unadapted model was kept" in printed


def test_a_partial_last_line_is_no_damage(half, capsys):
    """What a full disk leaves in the file that the evaluation is written to first."""
    for name in ("eval.jsonl", "metrics.jsonl", "guard.jsonl"):
        append(half / name, b'{"step": 3, "eval/pa')
    code, printed = run_command(["adapt", "--resume", half], capsys)
    assert code == 0, printed
    for name in ("eval.jsonl", "metrics.jsonl", "guard.jsonl"):
        RunFolder(half).rows(name)
    assert [row["step"] for row in RunFolder(half).rows("metrics.jsonl")] == [1, 2, 3, 4]


def test_a_damaged_checkpoint_is_set_aside_under_a_free_name(half, capsys):
    older = half / "checkpoints" / "step-000001"
    assert older.is_dir()
    (half / "checkpoints" / "step-000002" / "optimizer.pt").write_bytes(b"broken")
    (half / "checkpoints" / "step-000002.damaged").mkdir()
    code, printed = run_command(["adapt", "--resume", half], capsys)
    assert code == 0, printed
    assert (half / "checkpoints" / "step-000002.damaged-2" / "optimizer.pt").read_bytes() == b"broken"


def test_one_process_writes_at_a_time(tmp_path):
    """A second resume and an --overwrite of a run that goes on are refused, by the name of the process; its death
    frees the folder."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", "from spinerl.cli import main; main()", "adapt"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    first = subprocess.Popen(
        [*command, *KEYS, "steps=1000", "guard=off", "rollout.max_new_tokens=32", f"run={folder}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while not (folder / "metrics.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        for more in (["--resume", str(folder)], [*KEYS, f"run={folder}", "--overwrite"]):
            done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=180)
            assert done.returncode == 2, done.stderr
            assert f"is being written by process {first.pid} on" in " ".join(done.stderr.split())
    finally:
        first.kill()
        first.wait()
    steps = [row["step"] for row in RunFolder(folder).rows("metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    free = RunFolder(folder)
    free.lock()
    free.unlock()


def test_another_machine_is_named_and_needs_a_word(half, capsys):
    manifest = RunFolder(half).manifest
    manifest["engine"]["cpu capability"] = "AVX1024"
    (half / "manifest.json").write_text(json.dumps(manifest))
    code, printed = run_command(["adapt", "--resume", half], capsys)
    assert code == 2
    assert "cpu capability was AVX1024" in printed
    assert "--allow-different-numerics" in printed
    code, printed = run_command(["adapt", "--resume", half, "--allow-different-numerics"], capsys)
    assert code == 0, printed


def test_what_was_settled_at_the_start_holds_on_resume(half, capsys):
    """Memory budgets and verdicts come from the manifest, whatever is free or found now."""
    manifest = RunFolder(half).manifest
    assert manifest["engine"]["paths"]["shared_prefix"]["used"] is True
    manifest["engine"]["tokens"]["kv_cache"] = 77
    manifest["engine"]["paths"]["onednn_linear"] = {"used": False, "reason": "planted"}
    (half / "manifest.json").write_text(json.dumps(manifest))
    code, printed = run_command(["adapt", "-v", "--resume", half], capsys)
    assert code == 0, printed
    assert RunFolder(half).manifest["engine"]["tokens"]["kv_cache"] == 77
    assert RunFolder(half).manifest["engine"]["paths"]["onednn_linear"]["reason"] == "planted"
