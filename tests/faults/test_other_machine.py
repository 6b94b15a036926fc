"""A run that is resumed where numbers round otherwise is refused by what differs; where they do not, it goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from spinerl.runs import RunFolder
from tests.faults.fork_server import COMPILER, ROOT, Server
from tests.faults.test_kills import same

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD, sched_setaffinity")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="compiled loops need a C compiler")

KEYS = [
    "data.max_questions=4", "questions_per_step=2", "group_size=2", "steps=3", "rollout.max_new_tokens=12",
    "answer.truncated=count", "eval.samples=0", "guard=off", "optim.lr=1e-3", "checkpoint.every=1",
    "log.sample_every=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    made = Server(tmp_path_factory.mktemp("one").resolve(), [*KEYS, "threads=1"])
    yield made
    made.close()


@pytest.fixture(scope="module")
def stopped(server) -> Path:
    """A run with one thread that was killed at its last step."""
    folder = server.whole.with_name("stopped")
    at = next(i for i, line in enumerate(server.operations, 1) if "/checkpoints/.step-000003" in line)
    assert server.ask(folder, at=at) == -9
    assert [row["step"] for row in RunFolder(folder).rows("metrics.jsonl")] == [1, 2, 3]
    return folder


@pytest.fixture
def half(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def command(*arguments: object, **environment: str) -> tuple[int, str]:
    """(exit code, what was printed) of a real `spinerl` in these circumstances; `cores`: how many it may use."""
    words = [sys.executable, "-m", "spinerl.cli", *map(str, arguments)]
    cores = environment.pop("cores", "")
    if cores:
        words = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *words]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", **environment}  # other processes may need the cores
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def two_threads(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "whole"
    less = ["data.max_questions=2", "steps=2", "rollout.max_new_tokens=4"]
    code, printed = command("adapt", *KEYS, *less, "threads=2", f"run={folder}")
    assert code == 0, printed
    assert RunFolder(folder).manifest["engine"]["threads"] == 2
    return folder


def stopped_again(whole: Path, folder: Path) -> Path:
    """A copy as the run was after the checkpoint of step 1 of 2."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "step-000002")
    return folder


@pytest.mark.faults
@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "cores": "1"},
        {"OMP_NUM_THREADS": "3"},
        {"OMP_DYNAMIC": "true", "cores": "1"},
    ],
    ids=" ".join,
)
def test_fewer_cores_change_nothing(two_threads, tmp_path, environment):
    """A run has the number of threads it began with, however many the machine or the user offers now."""
    run = stopped_again(two_threads, tmp_path / "run")
    code, printed = command("adapt", "--resume", run, **environment)
    assert code == 0, printed
    assert "after step 1" in printed
    same(run, two_threads)


def test_openmp_that_starts_fewer_threads_is_refused(two_threads, tmp_path):
    """oneDNN's results are then wrong, and it reports nothing."""
    run = stopped_again(two_threads, tmp_path / "run")
    code, printed = command("adapt", "--resume", run, OMP_THREAD_LIMIT="1")
    assert (code, printed) == (
        2, "spinerl: threads=2, but OMP_THREAD_LIMIT=1 in the environment has OpenMP start fewer: unset it"
    )  # fmt: skip
    assert [row["step"] for row in RunFolder(run).rows("metrics.jsonl")] == [1, 2]
    new = tmp_path / "new"
    code, printed = command("adapt", *KEYS, "steps=1", "data.max_questions=2", f"run={new}", OMP_THREAD_LIMIT="1")
    assert code == 0, printed
    assert RunFolder(new).manifest["engine"]["threads"] == 1


def edit_manifest(run: Path, *keys: str, value: object) -> None:
    manifest = RunFolder(run).manifest
    place = manifest
    for key in keys[:-1]:
        place = place[key]
    assert keys[-1] in place
    place[keys[-1]] = value
    (run / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def one_thread_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def edit_threads(run: Path) -> None:
    file = run / "config.yaml"
    text = file.read_text()
    assert "threads: 1\n" in text
    file.write_text(text.replace("threads: 1\n", "threads: 2\n"))


def resume_with(folder: str) -> None:
    """Resume a run with the environment of job.json, in a forked process that has not looked for compiled loops."""
    from spinerl.engine.cpu import library
    from tests.faults import test_native  # noqa: F401 - imported before the environment changes

    os.environ.update(json.loads(Path(folder).with_suffix(".json").read_text()))
    library._loaded.cache_clear()
    from spinerl.cli import main

    try:
        main(["adapt", "--resume", folder])
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)


REFUSED = {
    "another number of threads": (edit_threads, "threads was 1, is 2"),
    "another spinerl": (lambda run: edit_manifest(run, "spinerl", value="0.0.9"), "spinerl was 0.0.9, is "),
    "another torch": (lambda run: edit_manifest(run, "torch", value="1.13.1"), "torch was 1.13.1, is "),
    "another transformers": (
        lambda run: edit_manifest(run, "transformers", value="4.0"), "transformers was 4.0, is "
    ),
    "another processor": (
        lambda run: edit_manifest(run, "engine", "cpu capability", value="AVX1024"), "cpu capability was AVX1024, is ",
    ),
    "other compiled loops": (
        lambda run: edit_manifest(run, "engine", "compiled library", value="0" * 12),
        "compiled library was 000000000000, is ",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("one_thread_again")
@pytest.mark.parametrize("case", REFUSED)
def test_what_differs_is_named_and_needs_a_word(half, capsys, case):
    from tests.faults.test_run_folder import run_command

    change, line = REFUSED[case]
    change(half)
    before = (half / "metrics.jsonl").read_bytes()
    code, printed = run_command(["adapt", "--resume", half], capsys)
    assert code == 2
    assert f"would end with other numbers here than where it began ({line}" in printed
    assert "--allow-different-numerics" in printed
    assert (half / "metrics.jsonl").read_bytes() == before
    if case == "another torch":
        code, printed = run_command(["adapt", "--resume", half, "--allow-different-numerics"], capsys)
        assert code == 0, printed


@needs_compiler
def test_no_compiler_any_more(server, half):
    half.with_suffix(".json").write_text(json.dumps({"PATH": "/nowhere", "CC": ""}))
    assert server.ask(half, call="tests.faults.test_other_machine:resume_with") == 2
    said = " ".join(server.words().split())
    assert "no compiled loops, so runs on this CPU are slower: no C compiler" in said
    assert "(compiled loops was True, is False)" in said
