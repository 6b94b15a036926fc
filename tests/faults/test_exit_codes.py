"""How commands end: exit codes, interruptions, closed pipes, lack of memory; and an evaluation that goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from spinerl import cli
from spinerl.errors import RunError, memory_line
from spinerl.exits import Signalled, as_ended, signals_raised
from spinerl.saved import SavedEvaluation
from tests.faults.test_run_folder import KEYS, append, files_up_to, insert, run_command

ASK = [
    "tiny-reasoner",
    "tiny/shift-a",
    "data.max_questions=7",
    "eval.samples=2",
    "rollout.max_new_tokens=8",
    "threads=1",
]
PROGRAM = [sys.executable, "-c", "from spinerl.cli import main; main()"]


def figures(file: Path) -> dict:
    return {key: value for key, value in json.loads(file.read_text()).items() if not key.startswith("time/")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of an evaluation that nothing stopped: p.jsonl and e.json."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = ["eval", *ASK, "--at-once", "2", "--predictions", folder / "p.jsonl", "--json", folder / "e.json"]
    try:
        cli.main([str(one) for one in arguments])
    except SystemExit as exit_:
        if exit_.code:
            raise
    assert sorted(path.name for path in folder.iterdir()) == ["e.json", "p.jsonl"]
    return folder


@contextmanager
def stopping_after(parts: int, error: BaseException):
    """Inside, an evaluation is stopped as by this error once so many parts are written."""
    add = SavedEvaluation.add

    def stop(self, part):
        if len(self.parts) == parts:
            raise error
        add(self, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SavedEvaluation, "add", stop)
        yield


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """The folder of an evaluation that Ctrl-C stopped after 4 of 7 questions."""
    folder = tmp_path_factory.mktemp("begun")
    with stopping_after(2, KeyboardInterrupt()), pytest.raises(SystemExit) as exit_:
        cli.main(["eval", *ASK, "--at-once", "2", "--predictions", str(folder / "p.jsonl")])
    assert exit_.value.code == 130
    return folder


@pytest.fixture
def half(begun, tmp_path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "half"))


def test_an_interrupted_evaluation_keeps_what_it_has(half, whole):
    assert sorted(path.name for path in half.iterdir()) == ["p.jsonl", "p.jsonl.unfinished"]
    assert (half / "p.jsonl").read_text().splitlines() == (whole / "p.jsonl").read_text().splitlines()[:4]


# (what is done to the files, what is said, questions that are there already)
KEPT = {
    "nothing": (str, "going on: 4 of 7 questions are in", 4),
    "half a line": (lambda f: append(f / "p.jsonl", b'{"id": "shift'), "going on: 4 of 7", 4),
    "half a record": (lambda f: append(f / "p.jsonl.unfinished", b'{"rows": 2, "su'), "going on: 4 of 7", 4),
    "rows without a record": (
        lambda f: append(f / "p.jsonl", b'{"id": "x", "greedy": {}}\n' * 2),
        "going on: 4 of 7",
        4,
    ),
    "a broken row": (lambda f: insert(f / "p.jsonl", b"\xff{oops\n"), "4 rows of", 0),
    "NULs at the end": (lambda f: insert_before_last(f / "p.jsonl", b"\0" * 99 + b"\n"), "2 rows of", 2),
    "an odd record": (lambda f: append(f / "p.jsonl.unfinished", b'{"rows": "x"}\n'), "going on: 4 of 7", 4),
    "rows gone": (lambda f: (f / "p.jsonl").write_text(""), "4 rows of", 0),
    "the file gone": (lambda f: (f / "p.jsonl").unlink(), "4 rows of", 0),
}


def insert_before_last(file: Path, line: bytes) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:-1], line, lines[-1]]))


@pytest.mark.parametrize("case", KEPT)
def test_an_evaluation_that_goes_on_equals_one_that_nothing_stopped(half, whole, capsys, monkeypatch, case):
    damage, line, num_kept = KEPT[case]
    damage(half)
    answered = []
    add = SavedEvaluation.add
    monkeypatch.setattr(SavedEvaluation, "add", lambda self, part: (answered.append(len(part.rows)), add(self, part)))
    code, printed = run_command(["eval", "--resume", half / "p.jsonl", "--json", half / "e.json"], capsys)
    assert (code, line in printed) == (0, True), printed
    assert sum(answered) == 7 - num_kept
    assert (half / "p.jsonl").read_bytes() == (whole / "p.jsonl").read_bytes()
    assert figures(half / "e.json") == figures(whole / "e.json")
    assert sorted(path.name for path in half.iterdir()) == ["e.json", "p.jsonl"]


def set_head(folder: Path, **changed: object) -> None:
    head, _, rest = (folder / "p.jsonl.unfinished").read_text().partition("\n")
    (folder / "p.jsonl.unfinished").write_text(json.dumps(json.loads(head) | changed) + "\n" + rest)


# (what is done, arguments, exit code, what is said)
REFUSED = {
    "other settings": (None, ["--resume", "p.jsonl", *ASK], 2, "goes on with an evaluation as it was begun"),
    "a second beginning": (
        None,
        [*ASK, "--predictions", "p.jsonl"],
        2,
        "go on with `spinerl eval --resume p.jsonl`, or",
    ),
    "nothing unfinished": (
        lambda f: (f / "p.jsonl.unfinished").unlink(),
        ["--resume", "p.jsonl"],
        2,
        "p.jsonl is whole",
    ),
    "no such file": (None, ["--resume", "q.jsonl"], 2, "has no record q.jsonl.unfinished next to it"),
    "no such folder": (lambda f: (f / "d").mkdir(), ["--resume", "d"], 2, "d: no evaluation is unfinished"),
    "several": (
        lambda f: (f / "q.unfinished").write_text(""),
        ["--resume", "."],
        2,
        "several evaluations are unfinished",
    ),
    "an empty record": (lambda f: (f / "p.jsonl.unfinished").write_text(""), ["--resume", "p.jsonl"], 1, "is damaged"),
    "an odd record": (lambda f: set_head(f, config=[1]), ["--resume", "p.jsonl"], 1, "p.jsonl.unfinished is damaged"),
    "an odd size": (lambda f: set_head(f, per_part="x"), ["--resume", "p.jsonl"], 1, "p.jsonl.unfinished is damaged"),
    "another model": (
        lambda f: set_head(f, model={"name": "x", "fingerprint": "0"}),
        ["--resume", "p.jsonl"],
        2,
        "p.jsonl cannot be resumed: its model tiny-reasoner has changed since it began",
    ),
    "another machine": (
        lambda f: set_head(f, engine={"cpu capability": "AVX1024"}),
        ["--resume", "p.jsonl"],
        2,
        "p.jsonl would end with other numbers here than where it began (cpu capability was AVX1024",
    ),
    "a pipe": (
        lambda f: ((f / "p.jsonl").unlink(), os.mkfifo(f / "p.jsonl")),
        ["--resume", "p.jsonl"],
        1,
        "named pipe",
    ),
    "no arguments": (None, [], 2, "MODEL and DATA are needed"),
    "often, but where to": (None, [*ASK, "--at-once", "3"], 2, "name one"),
    "two models": (
        None,
        [*ASK[:1], *ASK[:1], "data=tiny/shift-a", "--predictions", "x"],
        2,
        "evaluate the two one by one",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_evaluation_cannot_go_on_with(half, capsys, monkeypatch, case):
    monkeypatch.chdir(half)
    damage, arguments, code, line = REFUSED[case]
    if damage is not None:
        damage(half)
    before = {path.name: path.read_bytes() for path in half.iterdir() if path.is_file()}
    found, printed = run_command(["eval", *arguments], capsys)
    assert (found, line in printed) == (code, True), printed
    assert {path.name: path.read_bytes() for path in half.iterdir() if path.is_file()} == before


def test_one_process_goes_on_with_an_evaluation(half, capsys):
    held = SavedEvaluation.resume(half / "p.jsonl")
    code, printed = run_command(["eval", "--resume", half], capsys)
    assert (code, "is being written by another process" in printed) == (2, True), printed
    del held


def test_a_full_disk_keeps_an_evaluation(whole, tmp_path, capsys):
    for limit in range(4000, 9000, 300):  # until the first lines fit: less is refused before anything is asked
        file = tmp_path / f"{limit}.jsonl"
        with files_up_to(limit):
            code, printed = run_command(["eval", *ASK, "--at-once", "2", "--predictions", file], capsys)
        if code != 2:
            break
    assert code == 1, printed
    assert f"cannot write to {file}: File too large; free some space, then `spinerl eval --resume {file}`" in printed
    code, printed = run_command(["eval", "--resume", file], capsys)
    assert code == 0, printed
    assert file.read_bytes() == (whole / "p.jsonl").read_bytes()


# What stops a command, as it would be raised; (exit code, what is said)
ENDS = {
    "Ctrl-C": (KeyboardInterrupt(), 130, "spinerl: interrupted; 2 of 7 questions are in"),
    "SIGTERM": (Signalled(signal.SIGTERM), 143, "spinerl: interrupted by SIGTERM; 2 of 7 questions are in"),
    "SIGHUP": (Signalled(signal.SIGHUP), 129, "spinerl: interrupted by SIGHUP; 2 of 7 questions are in"),
    "closed pipe": (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, "what read the output has ended; 2 of 7"),
    "memory": (MemoryError(), 1, "spinerl: out of memory; with more of it, or less else in it, `spinerl eval --resume"),
    "torch's memory": (
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."
        ),
        1,
        "spinerl: out of memory: 4.0 GiB were asked for; with more of it",
    ),
    "CUDA's memory": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of"),
        1,
        "spinerl: out of memory: 20.00 GiB were asked for",
    ),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), 1, "cannot write to"),
    "safetensors' disk": (ValueError("I/O error: No space left on device (os error 28)"), 1, "cannot write to"),
    "a file that cannot be opened": (
        PermissionError(errno.EACCES, "Permission denied", "x"),
        2,
        "x: Permission denied",
    ),
    "ours": (RunError("no more"), 1, "spinerl: no more"),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_ends_a_command_is_said_in_one_line(tmp_path, capsys, case):
    error, code, line = ENDS[case]
    with stopping_after(1, error):
        found, printed = run_command(
            [
                "eval",
                *ASK[:4],
                "rollout.max_new_tokens=2",
                "threads=1",
                "--at-once",
                "2",
                "--predictions",
                tmp_path / "p",
            ],
            capsys,
        )
    assert (found, line in printed) == (code, True), printed
    assert printed.count("spinerl: ") == 1
    assert (tmp_path / "p.unfinished").is_file()


def test_a_fault_of_the_program_keeps_its_traceback():
    assert as_ended(ValueError("a fault")) is None
    assert memory_line(ValueError("a fault")) is None


def program(arguments, **options) -> subprocess.Popen:
    return subprocess.Popen([*PROGRAM, *map(str, arguments)], stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_is_raised_and_one_that_is_ignored_is_not(name):
    number = getattr(signal, name)
    signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    with signals_raised(), pytest.raises(Signalled) as raised:
        signal.raise_signal(number)
    assert raised.value.number == number
    assert signal.getsignal(number) is signal.SIG_DFL
    signal.signal(number, signal.SIG_IGN)  # as nohup does
    try:
        with signals_raised():
            signal.raise_signal(number)
    finally:
        signal.signal(number, signal.SIG_DFL)


def test_a_signal_ends_a_run_with_the_line_that_goes_on(tmp_path):
    """The real thing: a process, its exit code, and no traceback."""
    folder = tmp_path / "my run"
    process = program(["adapt", *KEYS, "steps=1000", "guard=off", f"run={folder}"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not (folder / "checkpoints" / "step-000001").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143
    assert "Traceback" not in said
    assert f"`spinerl adapt --resume '{folder}'` goes on after step" in said


PIPED = {
    "plain text": ["config"],
    "a table": ["config", "--keys"],
    "adapt": ["adapt", *KEYS, "steps=500", "guard=off", "run=run"],
}


@pytest.mark.parametrize("case", [*list(PIPED)[:-1], pytest.param("adapt", marks=pytest.mark.faults)])
def test_a_reader_that_goes_away_is_no_traceback(tmp_path, case):
    process = program(PIPED[case], stdout=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    if case == "adapt":
        process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read()
    assert process.wait(180) == 141, said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    if case == "adapt":
        assert "what read the output has ended; `spinerl adapt --resume run`" in said
    else:
        assert said == ""


def test_a_full_device_is_named(tmp_path):
    with open("/dev/full", "w") as full:
        process = program(["config"], stdout=full, cwd=tmp_path)
        said = process.communicate(timeout=120)[1]
    assert (process.returncode, said.strip()) == (1, "spinerl: No space left on device")


@pytest.mark.faults
def test_too_little_memory_is_one_line_and_the_run_goes_on(tmp_path):
    """A real limit on what a process may allocate (ulimit -v), reached in the first step."""
    folder = tmp_path / "run"
    code = (
        "import resource, sys\n"
        "from spinerl.cli import main\n"
        "import torch, transformers, spinerl.train\n"
        "kib = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (kib + int(sys.argv.pop(1)) * 2**20,) * 2)\n"
        "main()\n"
    )
    keys = [*KEYS, "guard=off", "group_size=512", "rollout.max_new_tokens=64", "steps=1", "engine.disable=[cpu]"]
    command = [sys.executable, "-c", code, "400", "adapt", *keys, f"run={folder}"]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "spinerl: out of memory" in done.stderr
    assert f"`spinerl adapt --resume {folder}`" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


COMMANDS = {
    "adapt": (["adapt", "stepz=3"], 2, "unknown key stepz"),
    "adapt --resume": (["adapt", "--resume", "gone"], 2, "is not a run folder"),
    "eval": (["eval", "no/such/model", "tiny/shift-a"], 2, "no such folder"),
    "eval of files": (["eval", "empty", "empty"], 2, "data=empty: files without an ending are not read"),
    "preflight": (["preflight", "tiny-reasoner", "gone.jsonl"], 2, "there is no such file"),
    "score": (["score", "empty"], 2, "holds no rows"),
    "score of none": (["score", "gone"], 2, "cannot read gone"),
    "data show": (["data", "show", "gone.jsonl"], 2, "there is no such file"),
    "data check": (["data", "check", "bad.jsonl"], 1, "error: line 1"),
    "select": (["select", "."], 2, "no run in ."),
    "merge": (["merge", "tiny-reasoner", "--out", "x"], 2, "holds no adapters"),
    "compare": (["compare", "methods=spin"], 2, "neither a method nor a variant"),
    "report": (["report", "gone"], 2, "there is no such folder"),
    "config": (["config", "group_size=0"], 2, "group_size=0"),
    "bench": (["bench", "parts=no"], 2, "parts"),
    "export": (["export", "verl", "--out", "empty"], 2, "empty"),
    "doctor": (["doctor", "no/such/model"], 2, "no such folder"),
    "no command": (["adopt"], 2, "No such command"),
    "no option": (["adapt", "--hurry"], 2, "No such option"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_every_command_refuses_with_its_code(tmp_path, capsys, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("")
    Path("bad.jsonl").write_text("{oops\n")
    arguments, code, line = COMMANDS[case]
    found, printed = run_command(arguments, capsys)
    assert (found, line in printed) == (code, True), printed
    assert sorted(path.name for path in Path().iterdir()) == ["bad.jsonl", "empty"]
