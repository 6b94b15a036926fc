"""What the commands say of themselves, and of a mistake in one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from spinerl.cli import app
from spinerl.config import describe_keys
from spinerl.usage import GROUPS
from tests.commands import exit_code

ROOT = typer.main.get_command(app)


def commands(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


def shown(*arguments: str, columns: int = 100) -> str:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)}).output


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_word_of_a_help_text_is_shown(path):
    """rich takes what stands in brackets for a style, and leaves it out."""
    command = dict(commands())[path]
    texts = [one.help or "" for one in (command, *command.params)]
    words = " ".join(texts).replace("\\[", "[").split()
    output = shown(*path, "--help", columns=200).split()
    assert [word for word in words if word not in output] == []
    for parameter in command.params:
        assert parameter.help or parameter.param_type_name == "argument", parameter.name


def test_brackets_in_a_help_text_stay():
    made = typer.Typer(cls=type(ROOT))

    @made.callback()
    def root() -> None:
        """Needs spinerl[vllm]."""

    @made.command("one")
    def one(option: str = typer.Option("", help="[lora] or [red]not[/red] :smile[bold]")) -> None:
        """Writes [a] of [/b]."""

    output = CliRunner().invoke(made, ["--help"], env={"COLUMNS": "100"}).output
    assert "Needs spinerl[vllm]." in output
    assert "Writes [a] of [/b]." in output
    assert "[lora] or [red]not[/red] :smile[bold]" in CliRunner().invoke(made, ["one", "--help"]).output


def test_every_word_of_a_key_is_shown(capsys):
    assert exit_code(["config", "--keys"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for (key, kind, _, description), line in zip(describe_keys(), lines, strict=True):
        assert line.startswith(f"{key} ")
        assert kind in line
        assert line.endswith(f": {description}")


def test_keys_of_a_section(capsys):
    assert exit_code(["config", "--keys", "band.", "seed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        key for key, *_ in describe_keys() if key.startswith(("band.", "seed"))
    ]
    assert exit_code(["config", "--keys", "bnad"]) == 2
    assert 'did you mean "band"' in capsys.readouterr().err


def test_each_command_has_its_line_in_a_group():
    output = shown("--help", columns=80)
    lines = [line.strip("│ ").rstrip() for line in output.splitlines()]
    for group, rows in GROUPS.items():
        assert any(line.startswith(f"╭─ {group} ") for line in lines), group
        for name, line in rows.items():
            assert any(re.fullmatch(rf"{name} +{re.escape(line)}", one) for one in lines), (name, output)
    assert {name for rows in GROUPS.values() for name in rows} == set(ROOT.commands), "spinerl.usage.GROUPS has all"
    assert "More" not in output


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("adpt", "No such command 'adpt'. Did you mean 'adapt'? `spinerl --help` shows what there is"),
        ("train model=x", "No such command 'train'. Did you mean 'adapt'? `spinerl --help` shows what there is"),
        ("qwertz", "No such command 'qwertz'; `spinerl --help` shows what there is"),
        ("data shwo", "No such command 'shwo'. Did you mean 'show'? `spinerl data --help` shows what there is"),
        ("adapt --resum x", "No such option: --resum"),
        ("adapt --resume", "Option '--resume' requires an argument"),
        ("merge", "Missing argument 'RUN|FOLDER|FILE'; `spinerl merge --help` shows what there is"),
        ("preflight a b --json", "requires an argument; `spinerl preflight --help` shows what there is"),
        ("plan --seconds soon", "Invalid value for '--seconds'"),
        ("plan --seconds -3", "Invalid value for '--seconds'"),
        ("config metod=ttrl", 'unknown key metod (did you mean "method"?); `spinerl config --keys` lists them all'),
        ("config vote.memry=sum", 'unknown key vote.memry (did you mean "memory"?)'),
        ("adapt output_dir=x", 'unknown key output_dir (did you mean "run"?)'),
        ("adapt out=x", 'unknown key out (did you mean "run"?)'),
        ("adapt learning_rate=1e-6", 'unknown key learning_rate (did you mean "optim.lr"?)'),
        ("adapt num_generations=8", 'unknown key num_generations (did you mean "rollout.num_votes" or "group_size"?)'),
        ("config memory_start=3", 'unknown key memory_start (did you mean "vote.memory_start"?)'),
        ("config method=spin", "method='spin' is not a method (did you mean \"spine\"?)"),
        ("compare seds=3", 'unknown key seds (did you mean "seeds"?)'),
        ("bench part=step", 'unknown key part (did you mean "parts"?)'),
    ],
)
def test_a_mistake_is_one_line(line, said, capsys):
    assert exit_code(shlex.split(line)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.count("\n") == 1


def test_help_comes_either_way(capsys):
    texts = []
    for line in ("help adapt", "adapt -h", "adapt --help"):
        assert exit_code(line.split()) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
    assert exit_code(["help"]) == 0
    assert "Models and data" in capsys.readouterr().out
