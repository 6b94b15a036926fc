"""Worker processes: errors come home in a line, and none outlives its parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from spinerl.bench.children import run_worker
from spinerl.bench.settings import load_settings
from spinerl.errors import InputError, RunError
from tests.bench.miniature import MODEL, overrides

TINY = overrides(MODEL, questions=1, group_size=2, prompt_tokens=6, new_tokens=8, threads=1, parts="rollout")


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """(settings, scratch folder) of a rollout that would go on for hours."""
    settings = load_settings([*TINY, "repeats=100000"])
    scratch = tmp_path_factory.mktemp("scratch")
    run_worker("probe", settings, scratch)
    return settings, scratch


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_error_of_ours_comes_home(tmp_path):
    settings = load_settings([*TINY, "model=no/such/model/here"])
    with pytest.raises(InputError, match="no such folder"):
        run_worker("probe", settings, tmp_path)


def test_a_crash_brings_its_last_words(tmp_path):
    with pytest.raises(RunError, match=r"measuring nonsense failed \(exit code 1\): KeyError: 'nonsense'"):
        run_worker("nonsense", load_settings(TINY), tmp_path)


def test_an_interrupt_ends_the_worker(endless, monkeypatch):
    """Ctrl-C reaches only the parent; it is raised here from the progress line."""
    started = []
    popen = subprocess.Popen

    def remember(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remember)

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_worker("rollout", *endless, interrupt)
    assert started[-1].returncode is not None
    assert not is_running(started[-1].pid)


def test_a_worker_ends_when_its_parent_is_gone(endless):
    settings, scratch = endless
    sizes = settings.model_dump()
    job = {"task": "rollout", "settings": sizes, "scratch": str(scratch), "tune": True, "options": {}}
    with subprocess.Popen(
        [sys.executable, "-m", "spinerl.bench.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        assert "note" in process.stdout.readline()
        process.stdin.close()  # what the system does for a parent that was killed
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        ended = process.poll() is not None
        process.kill()
    assert ended
