"""What is broken in a run folder is named in one line, nothing on the disk is lost, and two writers never meet."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from spinerl.config import load_config
from spinerl.errors import CheckpointError
from spinerl.files import remove
from spinerl.runs import MARK, RunFolder
from spinerl.tiny import model_path
from spinerl.train import adapt
from tests.e2e.test_guarded_runs import Quiet
from tests.faults.commands import run_command

KEYS = [
    "data.max_questions=4", "questions_per_step=2", "group_size=2", "steps=4", "threads=1", "rollout.max_new_tokens=12",
    "answer.truncated=count", "checkpoint.every=1", "guard.every=2", "guard.questions=2", "guard.samples=2",
    "guard.no_go=0", "eval.samples=0", "log.sample_every=1", "optim.lr=1e-3",
]  # fmt: skip


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
    "a step that is a text": (
        lambda f: set_row(f / "metrics.jsonl", {"step": "1"}),
        1,
        'metrics.jsonl, line 1: `step` is a text ("1"), where a whole number from 0 up belongs',
    ),
    "a step that is true": (lambda f: set_row(f / "metrics.jsonl", {"step": True}), 1, "line 1: `step` is true"),
    "a step under 0": (lambda f: set_row(f / "tokens.jsonl", {"step": -1}), 1, "line 1: `step` is a number (-1)"),
    "a step twice": (
        lambda f: insert(f / "metrics.jsonl", b'{"step": 1}\n'),
        1,
        "metrics.jsonl, line 2: step 1 is there twice; delete the line, or what comes from it on: then `spinerl adapt "
        "--resume",
    ),
    "descending steps": (
        lambda f: append(f / "labels.jsonl", b'{"step": 1, "id": "q", "label": null}\n'),
        1,
        "step 1 comes after step 2",
    ),
    "an evaluation twice": (lambda f: insert(f / "eval.jsonl", b'{"step": 0}\n'), 1, "step 0 is there twice"),
    "an evaluation of texts": (
        lambda f: set_row(f / "eval.jsonl", {"eval/truncated_frac": "all"}),
        1,
        'line 1: `eval/truncated_frac` is a text ("all"), where a number belongs',
    ),
    "a look without a score": (
        lambda f: set_row(f / "guard.jsonl", {"score": None}),
        1,
        "guard.jsonl, line 1: `score` is null, where a number belongs",
    ),
    "a look with a list": (
        lambda f: set_row(f / "guard.jsonl", {"probe/initial_support": [1]}),
        1,
        "`probe/initial_support` is a list ([1]), where a number belongs",
    ),
    "a look beyond all numbers": (lambda f: set_row(f / "guard.jsonl", {"score": 1e999}), 1, "where a number belongs"),
    "no look at all": (lambda f: (f / "guard.jsonl").unlink(), 1, "guard.jsonl has lost the look before step 1"),
    "a label without a question": (
        lambda f: set_row(f / "labels.jsonl", {"id": 5}),
        1,
        "labels.jsonl, line 1: `id` is a number (5), where a text belongs",
    ),
    "a label that is an object": (
        lambda f: set_row(f / "labels.jsonl", {"label": {}}),
        1,
        "`label` is an object ({}), where a text or null belongs",
    ),
    "a manifest with a text for the model": (
        lambda f: set_row(f / "manifest.json", {"model": "x"}),
        1,
        'manifest.json is damaged (`model` is a text ("x"), where an object belongs); delete it, and `spinerl adapt',
    ),
    "a manifest with odd verdicts": (
        lambda f: set_row(f / "manifest.json", {"engine": {"paths": {"onednn_linear": 5}}}),
        1,
        "manifest.json is damaged (`engine` is not as it was written)",
    ),
    "config is no YAML": (lambda f: (f / "config.yaml").write_text("a: [\n"), 2, "is not valid YAML"),
    "config is binary": (lambda f: (f / "config.yaml").write_bytes(b"\xff\0"), 2, "cannot read recipe"),
    "config has a strange key": (lambda f: append(f / "config.yaml", b"stepz: 3\n"), 2, "unknown key stepz"),
    "config is gone": (lambda f: (f / "config.yaml").unlink(), 2, "is not a run folder"),
}


def set_row(file: Path, changed: dict) -> None:
    """Other values in the file's first row."""
    first, _, rest = file.read_text().partition("\n") if file.suffix == ".jsonl" else (file.read_text(), "", "")
    file.write_text(json.dumps(json.loads(first) | changed) + "\n" + rest)


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


def put_away(place: Path, make) -> None:
    """Something else in the place of a file or folder."""
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    make(place)


def a_file(place: Path) -> None:
    place.write_text("mine")


def a_link(place: Path) -> None:
    (place.parent.parent / "elsewhere").mkdir(exist_ok=True)
    place.symlink_to(place.parent.parent / "elsewhere")


def a_broken_link(place: Path) -> None:
    place.symlink_to(place.parent / "gone")


# (place, what is there, what it is called)
PLACES = [
    ("checkpoints", a_file, "checkpoints is a file, where a folder of the run belongs"),
    ("best", a_file, "best is a file, where a folder"),
    ("model", a_file, "model is a file, where a folder"),
    ("images", a_file, "images is a file, where a folder"),
    ("predictions", a_file, "predictions is a file, where a folder"),
    ("compare", a_file, "compare is a file, where a folder"),
    ("model", a_link, "model is a symbolic link, where a folder"),
    ("best", a_broken_link, "best is a broken symbolic link"),
    ("checkpoints", a_broken_link, "checkpoints is a broken symbolic link"),
    ("checkpoints", os.mkfifo, "checkpoints is a named pipe"),
    ("metrics.jsonl", Path.mkdir, "metrics.jsonl is a folder, where a file of the run belongs"),
    ("manifest.json", Path.mkdir, "manifest.json is a folder, where a file"),
    ("report.html", Path.mkdir, "report.html is a folder, where a file"),
    ("eval.jsonl", os.mkfifo, "eval.jsonl is a named pipe, where a file"),
    ("guard.jsonl", a_link, "guard.jsonl is a symbolic link, where a file"),
    ("labels.jsonl", a_broken_link, "labels.jsonl is a broken symbolic link"),
]


@pytest.mark.parametrize(("name", "make", "line"), PLACES, ids=[f"{n}: {m.__name__}" for n, m, _ in PLACES])
def test_something_else_in_a_place_of_the_runs(half, capsys, name, make, line):
    put_away(half / name, make)
    before = contents(half)
    code, printed = run_command(["adapt", "--resume", half], capsys)
    assert (code, line in printed) == (1, True), printed
    steps = "begins again at step 1" if name == "checkpoints" else "goes on after step 2"
    assert f"move it away, then `spinerl adapt --resume {half}` {steps}" in printed
    assert contents(half) == before
    code, printed = run_command(["report", half], capsys)
    assert code in (0, 1, 2), printed
    assert "Traceback" not in printed


def test_a_lock_that_is_a_link_is_not_followed(half, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    (half / ".lock").unlink()
    (half / ".lock").symlink_to(tmp_path / "mine")
    code, printed = run_command(["adapt", "--resume", half], capsys)
    assert code == 2, printed
    assert "cannot be written" in printed
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "fault", ["a pipe for weights", "a pipe for checksums", "no checksums in it", "a file", "a link"]
)
def test_a_checkpoint_that_is_none_is_set_aside_without_a_hang(half, fault):
    folder = half / "checkpoints" / "step-000002"
    if fault == "a pipe for weights":
        put_away(folder / "model.safetensors", os.mkfifo)
    elif fault == "a pipe for checksums":
        put_away(folder / "checksums.json", os.mkfifo)
    elif fault == "no checksums in it":
        (folder / "checksums.json").write_text("{}")
    else:
        put_away(folder, a_file if fault == "a file" else a_broken_link)
    (half / "checkpoints" / "step-000002.damaged").symlink_to("gone")
    run = RunFolder(half)
    (half / "checkpoints" / "step-000001").rename(half / "checkpoints" / "old")  # no name of a checkpoint
    notes: list[str] = []
    with pytest.raises(
        CheckpointError, match=r"was set aside; `spinerl adapt --resume .*once more begins again at step 1"
    ):
        run.load_checkpoint(None, None, note=notes.append)  # pyright: ignore[reportArgumentType]
    assert len(notes) == 1
    assert "step-000002.damaged-2" in notes[0]
    assert os.path.lexists(half / "checkpoints" / "step-000002.damaged-2")


def test_what_a_kill_left_is_swept_when_the_run_goes_on(half, capsys):
    """Drafts of the run's own files and folders, whole or in part; no file of the user's."""
    ours = [
        ".metrics.jsonl.tmp", ".manifest.json.tmp", ".report.html.4194305.tmp", ".model.tmp/model.safetensors",
        ".best.old.tmp/x", "checkpoints/.step-000001.old.tmp/optimizer.pt", "checkpoints/.step-000003.tmp/state.json",
        "predictions/.step-000002.jsonl.tmp", "images/.0123456789abcdef.tmp",
    ]  # fmt: skip
    mine = [".notes.tmp", "checkpoints/.mine.tmp", "notes.tmp", ".metrics.jsonl.bak", "best.old/x", ".vim.swp.tmp/x"]
    for name in (*ours, *mine):
        (half / name).parent.mkdir(exist_ok=True, parents=True)
        (half / name).write_text("half")
    code, printed = run_command(["adapt", "--resume", half], capsys)
    assert code == 0, printed
    assert [name for name in ours if os.path.lexists(half / Path(name).parts[0]) and (half / name).exists()] == []
    assert {name for name in mine if not (half / name).exists()} == set()
    assert not list(half.rglob(".*.old.tmp"))


def test_an_old_checkpoint_goes_at_once(half, monkeypatch):
    """Killed while its files are removed one by one, it has no checkpoint's name any more."""
    monkeypatch.setattr(shutil, "rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove(half / "checkpoints" / "step-000001")
    monkeypatch.undo()
    assert {path.name for path in (half / "checkpoints").iterdir()} == {".step-000001.old.tmp", "step-000002"}
    RunFolder(half).sweep()
    assert {path.name for path in (half / "checkpoints").iterdir()} == {"step-000002"}


def test_overwrite_leaves_drafts_that_are_not_the_runs(half, capsys):
    (half / ".thesis.tmp").write_text("years of work")
    (half / "compare").mkdir()
    code, printed = run_command(["adapt", *KEYS, "steps=0", f"run={half}", "--overwrite"], capsys)
    assert code == 0, printed
    assert (half / ".thesis.tmp").read_text() == "years of work"
    assert not (half / "compare").exists(), "answers of the model before would be taken for this one's"


@contextmanager
def files_up_to(num_bytes: int):
    """Inside, no file may grow beyond this: what is written fails in the middle, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("stream", ["eval.jsonl", "samples.jsonl", "labels.jsonl"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_line_that_the_disk_had_no_space_for_is_not_there(half, stream, share):
    run = RunFolder(half)
    before = run.rows(stream)
    more = {**before[-1], "step": 3}
    size = (half / stream).stat().st_size
    with files_up_to(size + int(share * len(json.dumps(more)))), pytest.raises(OSError, match="too large"):
        run.append(stream, more)
    assert run.rows(stream) == before
    run.append(stream, more)
    assert run.rows(stream) == [*before, more]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> bytes:
    """The weights that a run which nothing stopped ends with."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    adapt(load_config(overrides=[*KEYS, f"run={folder}"]), Quiet())
    return weights(folder)


@pytest.mark.parametrize("full", ["small files", "weights", "optimizer"])
def test_a_run_whose_disk_was_full_goes_on_as_if_it_had_not_been(half, uninterrupted, capsys, full):
    size = (half / "checkpoints" / "step-000002" / "model.safetensors").stat().st_size
    limit = {"small files": 1000, "weights": size // 2, "optimizer": size + 1000}[full]
    with files_up_to(limit):
        code, printed = run_command(["adapt", "--resume", half], capsys)
    assert code == 1, printed
    assert f"cannot write to {half}: " in printed
    assert f"free some space, then `spinerl adapt --resume {half}`" in printed
    code, printed = run_command(["adapt", "--resume", half], capsys)
    assert code == 0, printed
    assert weights(half) == uninterrupted
    assert not list(half.rglob(".*.tmp"))


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


def test_one_process_writes_at_a_time(tmp_path, capsys):
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
            code, printed = run_command(["adapt", *more], capsys)
            assert code == 2, printed
            assert f"is being written by process {first.pid} on" in printed
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
