"""A hub that is away, or refuses: one line after one try, for models and data sets, and cached copies serve."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from spinerl import hub
from spinerl.tiny import model_path
from tests.faults.commands import run_command
from tests.hub_server import TOKEN, serving, use

NAME = "Qwen/Qwen3-0.6B"
ASK = ["tiny/shift-a", "data.max_questions=1", "rollout.max_new_tokens=2", "threads=1", "eval.samples=0"]


@pytest.fixture
def closed(monkeypatch, tmp_path) -> str:
    """The address of a hub at which nothing listens."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{opened.getsockname()[1]}"
    use(monkeypatch, f"http://{address}")
    online(monkeypatch, tmp_path)
    return address


def online(monkeypatch, cache: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "cache"))


def line(capsys, *arguments) -> str:
    """The only line that a refused command prints."""
    capsys.readouterr()
    code, printed = run_command(arguments, capsys)
    assert code == 2, printed
    assert printed.count("spinerl: ") == 1
    assert "Traceback" not in printed
    assert "/resolve/" not in printed
    assert TOKEN not in printed
    assert len(printed) < 500
    return printed


COMMANDS = {
    "eval": ["eval", NAME, *ASK],
    "adapt": ["adapt", f"model={NAME}", *ASK[1:]],
    "data show": ["data", "show", "tiny/shift-a", f"model={NAME}"],
}


@pytest.mark.parametrize("command", ["eval", "adapt", "data show"])
def test_a_model_of_a_hub_that_is_away_is_one_line_at_once(closed, capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    said = line(capsys, *COMMANDS[command])
    assert time.monotonic() - started < 15  # not six tries, some seconds apart, for each of its files
    assert f"model={NAME}: the hub ({closed}) cannot be reached (Connection refused), and its cache has no copy" in said
    assert said.endswith("for a copy on this machine give its folder, model=FOLDER")
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("closed")
def test_the_hub_is_tried_once(capsys, monkeypatch):
    tried = []
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *place: tried.append(place) or connect(*place))
    line(capsys, *COMMANDS["eval"])
    line(capsys, "data", "check", "someone/something")
    assert len(tried) == 1


def test_with_the_hub_switched_off_the_line_says_so(capsys, monkeypatch, tmp_path):
    online(monkeypatch, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set, so that the hub is not asked, and its cache has no copy" in line(
        capsys, *COMMANDS["eval"]
    )


def test_a_data_set_of_a_hub_that_is_away_is_one_line(closed, capsys):
    said = line(capsys, "data", "check", "someone/something")
    assert f"someone/something is out of reach: the hub ({closed}) cannot be reached (Connection refused)" in said
    assert "set data.path=FOLDER" in said


@pytest.mark.usefixtures("closed")
def test_a_copy_in_the_cache_serves(capsys, tmp_path):
    revision = "a" * 40
    repo = tmp_path / "cache" / "models--Qwen--Qwen3-0.6B"
    shutil.copytree(model_path(), repo / "snapshots" / revision)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    code, printed = run_command(["eval", NAME, *ASK, "--json", tmp_path / "out.json"], capsys)
    assert code == 0, printed
    assert json.loads((tmp_path / "out.json").read_text())["num_questions"] == 1
    (repo / "snapshots" / revision / "model.safetensors").unlink()
    assert "cannot be reached (Connection refused), and its cache has no copy" in line(capsys, *COMMANDS["eval"])


# What the hub answers to the request for a file, and what the line says.
ANSWERS = {
    "gated": (
        403,
        {"X-Error-Code": "GatedRepo"},
        "it is gated: accept its conditions on its page on the hub, then log in",
    ),
    "unknown": (
        404,
        {"X-Error-Code": "RepoNotFound"},
        "there is no such model on the hub, or it is private: then log in",
    ),
    "no such revision": (404, {"X-Error-Code": "RevisionNotFound"}, "it has no revision main; see model.revision"),
    "no token": (401, {}, "the hub refuses the request (401): there is no such model, or it is private: then log in"),
    "failing": (500, {}, "the hub answers 500; its cache has no copy; try again later"),
    "no such file": (404, {"X-Error-Code": "EntryNotFound"}, "it has no config.json on the hub"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_model_that_the_hub_does_not_give_is_one_line(capsys, monkeypatch, tmp_path, case):
    status, headers, expected = ANSWERS[case]
    with serving() as server:
        use(monkeypatch, server.url)
        online(monkeypatch, tmp_path)
        server.failing["/resolve/"] = (status, headers, {"error": f"said with {TOKEN}"})
        server.failing["/api/models/"] = (status, headers, {"error": f"said with {TOKEN}"})
        said = line(capsys, *COMMANDS["eval"], "model.revision=main")
    assert f"model={NAME}: {expected}" in said


def test_a_proxy_that_is_away_is_a_hub_that_is(monkeypatch):
    use(monkeypatch, "http://hub.invalid")
    monkeypatch.setattr(hub, "getproxies", lambda: {"http": "http://127.0.0.1:9"})
    assert hub.unreachable() == "Connection refused"
    with hub.one_try():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
