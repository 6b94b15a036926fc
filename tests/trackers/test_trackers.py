"""Trackers hold what the run folder holds, each step once, also of a run that was killed and resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import spinerl
from spinerl.trackers import observer as trackers
from tests.commands import exit_code
from tests.faults.commands import run_command
from tests.trackers.stores import READERS, mlflow_client, tensorboard_events, trackio_rows, wandb_rows

# Of trackers' packages about each other; ours raise none.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{name}") for name in ("DeprecationWarning", "FutureWarning")]

# A run that takes seconds, with everything that trackers show.
SMALL = [
    "data.max_questions=4", "questions_per_step=2", "group_size=2", "threads=1", "rollout.max_new_tokens=12",
    "answer.truncated=count", "eval.samples=0", "guard.questions=2", "guard.samples=2", "guard=warn", "guard.every=2",
    "log.sample_every=1",
]  # fmt: skip
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
NAMES = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is not None]
CANNOT_FORGET = ("mlflow",)
SINGLE = {"tensorboard"}  # what holds float32


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing leaves this machine."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)


def children_of(process: int) -> set[int]:
    """Processes that this one started, and those that they did."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def until(holds, what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def rows_of(run: Path, stream: str) -> list[dict]:
    return [json.loads(line) for line in (run / stream).read_text().splitlines()]


def has_step(name: str, run: Path, step: int) -> bool:
    try:
        return step in READERS[name](run).get("reward/mean", {})
    except Exception:  # half written, or not there yet
        return False


STOPPED = """
import os, signal, sys
import spinerl

class Stop:
    def on_step(self, metrics):
        if metrics["step"] == 5:  # the trackers know of 4 steps
            os.kill(os.getpid(), signal.SIGSTOP)

folder, names, *words = sys.argv[1:]
keys = dict(word.split("=") for word in words)
spinerl.adapt("tiny-reasoner", "tiny/shift-a", run=folder, track=names.split(","), callbacks=[Stop()], **keys)
"""


@pytest.fixture(scope="module")
def proxy() -> Iterator[socket.socket]:
    """Where whatever wants to go out ends up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, proxy) -> Iterator[Path]:
    """A run with all trackers, killed after they had step 4, its last checkpoint being of step 3, and resumed."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    folder = tmp_path_factory.mktemp("tracked")
    run = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        patch.delenv("NO_PROXY", raising=False)
        process = subprocess.Popen(
            [sys.executable, "-c", STOPPED, run, ",".join(NAMES), *SMALL, "steps=6", "checkpoint.every=3"]
        )
        try:
            for name in NAMES:
                until(lambda name=name: has_step(name, run, 4), f"step 4 in {name}")
            started = children_of(process.pid)
        finally:
            process.kill()
            process.wait()
        assert len(rows_of(run, "metrics.jsonl")) == 5
        assert len(started) >= len(NAMES)
        until(lambda: not any(map(is_alive, started)), "the end of the trackers", 20)
        assert exit_code(["adapt", "--resume", run, "--quiet"]) == 0
        assert len(rows_of(run, "metrics.jsonl")) == 6
        yield run


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("name", PACKAGES)
def test_a_store_holds_the_figures_of_the_run_each_step_once(resumed, name):
    pytest.importorskip(PACKAGES[name])
    found = READERS[name](resumed)
    expected = {
        (key, row["step"]): value
        for stream in ("metrics.jsonl", "eval.jsonl", "guard.jsonl")
        for row in rows_of(resumed, stream)
        for key, value in row.items()
        if "/" in key and value is not None and not (stream == "guard.jsonl" and key.startswith("label/"))
    }
    assert len(expected) > 6 * 40
    got = {(key, step): values for key, steps in found.items() for step, values in steps.items()}
    assert {place for place, values in got.items() if len(values) != 1} == set()
    scores = {place for place in got if place[0].startswith("guard/")}
    assert {step for key, step in scores if key == "guard/score"} == {0, 2, 4, 6}
    assert got.keys() - scores == expected.keys()
    for (key, step), value in expected.items():
        repeated = name in CANNOT_FORGET and key.startswith("time/") and step > 3
        close = pytest.approx(value, rel=1e-6 if name in SINGLE else 1e-12, abs=1e-12)
        assert repeated or got[key, step] == [close], (key, step)


@pytest.mark.usefixtures("resumed")
def test_nothing_was_sent(proxy):
    with pytest.raises(BlockingIOError):
        proxy.accept()


def verdict(run: Path) -> str:
    first = rows_of(run, "guard.jsonl")[0]
    return f"{first['verdict']}: {first['reason']}"


def outcome(run: Path) -> str:
    return json.loads((run / "manifest.json").read_text())["guard"]["text"]


def test_tensorboard_has_texts_tables_and_histograms(resumed):
    pytest.importorskip("tensorboard")
    events = tensorboard_events(resumed)
    texts = {
        tag: {event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)}
        for tag in events.Tags()["tensors"]
    }
    assert "optim.lr: 0.0005" in texts["config"][0]
    assert texts["guard/verdict"][0].startswith(verdict(resumed))
    assert list(texts["guard/outcome"].values()) == [outcome(resumed)]
    assert sorted(texts["samples"]) == [1, 2, 3, 4, 5, 6]
    question = rows_of(resumed, "samples.jsonl")[0]["question"].split("\n")[0]
    assert question in texts["samples"][1]
    counts = rows_of(resumed, "tokens.jsonl")
    histograms = events.Histograms("entropy/tokens")
    assert [one.step for one in histograms] == [row["step"] for row in counts]
    for one, row in zip(histograms, counts, strict=True):
        assert one.histogram_value.bucket == row["tokens"]
        assert one.histogram_value.bucket_limit[:-1] == pytest.approx(row["edges"][1:])


def test_wandb_has_texts_tables_and_histograms(resumed):
    pytest.importorskip("wandb")
    rows = wandb_rows(resumed)
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    texts = {row["step"]: row["guard/verdict"] for row in rows if "guard/verdict" in row}
    assert texts[0].startswith(verdict(resumed))
    assert [row["guard/outcome"] for row in rows if "guard/outcome" in row] == [outcome(resumed)]
    counts = {row["step"]: row for row in rows_of(resumed, "tokens.jsonl")}
    histograms = {row["step"]: row["entropy/forks"] for row in rows if "entropy/forks" in row}
    assert {step: one["values"] for step, one in histograms.items()} == {k: row["forks"] for k, row in counts.items()}
    tables = {row["step"]: row["samples"] for row in rows if "samples" in row}
    assert sorted(tables) == [1, 2, 3, 4, 5, 6]
    (folder,) = (resumed / "trackers" / "wandb" / "wandb").glob("offline-run-*")
    table = json.loads((folder / "files" / tables[1]["path"]).read_text())
    first = rows_of(resumed, "samples.jsonl")[0]
    assert dict(zip(table["columns"], table["data"][0], strict=True))["response"] == first["responses"][0]["text"]


def test_mlflow_has_texts_tables_and_histograms(resumed):
    pytest.importorskip("mlflow")
    client, run_id = mlflow_client(resumed)
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert found.data.params["optim.lr"] == "0.0005"
    assert found.data.tags["guard/outcome"] == outcome(resumed)
    assert {Path(one.path).name for one in client.list_artifacts(run_id, "samples")} == {
        f"step-{step:06d}.json" for step in range(1, 7)
    }


def test_trackio_has_texts_tables_and_histograms(resumed):
    pytest.importorskip("trackio")
    rows = trackio_rows(resumed)
    assert [row["guard/outcome"]["_value"] for row in rows if "guard/outcome" in row] == [outcome(resumed)]
    counts = {row["step"]: row["tokens"] for row in rows_of(resumed, "tokens.jsonl")}
    histograms = {row["step"]: row["entropy/tokens"]["values"] for row in rows if "entropy/tokens" in row}
    assert histograms == counts
    assert sorted(row["step"] for row in rows if "samples" in row) == [1, 2, 3, 4, 5, 6]


# ---- trackers that fail ----

QUESTIONS = ["What is 2 + 3?", "What is 4 + 4?"]
KEYS = {
    "steps": 3,
    "group_size": 2,
    "questions_per_step": 2,
    "threads": 1,
    "rollout.max_new_tokens": 12,
    "guard": "off",
}


class Signals:
    """A callback that sends a signal to the tracker's process after step 1."""

    def __init__(self, number: int) -> None:
        self._number = number

    def on_step(self, metrics) -> None:
        if metrics["step"] == 1:
            for one in children_of(os.getpid()):
                if b"spinerl.trackers.child" in Path(f"/proc/{one}/cmdline").read_bytes():
                    os.kill(one, self._number)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "killed or has crashed"), (signal.SIGSTOP, "not all was written in time")]
)
def test_a_tracker_that_is_killed_or_hangs_changes_nothing_but_a_line(tmp_path, monkeypatch, caplog, number, said):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(trackers, "_LAST_S", 0.5)
    caplog.set_level("INFO", "spinerl.api")
    before = children_of(os.getpid())
    run = spinerl.adapt(
        "tiny-reasoner", QUESTIONS, run=tmp_path / "run", track="tensorboard", callbacks=[Signals(number)], **KEYS
    )
    assert len(run.metrics) == 3
    (line,) = [line for line in caplog.messages if line.startswith("track=tensorboard:")]
    assert said in line
    assert not {
        one for one in children_of(os.getpid()) - before
        if b"trackers.child" in Path(f"/proc/{one}/cmdline").read_bytes()
    }  # fmt: skip


def test_a_tracker_that_cannot_be_written_is_one_line(tmp_path, capsys):
    """Another process has the tracker's folder: what a package raises goes the same way."""
    pytest.importorskip("wandb")
    from tests.faults.commands import SMALL as TINY

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "online")
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        patch.setenv("WANDB_API_KEY", "")
        patch.setenv("NETRC", str(tmp_path / "none"))
        code, printed = run_command(["adapt", *TINY, "track=wandb", f"run={tmp_path / 'run'}"], capsys)
    assert code == 0
    assert printed.count("track=wandb:") == 1
    assert len(rows_of(tmp_path / "run", "metrics.jsonl")) == 2


def test_a_tracker_whose_folder_is_a_link_writes_nothing_there(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    from tests.faults.commands import SMALL as TINY

    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    assert exit_code(["adapt", *TINY, "steps=1", "track=tensorboard", f"run={run}"]) == 0
    shutil.rmtree(run / "trackers" / "tensorboard")
    elsewhere.mkdir()
    (run / "trackers" / "tensorboard").symlink_to(elsewhere)
    code, printed = run_command(["adapt", "--resume", run], capsys)
    assert code == 0
    assert "tensorboard is a symbolic link, where a folder of the run belongs" in printed
    assert not list(elsewhere.iterdir())


def test_a_package_that_is_not_there_is_refused_with_its_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    code, printed = run_command(["adapt", "track=trackio", f"run={tmp_path / 'run'}"], capsys)
    assert code == 2
    assert "track=trackio needs trackio" in printed
    assert "pip install 'spinerl[trackio]'" in printed
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(capsys):
    code, printed = run_command(["adapt", "track=tensorbord"], capsys)
    assert code == 2
    assert "tensorboard" in printed
    assert "tensorbord" in printed


@pytest.mark.parametrize(
    ("given", "names"), [("none", []), ("wandb, mlflow", ["wandb", "mlflow"]), ("[tensorboard]", ["tensorboard"])]
)
def test_trackers_are_given_as_a_list_or_with_commas(given, names):
    assert spinerl.load_config(overrides=[f"track={given}"]).track.to == names
