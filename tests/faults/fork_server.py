"""Does runs of one configuration in forked processes, which may be killed: `Server` starts it, test_kills.py asks.

Model, questions and libraries are loaded once, so that a run takes a fraction of a second.  A job is a line of JSON on
standard input, its answer, how the process ended, one on standard output.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent.parent
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)

RUN_SECONDS = 300  # a comparison takes 3 on a machine at rest: longer than this is a hang
KNOWN = 75  # the exit code of a run that stopped, since it goes on from where another one did


def contents(folder: Path) -> dict[str, Any]:
    """What each file of a run holds, without times, folder names and process numbers."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "folder"
        elif path.suffix == ".jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "manifest.json":
            found[name] = _lasting(json.loads(path.read_text()))
        elif path.name == "config.yaml":
            found[name] = re.sub(r"(?m)^run: .*", "run: here", path.read_text())
        elif path.suffix == ".html":
            found[name] = path.read_text().rstrip().endswith("</html>")
        elif path.name == "responses.safetensors":  # the order of its header's entries is of no account
            found[name] = sorted(path.read_bytes())
        elif path.name == "checksums.json":
            found[name] = sorted(json.loads(path.read_text()))
        elif path.name != ".lock":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def _lasting(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without what is of the day, or of the memory that was free."""
    kept = {key: value for key, value in manifest.items() if key not in ("started", "finished", "command")}
    return kept | {"engine": {**kept["engine"], "tokens": sorted(kept["engine"]["tokens"])}}


class Server:
    """The process, for one configuration; close it.

    whole: the folder of a run that was not interrupted, and `seconds`, which it took.
    operations: what that run did to its folder, "write /metrics.jsonl" and the like, in order.
    """

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        """`folder`: for all that, for the library that kills, and for what runs print."""
        library = folder / "kill_at.so"
        source = Path(__file__).with_name("kill_at.c")
        subprocess.run([str(COMPILER), "-O1", "-fPIC", "-shared", "-o", library, source, "-ldl"], check=True)
        self._words = folder / "words.txt"
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        threads["TOKENIZERS_PARALLELISM"] = "false"
        with self._words.open("w") as words:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.fork_server", *overrides, f"run={folder / 'whole'}"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, text=True, cwd=ROOT,
                env={**os.environ, **threads, "CUDA_VISIBLE_DEVICES": "", "LD_PRELOAD": str(library)},
            )  # fmt: skip
        self._answer()  # once it is ready
        self.whole = folder / "whole"
        started = time.monotonic()
        assert self.ask(self.whole, log=folder / "operations.txt") == 0, self.words()
        self.seconds = time.monotonic() - started
        self.operations = (folder / "operations.txt").read_text().splitlines()

    def ask(self, folder: Path, **job: Any) -> int:
        """How a process that does the job ended: its exit code, or minus the signal.

        resume: whether it goes on with the run in the folder, instead of beginning one.
        known: whether it may stop with the code KNOWN where it has the files that another one went on from: the rest
            depends on nothing else.
        at, half: the operation at which it dies, from 1 on; whether half-way, where that operation writes.
        signal, after: what it is sent after so many seconds.
        call: "module:function", called with the folder in place of a run.
        log: a file for the operations.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"folder": str(folder), **job}, default=str) + "\n")
        self._process.stdin.flush()
        return self._answer()["code"]

    def words(self) -> str:
        """The end of what was printed."""
        return self._words.read_text(errors="replace")[-3000:]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.words()
        return json.loads(line)


# ---- in the process ----


def main(overrides: list[str]) -> None:
    os.environ.pop("LD_PRELOAD")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run = _prepare(overrides)
    print(json.dumps({"code": 0}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        code = _wait(_fork(run, job), job)
        digest = Path(f"{job['folder']}.digest")
        if code == 0 and digest.is_file():
            _known.add(digest.read_text())
        print(json.dumps({"code": code}), file=answers, flush=True)


_known: set[str] = set()  # the files, as a digest, that runs were resumed from which came to their end


def _stop_if_known(folder: Path) -> None:
    digest = hashlib.sha256(json.dumps(contents(folder), sort_keys=True).encode()).hexdigest()
    if digest in _known:
        os._exit(KNOWN)
    Path(f"{folder}.digest").write_text(digest)


def _prepare(overrides: list[str]) -> Callable[[Path, bool, bool], object]:
    """What begins or resumes a run, everything else having been done before."""
    import copy
    import tempfile
    from dataclasses import replace

    from spinerl.config import load_config
    from spinerl.models.loading import LoadedModel
    from spinerl.runs import RunFolder
    from spinerl.train import adapt
    from spinerl.workload import open_workload
    from tests.e2e.test_guarded_runs import Quiet

    class Watcher(Quiet):
        """Hears when a run has put its folder in order and is about to go on."""

        folder: Path | None = None

        def note(self, text: str) -> None:
            if self.folder is not None and text.startswith("resuming"):
                _stop_if_known(self.folder)

    config = load_config(overrides=overrides)
    work = open_workload(config)

    def run(folder: Path, resume: bool, known: bool) -> None:
        if resume:
            there, watcher = RunFolder.open(folder), Watcher()
            watcher.folder = folder if known else None
            adapt(there.config, watcher, resume=there, work=work)
        else:
            adapt(config.model_copy(update={"run": str(folder)}), Quiet(), work=work)

    # Once here, for what is imported or made when first needed: with a copy of the model, which this changes.
    def copied() -> LoadedModel:
        return replace(work.loaded, model=copy.deepcopy(work.loaded.model))

    with tempfile.TemporaryDirectory() as scratch:
        adapt(config.model_copy(update={"run": f"{scratch}/run"}), Quiet(), work=replace(work, loaded=copied()))
    work = replace(work, open_again=copied)  # with the verdicts of the self-checks
    assert len(os.listdir("/proc/self/task")) == 1, "a process that forks has one thread"
    return run


def _fork(run: Callable[[Path, bool, bool], object], job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        _work(run, job)
    return pid


def _work(run: Callable[[Path, bool, bool], object], job: dict[str, Any]) -> NoReturn:
    """One job, to the end of this process."""
    from spinerl.errors import SpinerlError

    code = 0
    try:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if "log" in job else -1
        arguments = (os.fsencode(job["folder"]), job.get("at", 0), job.get("half", False), log)
        ctypes.CDLL(None).kill_at_arm(*arguments)
        if "call" in job:
            import importlib

            module, _, name = job["call"].partition(":")
            getattr(importlib.import_module(module), name)(job["folder"])
        else:
            run(Path(job["folder"]), job.get("resume", False), job.get("known", False))
    except KeyboardInterrupt:
        code = 130
    except SpinerlError as error:
        print(f"spinerl: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 99
    os._exit(code)


def _wait(pid: int, job: dict[str, Any]) -> int:
    """The exit code, or minus the signal."""
    deadline = time.monotonic() + RUN_SECONDS
    due = time.monotonic() + job["after"] if "after" in job else None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if due is not None and time.monotonic() >= due:
            os.kill(pid, getattr(signal, job["signal"]))
            due = None
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return 124
        time.sleep(0.002)


if __name__ == "__main__":
    main(sys.argv[1:])
