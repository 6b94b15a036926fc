"""What the README and the docs say exists: commands, recipes, tests, links."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spinerl.cli import app
from spinerl.config import PROFILES, load_config, split_override
from spinerl.methods import LOSSES, METHODS
from spinerl.reference import api_page, configuration_page

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def commands() -> list[list[str]]:
    """Every shell command in the README's code blocks and its table of claims, as arguments."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"\| `(make [^`]*)` \|", README)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_there_are_commands():
    assert len(commands()) >= 12


@pytest.mark.parametrize("args", [w for w in commands() if w[0] == "make"], ids=" ".join)
def test_make_commands_are_targets(args):
    target, arguments = args[1], dict(one.split("=", 1) for one in args[2:])
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    paths = [word for word in shlex.split(arguments.get("ARGS", "")) if word.startswith("tests/")]
    assert all((ROOT / path).exists() for path in paths)


@pytest.mark.parametrize("args", [w for w in commands() if w[0].endswith("spinerl")], ids=" ".join)
def test_spinerl_commands_are_understood(args):
    command, *rest = args[1:]
    options = [word for word in rest if word.startswith("--")]
    path = [command, rest[0]] if command in ("data", "export") else [command]
    text = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"}).output
    assert "Usage" in text
    assert all(option in text for option in options)
    if command == "adapt" and not options:
        recipe = next((word for word in rest if word.endswith(".yaml")), None)
        load_config(ROOT / recipe if recipe else None, [word for word in rest if word != recipe])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_a_page_names_exists(page):
    """`spinerl NAME` in a block of commands or in code: NAME is a command."""
    text = page.read_text()
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)) + "\n".join(
        re.findall(r"^    (spinerl .*)$", text, re.M)
    )
    named = set(re.findall(r"(?:^|[|&;/] ?|bin/)spinerl ([a-z]+)", blocks, re.M)) | set(
        re.findall(r"`spinerl ([a-z]+)", text)
    )
    known = {*(command.name or command.callback.__name__ for command in app.registered_commands), "data", "export"}
    assert named <= known, f"{page.name}: {named - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_tests_and_modules_that_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:tests|src|configs|docs)/[\w/.-]+)(?:::\w+)?`", text):
        assert (ROOT / path).exists(), f"{page.name} -> {path}"


def test_configuration_page_is_fresh():
    assert (ROOT / "docs" / "configuration.md").read_text() == configuration_page(), "run `make docs`"


@pytest.mark.parametrize("table", [METHODS, LOSSES, PROFILES], ids=["methods", "losses", "profiles"])
def test_what_a_row_sets_reads_as_what_it_says(table):
    """Each word of the reference tables is a `key=value` override: an empty text is not null, and null is no text."""
    page = configuration_page()
    for name, row in table.items():
        sets = row if isinstance(row, dict) else dict(row.sets)
        (line,) = [
            line for line in page.splitlines() if line.startswith(f"| `{name}` |") and "`" in line[len(name) + 6 :]
        ]
        words = re.findall(r"`([a-z_0-9.]+=[^`]*)`", line.rpartition(" | ")[2])
        documented: dict[str, object] = {}
        for word in words:
            key, value = split_override(word)
            *sections, last = key.split(".")
            place = documented
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        assert documented == sets, name


def test_api_page_is_fresh(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert (ROOT / "docs" / "api.md").read_text() == api_page(), "run `make docs`"


def test_every_test_that_the_security_page_names_is_there():
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`((?:tests/\w+/)?test_\w+\.py)`", page))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / (name if "/" in name else f"tests/faults/{name}")).is_file()]
