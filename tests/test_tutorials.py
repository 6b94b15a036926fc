"""The tutorials from an empty folder: their files written, their commands and code run in order, with fewer steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from spinerl.config import load_config
from tests.commands import exit_code

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(\w+) ?([\w.]*)\n(.*?)^```$(?:\s+prints `([^`]*)`)?", re.MULTILINE | re.DOTALL)

SHORT = [
    "data.max_questions=4", "group_size=2", "rollout.max_new_tokens=24", "threads=1",
    "guard.questions=4", "guard.samples=2", "guard.preflight_questions=4",
]  # fmt: skip
TRAINING = [*SHORT, "steps=1", "questions_per_step=2", "eval.samples=0"]
SHORTER = {"adapt": TRAINING, "eval": [*SHORT, "eval.samples=2"], "preflight": SHORT, "plan": TRAINING}
ELSEWHERE = (
    "make",
    ".",
    "torchrun",
    "accelerate",
    "ray",
    "trl",
)  # commands that need an installation, or more machines


def run_command(line: str) -> None:
    """A line of a block of commands, as far as this machine can."""
    words = [word for word in shlex.split(line, comments=True) if "=" not in word or not word[0].isupper()]
    if not words or words[0] in ELSEWHERE or words[0] == "sh":
        return
    if words[:3] == ["python", "-m", "spinerl.bridges.trl"]:
        load_config(words[3], [word for word in words[4:] if not word.startswith("trl.")])
        return
    assert words[0] == "spinerl", line
    _, command, *rest = words
    if any("Qwen/" in word for word in rest):  # no such model here
        if command in ("adapt", "plan"):
            load_config(overrides=rest)
        return
    if command == "select":  # of the runs of `compare`
        return
    if command == "compare":  # processes of its own: tests/comparison
        load_config(overrides=[one for one in rest if one.split("=")[0] not in ("methods", "seeds", "out")])
        return
    shorter = [] if "--resume" in rest else SHORTER.get(command, [])
    assert exit_code([command, *rest, *shorter]) == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for language, name, text, prints in BLOCK.findall(page.read_text(encoding="utf-8")):
        if name:
            Path(name).write_text(text, encoding="utf-8")
        elif language == "python":
            capsys.readouterr()
            exec(compile(text, page.name, "exec"), {})
            assert not prints or capsys.readouterr().out.strip() == prints
        else:
            assert language == "sh"
            for line in text.replace("\\\n", " ").splitlines():
                run_command(line)


def test_no_tutorial_is_left_out_of_the_overview():
    overview = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert len(PAGES) >= 8
    assert [page.name for page in PAGES if f"tutorials/{page.name}" not in overview] == []
