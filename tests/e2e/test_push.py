"""Uploading to a hub: what arrives, what is refused and in which words, and that the token is nowhere."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from spinerl.push import find_destination, plan_upload, push
from tests.commands import exit_code
from tests.hub_server import TOKEN, serving, use

# huggingface_hub's own way of sending a file
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SMALL = [
    "data.max_questions=2", "questions_per_step=2", "group_size=2", "steps=1", "threads=1", "rollout.max_new_tokens=6",
    "answer.truncated=count", "eval.samples=0", "guard=off", "optim.lr=1e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with two finished runs: `whole`, and `lora`, which learned adapters."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, more in (("whole", []), ("lora", ["lora.rank=2"])):
            assert exit_code(["adapt", *SMALL, *more, f"run={name}"]) == 0
    return folder


@pytest.fixture
def server(monkeypatch):
    with serving() as hub:
        use(monkeypatch, hub.url)
        yield hub


def pushed(capsys, *arguments) -> tuple[int, str]:
    capsys.readouterr()
    code, both = exit_code(["push", *arguments]), capsys.readouterr()
    printed = both.out + both.err
    assert TOKEN not in printed
    assert "Traceback" not in printed
    return code, printed


def names_and_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["whole", "lora"])
def test_what_arrives_is_the_models_folder_byte_for_byte(runs, server, capsys, name):
    code, printed = pushed(capsys, runs / name, "me/mine", "--private", "--message", "First one")
    assert code == 0, printed
    assert server.repos == {"me/mine": True}
    assert server.messages == ["First one"]
    expected = names_and_bytes(runs / name / "model")
    assert {path: data for (_, _, path), data in server.files.items()} == expected
    assert {(repo, revision) for repo, revision, _ in server.files} == {("me/mine", "main")}
    assert all(file in printed for file in expected)
    assert f"to {server.url}/me/mine, a new repository, private" in printed
    assert f"uploaded: {server.url}/me/mine/commit/1111" in printed


def test_a_report_a_branch_and_a_short_name(runs, server, capsys):
    code, printed = pushed(capsys, runs / "whole", "mine", "--yes", "--with-report", "--revision", "first")
    assert code == 0, printed
    assert server.repos == {"me/mine": False}
    assert server.branches == ["first"]
    whole = runs / "whole"
    expected = names_and_bytes(whole / "model") | {
        name: (whole / name).read_bytes() for name in ("report.html", "config.yaml")
    }
    assert {path: data for (_, _, path), data in server.files.items()} == expected
    assert "note: report.html holds questions and responses" in printed
    assert "public: everyone can read it" in printed


def test_a_dry_run_asks_no_one(runs, server, capsys):
    code, printed = pushed(capsys, runs / "whole", "me/mine", "--dry-run")
    assert code == 0
    assert server.asked == []
    assert "model.safetensors" in printed
    assert "nothing was uploaded (--dry-run)" in printed


def test_without_a_terminal_nothing_becomes_public_unasked(runs, server, capsys):
    code, printed = pushed(capsys, runs / "whole", "me/mine")
    assert code == 2
    assert "confirm with --yes, or use --private" in printed
    assert server.repos == {}
    server.repos["me/old"] = False
    code, printed = pushed(capsys, runs / "whole", "me/old", "--private", "--yes")
    assert code == 2
    assert "me/old is public already, and --private would not change it" in printed
    assert server.files == {}


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 2), ("", 2), (None, 2)])
def test_on_a_terminal_it_asks(runs, server, capsys, monkeypatch, answer, code):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def asked(*_):
        if answer is None:  # Ctrl-D
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", asked)
    found, printed = pushed(capsys, runs / "whole", "me/mine")
    assert found == code, printed
    assert bool(server.files) == (code == 0)


# What a folder is given besides the model: none of it is uploaded.
OTHERS = (
    "optimizer.pt",
    "training_args.bin",
    "model.pt",
    "data.jsonl",
    ".env",
    "notes.txt",
    "eval.json",
    "checkpoints/x",
)


def test_only_a_models_own_files_are_uploaded(runs, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (runs / "whole" / "model").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    wanted = {path.name for path in folder.iterdir()}
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("secret")
    (tmp_path / "secret").write_text("secret")
    (folder / "LICENSE").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "vocab.json")
    upload = plan_upload(folder)
    assert {file.name for file in upload.files} == wanted
    assert set(upload.left_out) == {
        *(name for name in OTHERS if "/" not in name),
        "checkpoints (a folder)", "LICENSE (a symbolic link)", "vocab.json (a named pipe)",
    }  # fmt: skip


def unfinished(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["finished"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


REFUSED = {
    "no folder": (None, ["nowhere"], "nowhere is no folder"),
    "no model": (lambda run: (run / "model").rename(run / "elsewhere"), ["run"], "is a run that has no finished model"),
    "not finished": (unfinished, ["run"], "`spinerl adapt --resume run` goes on with it"),
    "no weights": (lambda run: (run / "model/model.safetensors").unlink(), ["run"], "run/model holds no model"),
    "no model's folder": (None, ["."], "holds no model: it needs config.json"),
    "the report of a folder": (None, ["run/model", "--with-report"], "--with-report belongs to a run"),
    "no report": (
        lambda run: (run / "report.html").unlink(),
        ["run", "--with-report"],
        "report.html cannot be uploaded",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_model_is_one_line(runs, tmp_path, capsys, monkeypatch, case):
    change, arguments, line = REFUSED[case]
    copied = tmp_path / "run"
    for path in (runs / "whole").rglob("*"):
        if path.is_file():
            target = copied / path.relative_to(runs / "whole")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    if change is not None:
        change(copied)
    code, printed = pushed(capsys, arguments[0], "me/mine", *arguments[1:], "--dry-run")
    assert code == 2, printed
    assert line in printed
    assert len(printed.splitlines()) == 1


SAID = {"error": f"not with {TOKEN}\nsecond line"}
# (what the hub answers in place of the usual, exit code, what is said)
ANSWERS = {
    "a wrong token": ("whoami", 401, {}, 2, "the hub refuses the token (401"),
    "a token that may not create": (
        "repos/create",
        403,
        {},
        2,
        "the token may not write to me/mine (403: not with [token]",
    ),
    "a token that may not write": ("preupload", 403, {}, 2, "it needs write access there"),
    "an owner who is not there": ("repos/create", 404, {}, 2, "me/mine is not on the hub, or the token may not see it"),
    "a commit meanwhile": ("commit", 409, {}, 1, "me/mine was changed by someone else meanwhile"),
    "a card that the hub refuses": ("validate-yaml", 400, {}, 1, "the hub answers 400: not with [token]"),
    "a failing hub": ("preupload", 500, {}, 1, "the hub answers 500"),
    "failing storage": ("objects", 500, {}, 1, "the hub answers 500"),
    "too many requests": ("whoami", 429, {}, 1, "the hub answers 429"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_every_answer_of_the_hub_is_one_line(runs, server, capsys, caplog, case):
    pattern, status, headers, expected, line = ANSWERS[case]
    server.failing[pattern] = (status, headers, SAID)
    code, printed = pushed(capsys, runs / "whole", "me/mine", "--yes")
    assert code == expected, printed
    last = printed.splitlines()[-1]
    assert last.startswith("spinerl: ")
    assert line in last
    assert sum(one.startswith("spinerl: ") for one in printed.splitlines()) == 1
    assert not [key for key in server.files if key[0] == "me/mine"]
    assert TOKEN not in caplog.text


def test_a_hub_that_is_away_is_one_line(runs, capsys, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    use(monkeypatch, f"http://{address}")
    code, printed = pushed(capsys, runs / "whole", "me/mine", "--yes")
    assert code == 1
    assert f"nothing was uploaded: the hub ({address}) cannot be reached (Connection refused)" in printed
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, printed = pushed(capsys, runs / "whole", "me/mine", "--yes")
    assert code == 1
    assert "nothing was uploaded: HF_HUB_OFFLINE is set" in printed


def test_a_connection_that_breaks_is_one_line(runs, server, capsys):
    server.failing["objects"] = (200, {"Content-Length": "-1"}, {})  # no HTTP: the connection is of no more use
    code, printed = pushed(capsys, runs / "whole", "me/mine", "--yes")
    assert code == 1, printed
    assert printed.splitlines()[-1].startswith("spinerl: ")


def test_without_a_token_it_says_where_one_comes_from(runs, server, capsys, monkeypatch):
    use(monkeypatch, server.url, token=None)
    code, printed = pushed(capsys, runs / "whole", "me/mine", "--yes")
    assert code == 2
    assert "no token for the hub: log in with `hf auth login`, or set HF_TOKEN" in printed
    assert server.asked == []


@pytest.mark.parametrize("repo", ["a/b/c", "me/..", "me/", "", "-x/y", "me/a b"])
def test_names_that_are_no_repository(runs, server, capsys, repo):
    code, printed = pushed(capsys, "--yes", "--", runs / "whole", repo)
    assert code == 2
    assert "is no name of a repository" in printed
    assert server.asked == []


def test_the_token_is_in_no_file(runs, server):
    push(plan_upload(runs / "whole", with_report=True), find_destination("me/mine", True), None, None)
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert not [name for name, data in server.files.items() if TOKEN.encode() in data]
