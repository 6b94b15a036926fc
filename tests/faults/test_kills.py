"""A process that is killed at any operation on the file system, or by any signal, leaves a run that can be resumed: its
weights, figures and files are then those of a run that was never interrupted.

A few moments are tried in `make test`, all of them in `make test-faults`.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fork_server import COMPILER, KNOWN, ROOT, Server, contents

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD, /proc")

SMALL = [
    "data.max_questions=3", "questions_per_step=2", "group_size=2", "steps=2", "threads=1", "rollout.max_new_tokens=8",
    "answer.truncated=count", "eval.samples=0", "checkpoint.every=1", "checkpoint.keep=1", "log.sample_every=1",
    "optim.lr=1e-3",
]  # fmt: skip
CONFIGURATIONS = {
    "plain": [*SMALL, "guard=off", "eval.samples=2", "band.weight=0.1", "band.edges=ema", "optim.schedule=cosine"],
    "guard": [
        *SMALL, "guard.every=1", "guard.questions=2", "guard.samples=2", "guard.no_go=0",
        "vote.memory=ema", "vote.memory_start=2", "vote.slow_decay=0.9",
    ],
    "rounds": [*SMALL, "method=roirl", "guard=off", "steps=3", "checkpoint.every=2", "rollout.max_new_tokens=24"],
    "images": [
        *SMALL, "model=tiny-vlm", "data=tiny-vqa/shift-a", "guard=off", "stream.on=true", "lora.rank=2",
        "engine.disable=[cpu]",
    ],
}  # fmt: skip

PARTS = 4  # of the operations of a configuration, a test each


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[Callable[[str], Server]]:
    """A function: name of a configuration -> its server."""
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    made: dict[str, Server] = {}

    def server(name: str) -> Server:
        if name not in made:
            made[name] = Server(tmp_path_factory.mktemp(name).resolve(), CONFIGURATIONS[name])
        return made[name]

    yield server
    for one in made.values():
        one.close()


def same(folder: Path, whole: Path) -> None:
    found, expected = contents(folder), contents(whole)
    assert {"model", "metrics.jsonl", "labels.jsonl", "eval.jsonl", "samples.jsonl"} <= expected.keys()
    assert expected["report.html"] is True
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    assert json.loads((folder / "manifest.json").read_text())["finished"]


# ---- killed at an operation ----


def go_on(server: Server, folder: Path, **job: Any) -> int:
    """Resume a run; begin it again where it was killed before there was one."""
    return server.ask(folder, resume=(folder / "config.yaml").is_file(), **job)


def check_kill(server: Server, folder: Path, at: int, half: bool, again: int = 0) -> None:
    """Killed at this operation, resumed, killed at the operation `again` (0: not), resumed."""
    what = f"{server.operations[at - 1]} ({'half' if half else 'before'}), then {again}"
    assert server.ask(folder, at=at, half=half) == -signal.SIGKILL, what
    if again:
        assert go_on(server, folder, at=again, half=half) in (0, -signal.SIGKILL), f"{what}: {server.words()}"
    code = go_on(server, folder, known=True)
    assert code in (0, KNOWN), f"{what}: {server.words()}"
    try:
        if code == 0:
            same(folder, server.whole)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None
    shutil.rmtree(folder)


def moments(server: Server) -> list[int]:
    """The numbers of the operations, from 1 on; of many writes in a row into one file the first two, the last, and
    every eighth."""
    lines = ["", *server.operations, ""]
    return [
        at
        for at, line in enumerate(lines)
        if line
        and not (line.startswith("write") and line == lines[at - 1] == lines[at - 2] == lines[at + 1] and at % 8)
    ]


def test_killed_at_some_operations(servers, tmp_path):
    server = servers("guard")
    kinds = {line.partition(" ")[0] for line in server.operations}
    assert {"open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir", "truncate"} <= kinds
    for at in moments(server)[random.Random(0).randrange(24) :: 24]:
        half = at % 3 > 0 and server.operations[at - 1].startswith("write")
        check_kill(server, tmp_path / f"{at}", at, half)


@pytest.mark.faults
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_killed_at_every_operation(servers, tmp_path, name, part):
    """Before it, and where it writes also after half the bytes; often killed once more while it is resumed."""
    server, draw = servers(name), random.Random(f"{name} {part}")
    assert len(server.operations) > 100
    for at in moments(server)[part::PARTS]:
        for half in (False, True):
            if not half or server.operations[at - 1].startswith("write"):
                again = draw.randint(1, len(server.operations)) if draw.random() < 0.3 else 0
                check_kill(server, tmp_path / f"{at}-{half}", at, half, again)


# ---- signals ----

SIGNALS = {"SIGTERM": -signal.SIGTERM, "SIGINT": 130, "SIGHUP": -signal.SIGHUP, "SIGKILL": -signal.SIGKILL}


def check_signals(server: Server, folder: Path, name: str, draw: random.Random) -> None:
    """A run that gets this signal at random moments, over and over until it is done."""
    for _ in range(2):
        ended = go_on(server, folder, signal=name, after=draw.uniform(0, server.seconds))
        assert ended in (0, SIGNALS[name]), server.words()
    assert go_on(server, folder) == 0, server.words()
    same(folder, server.whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_at_any_moment(servers, tmp_path, name):
    check_signals(servers("guard"), tmp_path / "run", name, random.Random(name))


@pytest.mark.faults
@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_signals_at_many_moments(servers, tmp_path, configuration, name):
    draw = random.Random(f"{configuration} {name}")
    for number in range(5):
        check_signals(servers(configuration), tmp_path / f"{number}", name, draw)


# ---- comparisons ----

COMPARISON = [
    "methods=ttrl", "seeds=0", "data=tiny/shift-a", "data.max_questions=4", "steps=2", "questions_per_step=2",
    "group_size=2", "eval.every=1", "checkpoint.every=1", "rollout.max_new_tokens=12", "samples=2", "votes=4",
    "elsewhere_questions=3", "forcing.budget=16",
]  # fmt: skip


def do_comparison(out: str) -> None:
    """All runs of a comparison in this process, as its children do them, then what the command does after them."""
    from rich.console import Console

    from spinerl.comparison import child, compare
    from spinerl.comparison.plan import plan
    from spinerl.comparison.state import states

    arguments = [*COMPARISON, f"out={out}"]
    comparison = plan(arguments)
    found = states(comparison)
    for task in comparison.tasks:
        job = {"folder": task.folder, "config": task.config.model_dump(mode="json"), "after": task.after,
               "state": found[task.folder], "overwrite": False}  # fmt: skip
        if job["state"] != "done":
            child._run(job, child._Teller(lambda **_: None))
    compare(arguments, Console(file=sys.stderr))


def comparison_contents(out: Path) -> dict[str, Any]:
    found = contents(out)
    page = json.dumps(json.loads((out / "comparison.json").read_text()), indent=1)
    found["comparison.json"] = [line for line in page.replace(str(out), "OUT").splitlines() if "seconds" not in line]
    for file in out.glob("*/*/compare/figures.json"):
        figures = json.loads(file.read_text())
        found[str(file.relative_to(out))] = {
            part: [name for name in sorted(values) if name.startswith("time/")]
            + [(name, value) for name, value in sorted(values.items()) if not name.startswith("time/")]
            for part, values in figures.items()
        }
    for name in ("comparison.md", "comparison.csv"):
        found[name] = (out / name).stat().st_size > 0
    return found


@pytest.mark.faults
def test_a_comparison_killed_at_many_operations(servers, tmp_path):
    server = servers("plain")
    whole = tmp_path / "whole"
    job = {"call": "tests.faults.test_kills:do_comparison"}
    assert server.ask(whole, **job, log=tmp_path / "operations.txt") == 0, server.words()
    operations = (tmp_path / "operations.txt").read_text().splitlines()
    expected = comparison_contents(whole)
    assert any("/compare/" in name for name in expected)
    own = [number for number, line in enumerate(operations, 1) if "/" not in line.partition(" /")[2]]
    assert len(own) > 10  # of the command itself
    asking = [number for number, line in enumerate(operations, 1) if "/.compare.tmp" in line]
    assert len(asking) > 10  # of what follows a run
    for at in sorted({*own, *asking[::4], *range(1, len(operations), 29)}):
        out = tmp_path / f"{at}"
        assert server.ask(out, **job, at=at, half=at % 2 == 0) == -signal.SIGKILL, operations[at - 1]
        assert server.ask(out, **job) == 0, f"{operations[at - 1]}: {server.words()}"
        found = comparison_contents(out)
        assert sorted(found) == sorted(expected), operations[at - 1]
        assert [name for name in found if found[name] != expected[name]] == [], operations[at - 1]


@pytest.mark.faults
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGHUP"])
def test_the_children_of_a_killed_comparison_end_and_it_continues(tmp_path, name):
    out = tmp_path / "c"
    command = [sys.executable, "-m", "spinerl.cli", "compare", *COMPARISON, "jobs=1", f"out={out}"]
    with (tmp_path / "words.txt").open("w") as words:
        process = subprocess.Popen(command, cwd=ROOT, stdout=words, stderr=words)
    deadline = time.monotonic() + 120
    while not list(out.glob("*/*/metrics.jsonl")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert children
    process.send_signal(getattr(signal, name))
    assert process.wait(30) == {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGHUP": 129}[name]
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in children)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole = subprocess.run([*command[:-1], f"out={tmp_path / 'whole'}"], cwd=ROOT, capture_output=True, timeout=300)
    assert whole.returncode == 0
    found, expected = (comparison_contents(folder) for folder in (out, tmp_path / "whole"))
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
