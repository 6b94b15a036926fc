"""Completion, through the shells themselves where it can be: what a line becomes when Tab is pressed."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from spinerl.choices import suite_names
from spinerl.cli import app
from spinerl.comparison.keys import describe_compare_keys
from spinerl.completion import SHELLS, answer, complete
from spinerl.config import PLUGIN_KEYS, describe_keys, load_config
from spinerl.data import BENCHMARKS
from spinerl.methods import METHODS
from tests.commands import exit_code

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with a recipe, a file of questions, a model, two runs, one of a comparison's."""
    for name in ("mine.yaml", "my questions.jsonl", "notes.txt", "models/small/config.json", "models/x.gguf",
                 "runs/a/config.yaml", "runs/set/shift/ttrl-seed0/config.yaml", ".hidden/config.yaml"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def root():
    return typer.main.get_command(app)


def offered(root, line: str) -> list[str]:
    *words, begun = line.split(" ")
    return [one.value for one in complete(root, words[1:], begun)]


# (a line up to the cursor, what may stand in place of its last word)
LINES = {
    "spinerl ad": ["adapt"],
    "spinerl p": ["preflight", "plan", "push"],  # as in the help
    "spinerl data ": ["list", "show", "check"],
    "spinerl adapt meth": ["method="],
    "spinerl adapt method=spine-": ["method=spine-no-band", "method=spine-memory", "method=spine-v2"],
    "spinerl adapt vote.me": ["vote.memory=", "vote.memory_start=", "vote.memory_decay="],
    "spinerl adapt lo": ["lora.", "loss=", "loss.", "log."],
    "spinerl adapt lora": ["lora.rank=", "lora.alpha=", "lora.targets="],
    "spinerl adapt data.col": [f"data.columns.{n}=" for n in ("id", "question", "gold", "choices", "subject",
                                                                  "images")],
    "spinerl adapt vote.memory=": [f"vote.memory={n}" for n in ("off", "fixed", "sum", "ema")],
    "spinerl adapt guard=r": ["guard=rollback"],
    "spinerl adapt stream.on=": ["stream.on=true", "stream.on=false"],
    "spinerl adapt forks.selector=l": ["forks.selector=low-entropy"],
    "spinerl adapt vote.weights=": [
        f"vote.weights={n}" for n in ("equal", "probability", "certainty", "margin", "stepwise")
    ],
    "spinerl adapt loss=d": ["loss=dr-grpo", "loss=dapo"],
    "spinerl adapt steps=": [],
    "spinerl adapt nonsense=": [],
    "spinerl adapt engine.disable=[c": [f"engine.disable=[{n}]" for n in ("compact", "cpu", "compiled")],
    "spinerl adapt engine.disable=[cpu,s": [f"engine.disable=[cpu,{n}]" for n in
                                           ("shared-prefix", "skip", "sort", "shared-images")],
    "spinerl adapt data=tiny-vqa/shift-a": ["data=tiny-vqa/shift-a", "data=tiny-vqa/shift-a-unseen"],
    "spinerl adapt data=math": ["data=math-500", "data=mathvision"],
    "spinerl adapt data=my": ["data=my questions.jsonl"],
    "spinerl adapt model=models/": ["model=models/small", "model=models/x.gguf"],
    "spinerl adapt mi": ["mine.yaml"],
    "spinerl adapt mine.yaml mi": [],
    "spinerl adapt mine.yaml mo": ["model.", "model="],
    "spinerl adapt --resume ": ["runs/a", "models/", "runs/"],
    "spinerl adapt --resume runs/": ["runs/a", "runs/set/"],
    "spinerl adapt --resume=runs/s": ["--resume=runs/set/"],
    "spinerl adapt --allow": ["--allow-different-numerics", "--allow-plugins"],
    "spinerl adapt -- --allow": [],
    "spinerl adapt --resume runs/a --over": ["--overwrite"],
    "spinerl eval tiny-r": ["tiny-reasoner"],
    "spinerl eval tiny-reasoner tiny/shift-a rollout.te": ["rollout.temperature="],
    "spinerl eval tiny-reasoner da": ["data=", "data."],
    "spinerl eval --predictions n": ["notes.txt"],
    "spinerl report .h": [".hidden"],
    "spinerl compare met": ["methods="],
    "spinerl compare seed": ["seeds="],
    "spinerl compare methods=ttrl,spine-n": ["methods=ttrl,spine-no-band"],
    "spinerl compare methods=ttrl,ttrl": ["methods=ttrl,ttrl-paper", "methods=ttrl,ttrl-loo"],
    "spinerl compare data=tiny/shift-a,gs": ["data=tiny/shift-a,gsm8k"],
    "spinerl compare settings=m": ["settings=models/", "settings=mine.yaml"],
    "spinerl bench parts=step,r": ["parts=step,rollout"],
    "spinerl config --s": ["--sources", "--schema"],
    "spinerl --show-completion ": ["bash", "zsh", "fish"],
    "spinerl merge runs/a --out mod": ["models/"],
    "spinerl nonsense ": [],
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_what_may_follow(line, root):
    assert sorted(offered(root, line)) == sorted(LINES[line])


def test_every_key_is_reached_by_pressing_tab(root):
    """From nothing, through sections, to all keys that `spinerl config --keys` lists, and those of a comparison."""

    def reached(line: str) -> set[str]:
        found = set()
        for value in offered(root, line):
            if value.endswith("."):
                found |= reached(f"{line.rpartition(' ')[0]} {value}")
            elif value.endswith("="):
                found.add(value.removesuffix("="))
        return found

    keys = {key for key, *_ in describe_keys()}
    assert reached("spinerl adapt mine.yaml ") == keys | {"model", "data", "guard", "loss"}
    own = {key for key, *_ in describe_compare_keys()}
    assert reached("spinerl compare mine.yaml ") == (keys - {"method", "run", "seed"}) | own | {
        "model",
        "guard",
        "loss",
    }


def test_every_value_that_is_offered_is_taken(root):
    """Together with the others' defaults, but for what needs another key too."""
    needs_more = {"advantage.credit", "advantage.scale", "advantage.scope", "method", "reward", "vote.memory_start"}
    needs_more |= {"vote.pool", "vote.train_views", "loss.form", "model.quantize", "stream.answer"}
    for key in {key for key, *_ in describe_keys()} - needs_more:
        for value in offered(root, f"spinerl adapt mine.yaml {key}="):
            load_config(overrides=[value])
    for value in offered(root, "spinerl adapt mine.yaml method="):
        load_config(overrides=[value])


def test_bundled_and_benchmark_data_are_all_offered(root, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert offered(root, "spinerl adapt data=") == [f"data={name}" for name in (*suite_names(), *BENCHMARKS)]
    assert len(offered(root, "spinerl adapt method=")) == len(METHODS)
    assert all(offered(root, f"spinerl adapt {key}=") for key in PLUGIN_KEYS)


@pytest.mark.parametrize(
    ("line", "cut", "lines"),
    [
        ("spinerl adapt method=spine-m", "spine-m", ["spine-memory "]),
        ("spinerl adapt method=", "", None),
        ("spinerl adapt data=my", "my", ["my\\ questions.jsonl "]),
        ("spinerl adapt data=my\\ q", "my\\ q", ["my\\ questions.jsonl "]),
        ("spinerl adapt 'data=my q", "data=my q", ["data=my questions.jsonl"]),
        ("spinerl adapt data='my q", "my q", ["my questions.jsonl"]),
        ("spinerl  adapt   vote.memory_d", "vote.memory_d", ["vote.memory_decay="]),
    ],
)
def test_bash_cuts_words_and_gets_the_rest(line, cut, lines, root):
    found = list(answer(root, "bash", [line, cut]))
    assert found == lines if lines is not None else len(found) == len(METHODS)


# ------------------------------------------------------------------------------------------------ real shells


@pytest.fixture
def program(place) -> dict[str, str]:
    """The environment in which `spinerl` is this program, in a home of its own."""
    (place / "bin").mkdir()
    file = place / "bin" / "spinerl"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -m spinerl.cli "$@"\n')
    file.chmod(0o755)
    (place / "home").mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    return {**environment, "PATH": f"{file.parent}:{environment['PATH']}", "HOME": str(place / "home"), "TERM": "dumb"}


def lines_after_tab(shell: list[str], start: str, show: str, typed: list[str], place: Path, program) -> list[str]:
    """The line in an interactive shell after Tab, for each of the lines typed.

    Args:
        start: typed first; it has to end in printing READY.
        show: the key that writes the line being edited to the file `line`.
    """
    process, terminal = pty.fork()
    if not process:
        os.execvpe(shell[0], shell, program)
    seen = ""

    def wait(until, what: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while not until():
            assert time.monotonic() < deadline, f"{what}: {seen[-2000:]}"
            if select.select([terminal], [], [], 0.02)[0]:
                seen += os.read(terminal, 4096).decode(errors="replace")

    try:
        os.write(terminal, start.encode() + b"\n")
        wait(lambda: "\nREADY" in seen.replace("\r", ""), "it does not begin")
        found = []
        for line in typed:
            (place / "line").unlink(missing_ok=True)
            os.write(terminal, line.encode() + b"\t" + show.encode())
            wait(lambda: (place / "line").is_file() and (place / "line").read_text().endswith("|"), line)
            found.append((place / "line").read_text().removesuffix("|"))
            os.write(terminal, b"\x15")  # the line is emptied
        return found
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)


TYPED = {
    "spinerl adapt meth": "spinerl adapt method=",
    "spinerl adapt method=spine-me": "spinerl adapt method=spine-memory ",
    "spinerl adapt data=tiny/shift-ha": "spinerl adapt data=tiny/shift-hard ",
    "spinerl adapt data=my": "spinerl adapt data=my\\ questions.jsonl ",
    "spinerl adapt 'data=my": "spinerl adapt 'data=my questions.jsonl' ",
    "true && spinerl adapt --resume runs/s": "true && spinerl adapt --resume runs/set/",
}


def test_in_bash(place, program):
    """The colon and the equals sign are among those at which bash cuts words."""
    (place / "s.sh").write_text(SHELLS["bash"])
    start = (
        "PS1=; bind 'set enable-bracketed-paste off'; [[ $COMP_WORDBREAKS == *[=]*[:]* ]] && source s.sh; "
        """bind -x '"\\C-g": printf "%s|" "$READLINE_LINE" > line'; echo; echo READ""Y"""
    )
    found = lines_after_tab(["bash", "--norc", "--noprofile", "-i"], start, "\x07", list(TYPED), place, program)
    assert [line.rstrip() for line in found] == [line.rstrip() for line in TYPED.values()]


def test_bash_reads_the_replies(program):
    """As a program without a terminal would: COMPREPLY after the function was called."""
    text = SHELLS["bash"] + (
        "COMP_LINE='spinerl adapt method=ttrl-' COMP_POINT=26\n"
        "_spinerl spinerl ttrl- =\n"
        "printf '<%s>' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(["bash", "-c", text], env=program, capture_output=True, text=True, check=True)
    assert done.stdout == "<ttrl-paper ><ttrl-loo >"


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_in_zsh(place, program):
    (place / "s.zsh").write_text(SHELLS["zsh"])
    start = (
        "PS1=; unsetopt zle_bracketed_paste prompt_sp; autoload -Uz compinit; compinit -u -D; source s.zsh; "
        "show() { print -rn -- \"$BUFFER|\" > line }; zle -N show; bindkey '^G' show; bindkey '^U' kill-whole-line; "
        "echo; echo READ''Y"
    )
    found = lines_after_tab(["zsh", "-f", "-i"], start, "\x07", list(TYPED), place, program)
    assert found == list(TYPED.values())


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_in_fish(place, program):
    """fish says what it would complete; it has its own way of showing it."""
    (place / "s.fish").write_text(SHELLS["fish"])
    ask = "; ".join(f"complete -C {line!r}; echo ---" for line in ["spinerl adapt meth", "spinerl adapt method=ttrl-"])
    done = subprocess.run(["fish", "-c", f"source s.fish; {ask}"], env=program, capture_output=True, text=True)
    first, second, _ = done.stdout.split("---\n")
    assert first.startswith("method=\ta row of spinerl.methods")
    assert {line.partition("\t")[0] for line in second.splitlines()} == {"method=ttrl-paper", "method=ttrl-loo"}


# ------------------------------------------------------------------------------------------------ set-up


@pytest.mark.parametrize(
    ("shell", "files"),
    [
        ("bash", [".bash_completions/spinerl.sh", ".bashrc"]),
        ("zsh", [".zfunc/_spinerl", ".zshrc"]),
        ("fish", [".config/fish/completions/spinerl.fish"]),
    ],
)
def test_installed_once_and_without_loss(shell, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ZDOTDIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".bashrc").write_text("alias x=y")
    for _ in range(2):
        assert exit_code(["--install-completion", shell]) == 0
    assert (tmp_path / files[0]).read_text() == SHELLS[shell]
    assert files[0] in capsys.readouterr().out
    if shell == "bash":
        assert (tmp_path / ".bashrc").read_text() == f"alias x=y\nsource {tmp_path / files[0]}\n"
    elif shell == "zsh":
        assert (tmp_path / ".zshrc").read_text() == "fpath+=~/.zfunc; autoload -Uz compinit; compinit\n"
    assert exit_code(["--show-completion", shell]) == 0
    assert capsys.readouterr().out == SHELLS[shell]


def test_a_shell_without_completion_is_named(capsys):
    assert exit_code(["--show-completion", "csh"]) == 2
    assert capsys.readouterr().err == "spinerl: completion for 'csh' is not there; allowed: bash, zsh, fish\n"


def test_an_answer_needs_no_torch():
    """What is slow to import is not imported, by any of the ways to a value."""
    code = (
        "import sys, typer; from spinerl.cli import app; from spinerl.completion import answer\n"
        "root = typer.main.get_command(app)\n"
        "for line in ('', 'adapt method=', 'adapt data=', 'adapt model=', 'compare met', 'bench pa', 'report '):\n"
        "    assert list(answer(root, 'bash', ['spinerl ' + line, '']))\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'scipy', 'pandas'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
